"""`python -m eval.harness` as a user starts it, and tasks while a run goes on."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from composer.core import Precision

from data_prep.conversations import DEFAULT_TEMPLATE
from eval import harness
from eval.backbone import Backbone
from eval.harness_chat import Asking
from eval.harness_index import files_of, folders_of, unknown_names
from eval.in_loop import TaskEvaluation
from eval.questions import ScoringError
from eval.results import examples_path
from eval.tasks.rows import TaskError
from recipes.callbacks.stop import Stop
from recipes.callbacks.stopping import Stopper
from recipes.config.check import load_checked
from recipes.preflight.machine import can_be_written
from recipes.preflight.training import preflight
from recipes.reports.runs import read_metrics
from recipes.talking.loading import load_model, load_words
from recipes.weights.trained import find_trained

from ..conftest import ROOT, Command, losses, recipe_arguments, write_jsonl
from .twins import Twins

SHIPPED = ROOT / "yamls" / "eval" / "harness"


@pytest.fixture(scope="module")
def own_tasks(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    for path in SHIPPED.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text().replace("shards/sotu/tasks", str(suite)))
    return folder


def test_a_checkpoint_is_scored_directly_and_only_once(
    whole: Path, own_tasks: Path, run_command: Command, tmp_path: Path
) -> None:
    asked = [whole, "--tasks", "sotu_cloze", "sotu_dates", "--include", own_tasks, "--out", tmp_path / "h.json"]
    first = run_command("python", "-m", "eval.harness", *asked)
    assert first.returncode == 0, first.stderr
    assert "%|" not in first.stderr  # a progress bar, where there is no terminal
    content = json.loads((tmp_path / "h.json").read_text())
    assert content["harness"] == "lm_eval 0.4.13"
    (model,) = content["models"]
    assert [t["label"] for t in model["tasks"]] == ["sotu_cloze/0-shot", "sotu_dates/0-shot"]
    for task in model["tasks"]:
        assert 0 < task["examples"] <= 40
        assert task["chance"] == 0.25
        assert task["low"] <= task["score"] <= task["high"]
        assert set(task["metrics"]) >= {"acc,none"}
    again = run_command("python", "-X", "importtime", "-m", "eval.harness", *asked)
    assert again.returncode == 0
    assert "evaluated before" in again.stdout
    assert " torch\n" not in again.stderr
    two = run_command("launch", "-n", "2", "-m", "eval.harness", *asked[:-1], tmp_path / "two.json")
    assert two.returncode == 0, two.stdout + two.stderr
    assert (tmp_path / "two.examples.jsonl").read_text() == (tmp_path / "h.examples.jsonl").read_text()


def test_results_of_one_model_are_put_together_and_those_of_another_are_not_replaced(
    whole: Path, own_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "h.json"

    def asked(task: str, *more: str, model: Path = whole) -> int:
        return harness.main([str(model), "--tasks", task, "--include", str(own_tasks), "--out", str(out), *more])

    assert asked("sotu_cloze", "--limit", "4") == 0
    assert asked("sotu_dates", "--limit", "4") == 0
    (model,) = json.loads(out.read_text())["models"]
    newest = find_trained(whole).checkpoint
    assert model["checkpoint"] == str(newest)
    assert [task["label"] for task in model["tasks"]] == ["sotu_cloze/0-shot", "sotu_dates/0-shot"]
    records = [json.loads(line)["task"] for line in examples_path(out).read_text().splitlines()]
    assert records == ["sotu_cloze/0-shot"] * 4 + ["sotu_dates/0-shot"] * 4
    assert asked("sotu_dates", "--limit", "6") == 0
    (model,) = json.loads(out.read_text())["models"]
    assert [task["examples"] for task in model["tasks"]] == [4, 6]
    kept = out.read_bytes()
    assert asked("sotu_dates", "--limit", "2") == 1
    assert "has sotu_dates/0-shot of 6 examples, which 2 would replace" in capsys.readouterr().err
    assert out.read_bytes() == kept
    older = next(path for path in sorted(newest.parent.glob("ep0-ba*.pt")) if path != newest)
    assert asked("sotu_dates", model=older) == 1
    said = capsys.readouterr().err
    assert f"another model, checkpoint or precision, {whole.name} ({newest}), which would be lost" in said
    assert out.read_bytes() == kept


def test_a_conversation_has_a_score_of_its_own(
    whole: Path, own_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "h.json"
    asked = [str(whole), "--tasks", "sotu_cloze", "--include", str(own_tasks), "--out", str(out), "--limit", "4"]
    assert harness.main([*asked, "--apply-chat-template"]) == 1
    assert "--apply-chat-template: the tokenizer has no chat template" in capsys.readouterr().err
    assert harness.main([*asked, "--fewshot-as-multiturn"]) == 1
    assert "give --apply-chat-template" in capsys.readouterr().err
    tokenizer = load_words(whole)
    tokenizer.chat_template = DEFAULT_TEMPLATE
    tokenizer.save_pretrained(str(tmp_path / "chat"))
    asked += ["--tokenizer", str(tmp_path / "chat")]
    chats = [*asked, "--apply-chat-template", "--system-instruction", "Be short."]
    assert harness.main([*chats, "--show-prompts"]) == 0
    assert "<|im_start|>system\nBe short." in capsys.readouterr().out
    assert harness.main(asked) == 0
    assert harness.main(chats) == 0
    (model,) = json.loads(out.read_text())["models"]
    assert [task["label"] for task in model["tasks"]] == ["sotu_cloze/0-shot", "sotu_cloze/0-shot/chat"]
    *_, last = (json.loads(line) for line in examples_path(out).read_text().splitlines())
    assert last["prompt"].startswith("<|im_start|>system\nBe short.")
    capsys.readouterr()
    assert harness.main(chats) == 0
    assert "evaluated before" in capsys.readouterr().out
    assert harness.main([*chats, "--no-fewshot-as-multiturn"]) == 0
    assert "evaluated before" not in capsys.readouterr().out


def test_a_conversation_in_the_loop_wants_a_template(twins: Twins, own_tasks: Path, tmp_path: Path) -> None:
    settings = {"tasks": ["sotu_dates"], "include": [str(own_tasks)], "limit": 2, "apply_chat_template": True}
    with pytest.raises(ValueError, match=r"harness_tasks\.apply_chat_template: the tokenizer has no chat template"):
        in_loop(twins, tmp_path, [], None, settings)
    twins.tokenizer.chat_template = DEFAULT_TEMPLATE
    try:
        evaluate_once(in_loop(twins, tmp_path, [], None, settings), twins)
    finally:
        twins.tokenizer.chat_template = None
    assert '"label": "sotu_dates/0-shot/chat"' in (tmp_path / "tasks.jsonl").read_text()


def test_new_data_of_the_hub_is_scored_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    import datasets

    cache, out = tmp_path / "cache", tmp_path / "h.json"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)  # read from there when it was imported
    task = yaml.safe_load((SHIPPED / "sotu_cloze.yaml").read_text())
    del task["dataset_kwargs"]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(
        yaml.safe_dump({**task, "task": "t", "dataset_path": "someone/FewWords"})
    )

    def score() -> tuple[bool, str]:
        words = [whole, "--tasks", "t", "--include", tmp_path / "tasks", "--out", out]
        assert harness.main(list(map(str, words))) == 0
        (example,) = examples_path(out).read_text().splitlines()
        return "evaluated before" in capsys.readouterr().out, json.loads(example)["prompt"]

    _into_datasets_cache(cache, "0001", [{"query": "My fellow", "choices": [" citizens", " men"], "gold": 0}])
    assert score() == (False, "My fellow")
    assert score() == (True, "My fellow")
    _into_datasets_cache(cache, "0002", [{"query": "The state", "choices": [" of", " men"], "gold": 0}])
    assert score() == (False, "The state")
    assert score() == (True, "The state")
    shutil.rmtree(cache)
    assert score() == (True, "The state")


def test_the_first_rank_decides_whether_results_are_of_the_data_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines may have another version of it in their caches, and would score what rank 0 has already."""
    monkeypatch.setattr(harness, "data_versions", lambda _: ["0002"])
    monkeypatch.setattr(harness, "_join_processes", lambda: 1)
    monkeypatch.setattr("recipes.training.processes.as_first_rank_sees", lambda value: not value)
    old, new = ({"data": {"a/b": [version]}} for version in ("0001", "0002"))
    for machines, seen in (("2", [False, True]), ("1", [True, False])):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1" if machines == "2" else "2")
        assert [harness._is_done(found) for found in (new, old)] == seen
    assert not harness._is_done(None)


