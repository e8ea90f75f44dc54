"""Results and what they bring up to date."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval import results
from eval.digests import digest_of
from eval.models import is_folder, longest
from recipes.reports.summary import print_summary
from recipes.run_files import EVALUATION, HARNESS, SUMMARY
from recipes.weights.model_card import _cost, _evaluation
from tests.run_folders import crashed_run

TASK = {"label": "riddles/0-shot", "score": 0.75, "interval_95": 0.3, "examples": 8, "chance": 0.25}
CONTENT = {"digest": "d", "models": [{"name": "a", "loss": 2.5, "tasks": [TASK]}]}


def test_the_report_of_a_finished_run_gets_the_results(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    results.write(run / EVALUATION, CONTENT, [{"task": "riddles/0-shot", "index": 0}])
    assert json.loads((run / EVALUATION).read_text()) == CONTENT
    assert results.finished(run / EVALUATION, "d") == CONTENT
    (run / EVALUATION).write_text('{"digest": "d"}')
    assert results.finished(run / EVALUATION, "d") is None
    results.write(run / EVALUATION, CONTENT, [])
    results.examples_path(run / EVALUATION).unlink()
    assert results.finished(run / EVALUATION, "d") is None  # they are made again
    assert "riddles/0-shot" in (run / "report.html").read_text()


def test_results_outside_a_run_make_no_report(tmp_path: Path) -> None:
    results.write(tmp_path / "other" / EVALUATION, CONTENT, [])
    assert [path.name for path in sorted((tmp_path / "other").iterdir())] == ["results.examples.jsonl", EVALUATION]


def test_models_have_the_digest_of_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def of_hub(name: str) -> str:
        model = {"name": "hf_causal_lm", "pretrained_model_name_or_path": name}
        return digest_of({"model": model, "tokenizer": {"name": "x/tokenizer"}}, "fp32")

    seen = {of_hub("x/small"), of_hub("x/large")}
    commit = tmp_path / "hub" / "models--x--small" / "refs" / "main"
    commit.parent.mkdir(parents=True)
    for text in ("1a", "2b"):
        commit.write_text(text)
        seen.add(of_hub("x/small"))
    ranked = {"load_path": f"{tmp_path}/{{run_name}}-rank{{rank}}.pt"}
    for content in ("one", "two"):
        (tmp_path / "r-rank0.pt").write_text(content)
        seen.add(digest_of({"model": {}, "tokenizer": {"name": "x/tokenizer"}, **ranked}, "fp32", "r"))
        seen.add(digest_of({"model": {}, "tokenizer": {"name": "x/tokenizer"}}, None, "", [f"{tmp_path}/r-rank0.pt"]))
    for theta in ("10000", "20000"):  # a checkpoint's weights are put into what a folder describes
        (tmp_path / "config.json").write_text(f'{{"rope_theta": {theta}}}')
        model = {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(tmp_path)}
        seen.add(digest_of({"model": model, "tokenizer": {"name": "x/tokenizer"}, **ranked}, "fp32", "r"))
    assert len(seen) == 10


def test_the_weights_of_adapters_and_of_what_they_change_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base, adapter, commit = tmp_path / "base", tmp_path / "adapter", tmp_path / "hub" / "models--x--lora" / "refs"
    for folder in (base, adapter, commit):
        folder.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    files = [base / "model.safetensors", adapter / "adapter_model.safetensors", commit / "main", tmp_path / "ba1.pt"]
    model = {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(base)}
    entries: list[tuple[dict[str, Any], list[int]]] = [  # and which of the files decide what it answers
        ({"model": {**model, "pretrained_lora_id_or_path": str(adapter)}}, [0, 1]),
        ({"model": {**model, "pretrained_lora_id_or_path": "x/lora"}}, [0, 2]),
        ({"model": {**model, "peft_config": {"r": 2}}, "load_path": str(files[3])}, [0, 3]),
        ({"model": model, "load_path": str(files[3])}, [3]),
    ]
    for entry, deciding in entries:
        for number, file in enumerate(files):
            seen = set()
            for content in ("one", "two, of other size"):
                file.write_text(content)
                seen.add(digest_of({**entry, "tokenizer": {"name": "x/tokenizer"}}, "fp32"))
            assert (len(seen) == 2) == (number in deciding)


def test_a_folder_with_changes_is_no_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    model = {"name": "hf_causal_lm", "pretrained_model_name_or_path": str(tmp_path)}
    assert is_folder({"model": model})
    assert longest({"model": model}, 100) == 64
    adapted = {**model, "pretrained_lora_id_or_path": "adapter"}
    for changed in ({"load_path": "x.pt"}, {"model": {**model, "pretrained": False}}, {"model": adapted}):
        assert not is_folder({"model": model, **changed})
    overridden = {"model": {**model, "config_overrides": {"max_position_embeddings": 32}}}
    assert not is_folder(overridden)
    assert longest(overridden, 100) == 32


def test_a_summary_has_the_scores_of_the_runs_own_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "base"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("ba12.pt", "ba15.pt"):
        (run / "checkpoints" / name).touch()
    task = {"label": "mc", "score": 0.375, "examples": 8, "low": None, "high": None}
    entries = [
        {"name": "base", "checkpoint": str(run / "checkpoints" / "ba12.pt"), "tasks": [task]},
        {"name": "other", "checkpoint": "elsewhere/ba15.pt", "tasks": [{**task, "score": 0.55}]},
    ]
    (run / EVALUATION).write_text(json.dumps({"models": entries}))
    for newest, shown in (("ba12.pt", "37.5%"), ("ba15.pt", "")):
        text = json.dumps({"steps": 15, "checkpoint": str(run / "checkpoints" / newest), "recipe": "x"})
        (run / SUMMARY).write_text(text)
        print_summary(run)
        said = capsys.readouterr().out
        assert "55.0%" not in said
        assert ("37.5%" in said) == bool(shown)


def test_a_model_card_has_the_scores_of_its_own_checkpoint(tmp_path: Path) -> None:
    task = {"label": "a/0-shot", "score": 0.9, "low": 0.6, "high": 0.95, "chance": 0.25, "examples": 8}
    (tmp_path / "rank0.pt").touch()
    entries = [
        {"name": "this", "checkpoint": str(tmp_path / "rank{rank}.pt"), "tasks": [task]},
        {
            "name": "moved",
            "checkpoint": f"elsewhere/{tmp_path.name}/rank0.pt",
            "tasks": [{**task, "label": "b/0-shot"}],
        },
        {"name": "other", "checkpoint": "exported/other", "tasks": [{**task, "label": "c/0-shot"}]},
        {"name": "before", "checkpoint": str(tmp_path / "ba2.pt"), "tasks": [{**task, "label": "d/0-shot"}]},
    ]
    (tmp_path / EVALUATION).write_text(json.dumps({"models": entries}))
    trained: Any = SimpleNamespace(run=tmp_path, checkpoint=tmp_path / "rank0.pt")
    lines = [f"- {name}/0-shot: 90.0% (60.0% – 95.0%), chance 25%, 8 examples" for name in "ab"]
    assert _evaluation(trained) == lines
    entries = [{"checkpoint": str(tmp_path / "rank0.pt"), "tasks": [{**task, "label": "e/0-shot"}]}]
    (tmp_path / HARNESS).write_text(json.dumps({"models": entries}))
    summary = {"eval_loss_end": 2.5, "steps": 9, "tokens": 99, "rate_source": "none"}
    for last, is_last in (("rank0.pt", True), ("ba9.pt", False)):
        (tmp_path / SUMMARY).write_text(json.dumps({**summary, "checkpoint": str(tmp_path / last)}))
        said = _evaluation(trained)
        assert said[-1] == "- e/0-shot: 90.0% (60.0% – 95.0%), chance 25%, 8 examples"
        assert ("- validation loss 2.5000 nats a token at the end of training" in said) == is_last
        assert ("Of the whole run, which went on behind `rank0.pt`:" in _cost(trained)) != is_last


def test_other_weights_precisions_and_tokenizers_are_other_models(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    entry = {"model": {}, "tokenizer": {"name": str(tmp_path / "words")}, "load_path": str(tmp_path / "a.pt")}
    seen = set()
    for weight in (1.0, 2.0):
        torch.save({"state": torch.full((3,), weight)}, tmp_path / "a.pt")
        seen.add(digest_of(entry, "fp32"))
    seen.add(digest_of(entry, "amp_bf16"))
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    seen.add(digest_of(entry, "fp32"))
    assert len(seen) == 4
