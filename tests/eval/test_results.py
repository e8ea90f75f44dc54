"""Results and what they bring up to date."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval import results
from eval.digests import digest_of
from recipes.reports.summary import EVALUATION
from recipes.weights.model_card import _evaluation
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
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

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
    assert len(seen) == 8


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