def _into_datasets_cache(cache: Path, version: str, rows: list[Any]) -> None:
    """A data set of the hub, someone/FewWords, as `datasets` leaves it in its cache."""
    import datasets

    folder = cache / "someone___few_words" / "default" / "0.0.0" / version
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(folder.with_name("scratch"))
    folder.mkdir()
    next(folder.with_name("scratch").glob("*.arrow")).rename(folder / "few_words-test.arrow")
    shutil.rmtree(folder.with_name("scratch"))
    sizes = {"name": "test", "num_bytes": 1, "num_examples": len(rows), "dataset_name": "few_words"}
    about = {"features": made.features.to_dict(), "splits": {"test": sizes}, "dataset_name": "few_words"}
    about |= {"builder_name": "json", "config_name": "default"}
    (folder / "dataset_info.json").write_text(json.dumps(about))


def test_prompts_are_shown(whole: Path, own_tasks: Path, suite: Path, run_command: Command) -> None:
    shown = run_command(
        "python", "-m", "eval.harness", whole, "--tasks", "sotu_cloze", "--include", own_tasks, "--show-prompts"
    )
    assert shown.returncode == 0, shown.stderr
    first = json.loads((suite / "cloze.jsonl").read_text().splitlines()[0])
    assert first["query"] in shown.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--tasks", "piqa"], "hf download --repo-type dataset"),
        (["--tasks", "piqqa"], "did you mean piqa"),
        (["--tasks", "sotu_cloze", "--include", "nowhere"], "there is no folder nowhere"),
        (["--tasks", "piqa", "--batch-size", "0"], "--batch-size: got 0"),
    ],
)
def test_what_is_missing_is_said(whole: Path, run_command: Command, more: list[str], words: str) -> None:
    refused = run_command("python", "-m", "eval.harness", whole, *more)
    assert refused.returncode == 1
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_model_that_is_none_is_said(run_command: Command, tmp_path: Path) -> None:
    for path, words in ((tmp_path, "holds no|has no"), (tmp_path / "no.pt", "does not exist")):
        refused = run_command("python", "-m", "eval.harness", path, "--tasks", "piqa")
        assert refused.returncode == 1
        assert any(word in refused.stderr for word in words.split("|"))
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[]", "got list, expected a JSON object"),
        ('{"model_type": "mpt"}', "holds a config.json without d_model"),
        ('{"model_type": "llama", "num_attention_heads": 0, "rope_scaling": [1]}', "of another kind than expected"),
        ('{"model_type": "mpt", "d_model": 8, "n_heads": 0, "n_layers": 1, "vocab_size": 9}', "another kind"),
    ],
)
def test_a_damaged_config_is_said(config: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)


