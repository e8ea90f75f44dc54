"""Evaluation as a user starts it, on a run that the tests trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from eval.tasks.cloze import make_cloze
from recipes.report import print_summary

from .conftest import ROOT, Command, summary

RECIPE = ROOT / "yamls" / "eval" / "quickstart.yaml"


@pytest.fixture(scope="module")
def task(shards: Path, run_command: Command) -> Path:
    path = shards / "tasks" / "cloze.jsonl"
    documents = shards / "val" / "documents.jsonl"
    made = run_command("python", "-m", "eval.tasks.cloze", documents, "--out", path, "--examples", 40)
    assert made.returncode == 0, made.stderr
    assert "40 examples, chance 25%" in made.stdout
    return path


def arguments(shards: Path, run: Path, task: Path, *more: str) -> list[str]:
    data = [f"eval_loader.dataset.local={shards}", "max_seq_len=32", f"icl_tasks.0.dataset_uri={task}"]
    return [str(RECIPE), f"models.0.run={run}", *data, "samples.max_new_tokens=5", *more]


@pytest.fixture(scope="module")
def evaluated(shards: Path, whole: Path, task: Path, run_command: Command) -> str:
    result = run_command("python", "eval/evaluate.py", *arguments(shards, whole, task))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_run_is_judged_by_loss_task_and_sample(evaluated: str, whole: Path) -> None:
    (model,) = json.loads((whole / "evaluation.json").read_text())["models"]
    assert model["checkpoint"].endswith("ep0-ba24-rank0.pt")
    assert model["perplexity"] == pytest.approx(math.exp(model["loss"]))
    (cloze,) = model["tasks"]
    assert cloze["label"] == "cloze/0-shot"
    assert cloze["examples"] == 40
    assert cloze["chance"] == 0.25
    assert 0 <= cloze["score"] <= 1
    assert cloze["interval_95"] == pytest.approx(1.96 * math.sqrt(cloze["score"] * (1 - cloze["score"]) / 40))
    assert [s["prompt"] for s in model["samples"]] == ["My fellow citizens, the state of our", "The Congress should"]
    assert all(sample["text"] for sample in model["samples"])
    for words in ("validation perplexity", "cloze/0-shot", "25.0%", "results:"):
        assert words in evaluated


def test_the_loss_is_the_one_that_training_measured(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    # training looked at two batches of eight; so does this
    more = [f"results={tmp_path}/r.json", "eval_subset_num_batches=2", "device_eval_batch_size=8", "icl_tasks=null"]
    result = run_command("composer", "eval/evaluate.py", *arguments(shards, whole, task, *more, "samples=null"))
    assert result.returncode == 0, result.stdout + result.stderr
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert model["loss"] == pytest.approx(summary(whole)["eval_loss_end"], rel=1e-6)


def test_the_same_evaluation_is_not_done_twice(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command
) -> None:
    result = run_command("python", "-X", "importtime", "eval/evaluate.py", *arguments(shards, whole, task))
    assert result.returncode == 0
    assert "evaluated before" in result.stdout
    assert "cloze/0-shot" in result.stdout
    assert " torch\n" not in result.stderr


def test_two_processes_score_the_same(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    result = run_command(
        "composer", "-n", "2", "eval/evaluate.py", *arguments(shards, whole, task, f"results={tmp_path}/r.json")
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (two,) = json.loads((tmp_path / "r.json").read_text())["models"]
    (one,) = json.loads((whole / "evaluation.json").read_text())["models"]
    assert two["tasks"] == one["tasks"]
    # where the sequences do not divide by the processes, streaming repeats some so that all have as many
    assert two["loss"] == pytest.approx(one["loss"], rel=5e-3)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("models.0.run=runs/nothing", "runs/nothing is not a run folder"),
        ("icl_tasks.0.dataset_uri=nothing.jsonl", "there is no file nothing.jsonl"),
        ("icl_tasks.0.num_fewshots=[0]", "did you mean num_fewshot?"),
        ("samples.prompts=[]", "expected at least one"),
        ("precision=bf16", "did you mean amp_bf16?"),
    ],
)
def test_bad_evaluations_are_refused_in_words(
    shards: Path, whole: Path, task: Path, run_command: Command, override: str, words: str
) -> None:
    result = run_command("python", "eval/evaluate.py", *arguments(shards, whole, task), override)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_summary_of_a_run_has_its_evaluation(evaluated: str, whole: Path, run_command: Command) -> None:
    result = run_command("python", "-m", "recipes", "summary", whole)
    assert result.returncode == 0
    for words in ("validation loss", "cloze/0-shot", "sample", "checkpoint", "unigram entropy"):
        assert words in result.stdout


def test_a_folder_without_a_run_is_said_to_be_one(run_command: Command, tmp_path: Path) -> None:
    result = run_command("python", "-m", "recipes", "summary", tmp_path)
    assert result.returncode == 1
    assert "no run has ended in" in result.stderr
    with pytest.raises(FileNotFoundError):
        print_summary(tmp_path)


def test_cloze_offers_words_of_about_the_same_frequency() -> None:
    words = [f"{a}{b}word" for a in "abcdefghijklmnopqrst" for b in "abcdefghij"]
    # the first words come most often
    document = " ".join(word for rank, word in enumerate(words) for _ in range(1 + 400 // (rank + 1)))
    made = make_cloze([document], examples=50, seed=3)
    assert make_cloze([document], examples=50, seed=3) == made
    assert make_cloze([document], examples=50, seed=4) != made
    counts = {word: document.split().count(word) for word in words}
    for example in made:
        choices = example["choices"]
        assert isinstance(choices, list)
        assert len(set(choices)) == 4
        answer = choices[int(str(example["gold"]))]
        assert f"{example['query']} {answer}" in document
        others = [counts[c] for c in choices if c != answer]
        assert max(others) >= counts[answer] / 12
    assert {example["gold"] for example in made} == {0, 1, 2, 3}


def test_cloze_needs_enough_text() -> None:
    with pytest.raises(ValueError, match="too few"):
        make_cloze(["a few words only"], examples=10, seed=0)