def test_tasks_in_the_loop_reach_logs_ledger_and_report(
    shards: Path, suite: Path, own_tasks: Path, whole: Path, run_command: Command, tmp_path: Path
) -> None:
    entry = f"label: dates, dataset_uri: {suite}/dates.jsonl, icl_task_type: multiple_choice, num_fewshot: [0]"
    icl = f"icl_tasks=[{{{entry}}}]"
    harness = f"harness_tasks={{tasks: [sotu_cloze], include: [{own_tasks}], limit: 10}}"
    more = [icl, harness, "task_interval=12ba"]
    result = run_command("python", "train.py", *recipe_arguments(shards, tmp_path / "run", *more))
    assert result.returncode == 0, result.stdout + result.stderr
    for step in (0, 12, 24):
        assert re.search(rf"step {step}: dates/0-shot \d.*%\), sotu_cloze/0-shot \d", result.stderr), result.stderr
    assert len(re.findall(r"sotu_cloze/0-shot .*at step 24", " ".join(result.stdout.split()))) == 1
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "tasks.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 12, 24]
    for line in lines:
        assert [t["label"] for t in line["tasks"]] == ["dates/0-shot", "sotu_cloze/0-shot"]
        assert line["tasks"][1]["examples"] == 10
        assert line["seconds"] > 0
    logged: dict[str, float] = {}
    for record in read_metrics(run / "metrics.jsonl"):
        logged.update(record)
    assert logged["metrics/dates/0-shot/InContextLearningMultipleChoiceAccuracy"] == lines[-1]["tasks"][0]["score"]
    assert logged["metrics/sotu_cloze/0-shot/acc,none"] == lines[-1]["tasks"][1]["score"]
    assert logged["evaluation/seconds"] > 0
    noted = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    noted = [record for record in noted if record["event"] == "evaluation"]
    assert [record["scores"]["dates/0-shot"] for record in noted] == [line["tasks"][0]["score"] for line in lines]
    assert noted[-1]["evaluation_s"] > 0
    assert noted[-1]["seconds"]["evaluation"] > 0
    page = (run / "report.html").read_text()
    for words in ("Tasks over the checkpoints", "dates/0-shot", "3 evaluations took", "score against tokens"):
        assert words in page
    assert losses(run) == losses(whole)  # evaluating does not change what is trained


def test_processes_wait_longer_than_composer_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from composer.utils import dist

    asked: dict[str, float] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "initialize_dist", lambda _, **more: asked.update(more))
    harness._join_processes()
    assert asked == {"timeout": 3600}


def test_a_length_beyond_the_models_is_refused(whole: Path, own_tasks: Path, run_command: Command) -> None:
    words = ("--tasks", "sotu_cloze", "--include", own_tasks, "--limit", "2", "--max-length", "9999")
    refused = run_command("python", "-m", "eval.harness", whole, *words)
    assert refused.returncode == 1
    assert "--max-length: got 9999, expected at most the 32 that the model reads" in refused.stderr


def test_a_task_may_be_longer_than_the_others_of_a_run(twins: Twins, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "long.jsonl", [{"context": "We must " * 40, "continuation": "work"}])
    long = {"label": "long", "dataset_uri": f"{tmp_path}/long.jsonl", "icl_task_type": "language_modeling"}
    evaluation = in_loop(twins, tmp_path, [{**long, "num_fewshot": [0], "max_seq_len": 64}], None)
    state: Any = SimpleNamespace(model=twins.composer, precision=Precision.FP32, precision_config=None, callbacks=[])
    (result,), _ = evaluation._scores(state)
    assert (result["label"], result["truncated"]) == ("long/0-shot", 1)


def test_tasks_of_the_harness_are_loaded_once_and_asked_alike_each_time(
    twins: Twins, own_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval import harness_results, harness_tasks

    asked: list[Any] = []

    def evaluated(lm: Any, loaded: Any, limit: int | None, asking: Asking) -> Any:
        found, examples = evaluate(lm, loaded, limit, asking)
        asked.append((found, [loaded["tasks"]["sotu_dates"].instances[i].args for i in range(8)]))
        return found, examples

    evaluate = harness_results.evaluate
    monkeypatch.setattr(harness_results, "evaluate", evaluated)
    settings = {"tasks": ["sotu_dates"], "include": [str(own_tasks)], "num_fewshot": 2, "limit": 4}
    evaluation = in_loop(twins, tmp_path, [], None, settings)
    again = harness_tasks.load_tasks(settings["tasks"], [own_tasks], 2)
    monkeypatch.setattr(harness_tasks, "load_tasks", lambda *_: pytest.fail("they are loaded again"))
    for step in (1, 2):
        evaluate_once(evaluation, twins, step)
    evaluation.harness = again  # as every evaluation loaded them
    evaluate_once(evaluation, twins, 3)
    assert asked[0] == asked[1] == asked[2]
    assert "error" not in (tmp_path / "tasks.jsonl").read_text()


def test_an_evaluation_is_made_up_for_by_this_runs_own_records(twins: Twins, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"step": 2, "tasks": []}) + "\n")
    evaluation = in_loop(twins, tmp_path, [], None)
    assert not evaluation._has_judged(2)
    lines = [json.dumps({"step": 2, "evaluation/seconds": 1.0})]
    for more, expected in (([], True), ([json.dumps({"step": step}) for step in (0, 1, 2)], False)):  # begun anew
        lines += more
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        assert evaluation._has_judged(2) == expected
    assert not evaluation._has_judged(1)


def test_a_batch_too_large_for_tasks_does_not_end_a_run(
    twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Backbone, "run", full)
    write_jsonl(tmp_path / "asked.jsonl", [{"context": "We must", "continuation": "work"}])
    asked = {"label": "asked", "dataset_uri": f"{tmp_path}/asked.jsonl", "icl_task_type": "language_modeling"}
    evaluation = in_loop(twins, tmp_path, [{**asked, "num_fewshot": [0]}], None)
    evaluate_once(evaluation, twins)
    (line,) = (tmp_path / "tasks.jsonl").read_text().splitlines()
    assert "no room for a batch of 1: set a smaller device_eval_batch_size" in json.loads(line)["error"]


def in_loop(twins: Twins, folder: Path, tasks: list[Any], gauntlet: Any, harness_tasks: Any = None) -> TaskEvaluation:
    nothing: Any = None
    lengths = {"max_seq_len": 32, "reads": 96}
    more = {"interval": "1ba", "at_start": False, "harness_tasks": harness_tasks, "batch_size": 2}
    return TaskEvaluation(
        twins.tokenizer, nothing, Stopper(saves=False), folder, icl_tasks=tasks, gauntlet=gauntlet, **lengths, **more
    )  # type: ignore[arg-type]


def evaluate_once(evaluation: TaskEvaluation, twins: Twins, step: int = 1) -> None:
    """As at a step of a training run."""
    meter = {"spending": lambda _: contextlib.nullcontext(), "note": lambda *_, **__: None}
    evaluation.cost = SimpleNamespace(**meter, rate=SimpleNamespace(usd_per_device_hour=None))  # type: ignore[assignment]
    done = SimpleNamespace(batch=step, token=9)
    state: Any = SimpleNamespace(
        model=twins.composer, precision=Precision.FP32, precision_config=None, callbacks=[], timestamp=done
    )
    evaluation._evaluate(state, SimpleNamespace(log_metrics=lambda _: None))  # type: ignore[arg-type]


def test_a_run_that_is_stopped_begins_no_evaluation() -> None:
    evaluation: Any = TaskEvaluation.__new__(TaskEvaluation)
    begun = []
    evaluation._is_due = lambda *_: True  # as at the end of training, which a stop makes
    evaluation._evaluate = lambda *_: begun.append(True)
    evaluation.stopper = Stopper(saves=True)
    evaluation.batch_checkpoint(None, None)
    evaluation.stopper.stopped = Stop("SIGTERM came", 75, "the same command")
    evaluation.batch_checkpoint(None, None)
    evaluation.epoch_checkpoint(None, None)
    assert begun == [True]


def test_a_group_without_a_score_of_its_own_is_its_tasks(
    whole: Path, own_tasks: Path, run_command: Command, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(own_tasks, tmp_path / "tasks"))
    (folder / "both.yaml").write_text("group: both\ntask:\n  - sotu_cloze\n")
    words = ("--tasks", "both", "--include", folder, "--limit", "5", "--out", tmp_path / "out.json")
    for _ in range(2):
        result = run_command("python", "-m", "eval.harness", whole, *words)
        assert result.returncode == 0, result.stderr
        assert "sotu_cloze/0-shot" in result.stdout


def test_a_folder_without_a_tokenizer_is_said_to_be_one(run_command: Command, tmp_path: Path) -> None:
    from .test_scoring import llama

    llama().save_pretrained(tmp_path / "llama")
    words = ("--tasks", SHIPPED / "sotu_cloze.yaml", "--out", tmp_path / "out.json")
    refused = run_command("python", "-m", "eval.harness", tmp_path / "llama", *words)
    assert refused.returncode == 1
    assert "error:" in refused.stderr
    assert "Traceback" not in refused.stderr
    asked = ["yamls/eval/quickstart.yaml", f"models=[{{folder: {tmp_path}/llama}}]", f"results={tmp_path}/r.json"]
    refused = run_command("python", "eval/evaluate.py", *asked)
    assert refused.returncode == 1
    assert "holds no tokenizer" in refused.stderr


@pytest.mark.parametrize(
    ("row", "more", "words"),
    [
        ({"gold": "x"}, {}, "t, example 2: the right answer: got 'x'"),
        ({"gold": 7}, {}, "t, example 2: the right answer: got 7, expected a choice or its index, 0 to 1"),
        ({"choices": "bc"}, {}, "t, example 1: doc_to_choice: got 'bc', expected a list of texts"),
        ({"query": None}, {}, "t, example 1: doc_to_text: got nothing"),
        ({}, {"output_type": "loglikelihood"}, "t, example 1: doc_to_target: got 0, expected a text"),
        ({}, {"doc_to_choice": None}, "task t: doc_to_choice is missing"),
        ({}, {"metric_list": []}, "task t: metric_list: names no metric"),
        ({}, {"num_fewshot": -3}, "task t: num_fewshot: got -3"),
        ({}, {"num_fewshot": 2}, "task t: num_fewshot: 2 examples before each question are not there"),
        ({}, {"task": 5}, "--include: .*t.yaml cannot be read: ValueError: task: got 5"),
        ({}, {"unsafe_code": True}, "task t: it runs code that the model writes"),
        ({}, {}, "lm-evaluation-harness: AttributeError: 'NoneType'"),  # here: there is no model
        ({}, {"test_split": "no"}, "task t cannot be read: it names 'no'"),
    ],
)
def test_tasks_that_cannot_be_scored_are_named(tmp_path: Path, row: dict[str, Any], more: Any, words: str) -> None:
    pytest.importorskip("lm_eval")
    from eval.harness_results import evaluate
    from eval.harness_tasks import load_tasks

    rows = [{"query": "q", "choices": ["b", "c"], "gold": 0, **row}] * 2
    if "gold" in row:
        rows[0] = {**rows[0], "gold": "b" if row["gold"] == "x" else 0}
    write_jsonl(tmp_path / "rows.jsonl", rows)
    task = yaml.safe_load((SHIPPED / "sotu_cloze.yaml").read_text())
    task |= {"task": "t", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}, **more}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises((TaskError, ScoringError), match=words):
        evaluate(None, load_tasks(["t"], [tmp_path], None))


@pytest.mark.parametrize(
    ("metric", "chosen", "metrics"),
    [
        ("acc", 0, {"acc": 1.0}),
        ("acc_norm", 1, {"acc_norm": 0.0}),
        ("acc_mutual_info", 2, {"acc": 1.0, "acc_mutual_info": 0.0}),
    ],
)
def test_what_a_model_chose_is_what_its_metric_took(metric: str, chosen: int, metrics: dict[str, float]) -> None:
    pytest.importorskip("lm_eval")
    from eval import harness_results

    choices = ["a", "bbbb", "c"]
    logprobs = [-3.0, -4.0, -5.0]
    if "acc_mutual_info" in metrics:
        logprobs += [-3.0, -5.0, -9.0]  # without the question
    sample = {
        "doc_id": 0,
        "doc": {},
        "target": 0,
        "arguments": [("q" if i < 3 else "", f" {choices[i % 3]}") for i in range(len(logprobs))],
        "filtered_resps": [(x, False) for x in logprobs],
        **metrics,
    }
    task = SimpleNamespace(doc_to_choice=lambda _: choices)
    example = harness_results._example("t", metric, sample, True, task)
    assert (example["chosen"], example["correct"]) == (chosen, float(chosen == 0))
    assert example["logprobs"] == logprobs[:3]
    assert harness_results._chance([sample], metric) == pytest.approx(1 / 3)
    assert harness_results._chance([{**sample, "target": [0, 2]}], metric) == pytest.approx(2 / 3)
    assert harness_results._example("t", metric, sample, False, task)["correct"] is None  # as of a perplexity


def test_an_example_that_is_cut_counts_once() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from eval.harness_lm import ScoringLM

    tokenizer: Any = SimpleNamespace(eos_token_id=0, bos_token_id=None, decode=str)
    lm = ScoringLM(lambda: pytest.fail("nothing is scored"), tokenizer, 4, 1)
    for example, choice in ((0, 0), (0, 1), (1, 0), (2, 0)):
        asked = Instance("loglikelihood", {}, ("", ""), choice, metadata=("t", example, 1))
        lm._request([1] * (9 if example < 2 else 2), [1], asked)
    assert lm.truncated == {"t": 2}


def test_results_that_cannot_be_written_are_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "h.json"):
        assert not can_be_written(out)
    assert can_be_written(tmp_path / "new" / "h.json")


def test_every_file_that_decides_a_task_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "tasks/own.yaml": "include: base.yml\ndoc_to_text: !function more.fn.text\n",
        "tasks/base.yml": "dataset_kwargs:\n  data_files:\n    test: [a b.jsonl.gz, 'many/*.txt']\n  data_dir: data\n",
    }
    data = ["tasks/more/fn.py", "tasks/imported.py", "a b.jsonl.gz", "many/1.txt", "data/deep/x.bin"]
    for name, text in {**files, **dict.fromkeys([*data, "many/1.csv", "test"], "")}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [str(path) for path in files_of(Path("tasks/own.yaml"))] == sorted([*files, *data])
    (tmp_path / "broken.yaml").write_text("a: [")
    assert files_of(Path("broken.yaml")) == [Path("broken.yaml")]


def test_its_own_tasks_are_found_where_its_index_finds_them() -> None:
    pytest.importorskip("lm_eval")
    import lm_eval.tasks

    folders = [Path(lm_eval.tasks.__file__).parent / name for name in ("arc", "lambada", "mmlu", "piqa", "winogrande")]
    # the index of all, 14,000 files, takes a minute
    manager = lm_eval.tasks.TaskManager(include_path=list(folders), include_defaults=False)
    assert unknown_names(manager.all_tasks, []) == []
    known = {name: entry.yaml_path.parent for name, entry in manager.task_index.items() if entry.kind.name == "TASK"}
    assert {"piqa", "arc_easy", "mmlu_anatomy", "winogrande", "lambada_openai"} <= known.keys()
    assert folders_of(list(known)) == list(dict.fromkeys(known.values()))
    for name in ("mmlu", "ai2_arc", "no_such_task"):  # a group, a tag, nothing
        assert folders_of(["piqa", name]) is None


def test_names_that_nothing_has_are_found_before_the_harness_is(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "mine.yml").write_text("task: mine\n")
    asked = ["hellaswag", "mmlu", "mmlu_*", "mine", "no_such_task", "own.yaml"]
    assert unknown_names(asked, [tmp_path]) == ["no_such_task"]
    tasks = f"harness_tasks={{tasks: [mine, no_such_task], include: [{tmp_path}, nowhere]}}"
    said = [str(p) for p in preflight(load_checked("yamls/pretrain/mpt-quickstart.yaml", [tasks]))]
    assert any("harness_tasks.tasks.1: no task no_such_task" in text for text in said)
    assert any("harness_tasks.include.1: there is no folder nowhere" in text for text in said)
    assert not any("tasks.0" in text for text in said)
