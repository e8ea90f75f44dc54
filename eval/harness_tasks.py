"""Tasks of lm-evaluation-harness, by their names or from local YAML files, and what came of them as our results."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.harness_index import files_of, index_of
from eval.questions import ScoringError
from eval.results import uncertainty
from eval.tasks.rows import TaskError, read_rows

SEED, FEWSHOT_SEED = 0, 1234  # the harness's own
SUGGESTED = 5  # names, where one is unknown
TEMPLATES = 1000  # compiled prompt templates that are kept
# Metrics that are the mean of one number an example, in the order that the first of is shown.
MEANS = ("acc", "acc_norm", "exact_match", "em", "f1", "contains", "mcc")


def load_tasks(names: Sequence[str], include: Sequence[Path], num_fewshot: int | None) -> Any:
    """The harness's task dictionary. include: folders with YAML files of one's own.

    Raises TaskError: a name that nobody has, a file that is no task, data that is not on this machine.
    """
    for folder in include:
        if not folder.is_dir():
            raise TaskError(f"--include: there is no folder {folder}")
        _check_yaml(folder)
    manager = index_of(names, include)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for key, part in _load_one(manager, name).items():
            loaded[key].update(part)
    for task in loaded["tasks"].values():
        set_to = task.get_config("num_fewshot")
        if num_fewshot is not None and set_to != 0:  # a task that says 0 means it
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif set_to is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    for name, task in loaded["tasks"].items():
        _check_settings(name, task)
        for part in ("build_all_requests", "process_results"):
            setattr(task, part, _in_words(name, getattr(task, part)))
    return loaded


def evaluate(lm: Any, loaded: Any, limit: int | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries for results.json, groups included, and one record an example. Raises ScoringError."""
    from lm_eval.evaluator import evaluate as run

    with _seeded(), _templates_compiled_once():
        for name, task in loaded["tasks"].items():
            _check_examples(name, task, limit)
        with _run_in_words():
            found: Any = run(lm=lm, task_dict=loaded, limit=limit, log_samples=True)
    results, examples = [], []
    for name, scores in found["results"].items():
        samples = found["samples"].get(name)
        shots = found["n-shot"].get(name)
        label = f"{name}/{shots}-shot" if shots is not None else name
        if samples is None:
            if _numbers(scores):  # a group without a metric of its own has nothing to show but its tasks
                results.append(_group(label, scores))
            continue
        filters = list(dict.fromkeys(sample["filter"] for sample in samples))
        of_filter = [sample for sample in samples if sample["filter"] == filters[0]]
        results.append(_task(label, name, scores, of_filter, filters[0], getattr(lm, "truncated", {}).get(name, 0)))
        if getattr(loaded["tasks"][name].config, "process_results", None) is not None:
            results[-1]["chance"] = None  # its numbers may be anything, such as the probability of what is right
        metric = results[-1]["metric"].partition(",")[0]
        judged = results[-1]["low"] is not None  # else no example is right or wrong by itself
        examples += [_example(label, metric, sample, judged, loaded["tasks"][name]) for sample in of_filter]
    return results, examples


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The harness's seeds, and afterwards the numbers that a training run would have drawn without it."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEED)
        np.random.seed(FEWSHOT_SEED)
        torch.manual_seed(FEWSHOT_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


@contextlib.contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """The harness compiles a task's prompt template anew for every example: with five shots, most of its own time."""
    from lm_eval.utils import env

    env.from_string = functools.lru_cache(TEMPLATES)(env.from_string)
    try:
        yield
    finally:
        del env.from_string  # the class's own again


def prompts(loaded: Any) -> list[tuple[str, str, str]]:
    """(task, exact prompt, what is asked for) of the first example of each task."""
    shown = []
    for name, task in loaded["tasks"].items():
        _check_examples(name, task, limit=1)
        task.build_all_requests(limit=1, rank=0, world_size=1)
        first = task.instances[0].args
        shown.append((name, str(first[0]), str(first[1]) if len(first) > 1 else ""))
    return shown


def _check_yaml(folder: Path) -> None:
    """The harness leaves out files that it cannot read, and then does not know their tasks. Raises TaskError."""
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in TaskIndex._iter_yaml_files(folder):
        try:
            task = load_yaml(path, resolve_func=False).get("task", "")
            if not isinstance(task, (str, list)):
                raise ValueError(f"task: got {task!r}, expected a name")
        except Exception as error:  # of YAML, of the files that it includes
            raise TaskError(f"--include: {path} cannot be read: {_words(error)}") from None


def _check_settings(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(f"task {name}: it runs code that the model writes, which is not done here; leave it out")
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {name}: it shows pictures or sounds, and models here read text only; leave it out")
    shots = task.get_config("num_fewshot")
    if type(shots) is not int or shots < 0:
        raise TaskError(f"task {name}: num_fewshot: got {shots!r}, expected a whole number of at least 0")
    pool, split = getattr(getattr(task, "sampler", None), "df", None), task.get_config("fewshot_split")
    asked = task.get_config("test_split") or task.get_config("validation_split")
    if pool is not None and shots > len(pool) - (split == asked):  # the question itself is left out
        text = f"{shots} examples before each question are not there: its fewshot split {split} has {len(pool)}"
        raise TaskError(f"task {name}: num_fewshot: {text}")
    if (
        task.OUTPUT_TYPE == "multiple_choice"
        and task.get_config("doc_to_choice") is None
        and not task.get_config("use_prompt")
    ):
        raise TaskError(f"task {name}: doc_to_choice is missing, which output_type: multiple_choice needs")
    if not task.aggregation():
        raise TaskError(f"task {name}: metric_list: names no metric, so that nothing would be scored")


def _check_examples(name: str, task: Any, limit: int | None) -> None:
    """Raises ScoringError for an example without a right answer, which the harness would score as wrong."""
    if callable(task.get_config("process_results")) or not hasattr(task, "doc_to_choice"):
        return  # judged by code of its own
    for index, doc in task.doc_iterator(rank=0, limit=limit, world_size=1):
        with _named(f"{name}, example {index + 1}"):
            text, target = task.doc_to_text(doc), task.doc_to_target(doc)
            if text is None or target is None:
                raise ScoringError(f"doc_to_{'text' if text is None else 'target'}: got nothing, expected a text")
            if task.OUTPUT_TYPE == "loglikelihood" and not isinstance(target, str):
                raise ScoringError(f"doc_to_target: got {target!r}, expected a text")
            if task.OUTPUT_TYPE == "multiple_choice":
                _check_choice(task.doc_to_choice(doc), text if task.multiple_input else target)


def _check_choice(choices: Any, right: Any) -> None:
    if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(c, str) for c in choices):
        raise ScoringError(f"doc_to_choice: got {choices!r}, expected a list of texts")
    for gold in right if isinstance(right, list) and right else [right]:
        if not (0 <= gold < len(choices) if isinstance(gold, (int, np.integer)) else gold in choices):
            raise ScoringError(
                f"the right answer: got {gold!r}, expected a choice or its index, 0 to {len(choices) - 1}"
            )


def _in_words(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """What a task's settings and rows make of the harness's code is said with the task's name."""

    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        with _named(f"task {name}"):
            return function(*args, **more)

    return call


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ScoringError(f"{where}: {_words(error)}") from error


@contextlib.contextmanager
def _run_in_words() -> Iterator[None]:
    """What the harness itself raises, as a metric may for an answer, costs the scores and not a training run."""
    try:
        yield
    except (ScoringError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ScoringError(f"lm-evaluation-harness: {_words(error)}") from error


def _words(error: BaseException) -> str:
    """In one line; what the harness and datasets raise often says nothing without its kind."""
    words = " ".join(str(error).split())[:300]
    known = isinstance(error, (ScoringError, TaskError))
    return words if known and words else f"{type(error).__name__}: {words}" if words else type(error).__name__


def _load_one(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except KeyError as error:
        if name in manager.all_tasks or Path(name).is_file():
            words = " ".join(str(error.args[0]).split())
            words = words if " " in words else f"it names {words!r}, which there is not"
            raise TaskError(f"task {name} cannot be read: {words}") from None
        import difflib

        close = difflib.get_close_matches(name, manager.all_tasks, SUGGESTED)
        guess = f"; did you mean {', '.join(close)}?" if close else "."
        text = "got a name that is neither a task, group or tag of lm-evaluation-harness nor a YAML file"
        raise TaskError(
            f"task {name}: {text}{guess} Your own tasks are found with --include FOLDER (harness_tasks.include)"
        ) from None
    except Exception as error:  # whatever reading a data set raises
        raise TaskError(_unreachable(manager, name, error)) from None


def _unreachable(manager: Any, name: str, error: Exception) -> str:
    words = " ".join(f"{error} {error.__cause__ or ''}".split()) or type(error).__name__
    missing = [path for path in sorted(_datasets(manager, name)) if path not in ("json", "csv", "parquet", "text")]
    if not missing:
        try:  # datasets does not say which line of which file
            for file in files_of(_yaml_of(manager, name) or Path()):
                if file.suffix == ".jsonl":
                    read_rows(file)
        except TaskError as better:
            words = str(better)
        return f"task {name} cannot be loaded: {words}"
    commands = " and ".join(f"`hf download --repo-type dataset {path}`" for path in missing)
    return (
        f"task {name}: its data ({', '.join(missing)}) is not on this machine and was not fetched: {words[:200]}. "
        f"Where the Hugging Face hub can be reached run {commands} and copy the cache (HF_HOME, by default "
        "~/.cache/huggingface) here, or write a task YAML over a local JSONL file and name its folder with --include"
    )


def _datasets(manager: Any, name: str) -> set[str]:
    """The data sets on the hub that a task, or the tasks of a group, read."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry, path = manager.task_index.get(name), _yaml_of(manager, name)
    if path is None:
        return set()
    try:
        config = load_yaml(path, resolve_func=False)
    except Exception:  # only for the wording of another error
        return set()
    found = {str(config["dataset_path"])} if config.get("dataset_path") else set()
    inside = config.get("task")
    for child in inside if isinstance(inside, list) else []:
        child = child.get("task") if isinstance(child, Mapping) else child
        if isinstance(child, str) and child != name:
            found |= _datasets(manager, child)
    for tagged in getattr(entry, "tags", None) or ():
        if tagged != name and tagged in manager.task_index and not found:
            found |= _datasets(manager, tagged)
    return found


def _yaml_of(manager: Any, name: str) -> Path | None:
    return getattr(manager.task_index.get(name), "yaml_path", None) or (Path(name) if Path(name).is_file() else None)


def _group(label: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    metric = _first_metric(scores)
    numbers = _numbers(scores)
    return {
        "label": label,
        "metric": metric,
        "score": numbers.get(metric),
        **uncertainty(None),
        "stderr": _stderr(scores, metric),
        "chance": None,
        "examples": int(scores.get("sample_len") or 0),
        "metrics": numbers,
    }


def _task(
    label: str, name: str, scores: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], chosen: str, truncated: int
) -> dict[str, Any]:
    metric = _first_metric(scores, chosen)
    values = [sample.get(metric.partition(",")[0]) for sample in samples]
    outcomes = [float(v) for v in values if isinstance(v, (int, float))]
    is_mean = len(outcomes) == len(samples) and bool(samples)
    numbers = _numbers(scores)
    if is_mean:
        is_mean = abs(sum(outcomes) / len(outcomes) - numbers[metric]) < 1e-9
    spread = uncertainty(outcomes if is_mean else None)
    content = [[s["doc_hash"], s["prompt_hash"], s["target_hash"], [a[1:] for a in s["arguments"]]] for s in samples]
    digest = hashlib.sha256(json.dumps([name, content], sort_keys=True, default=str).encode()).hexdigest()
    return {
        "label": label,
        "metric": metric,
        "score": numbers[metric],
        **spread,
        "stderr": _stderr(scores, metric) if spread["stderr"] is None else spread["stderr"],
        "chance": _chance(samples, metric),
        "examples": len(samples),
        "truncated": truncated,
        "digest": digest,
        "metrics": numbers,
    }


def _example(label: str, metric: str, sample: Mapping[str, Any], judged: bool, task: Any) -> dict[str, Any]:
    resps = sample["filtered_resps"]
    scored = all(isinstance(r, (list, tuple)) and len(r) == 2 for r in resps)
    logprobs = [float(r[0]) for r in resps] if scored else []
    count = _choices(sample)
    value = sample.get(metric)
    return {
        "task": label,
        "index": sample["doc_id"],
        "prompt": str(sample["arguments"][0][0]),
        "correct": float(value) if judged and isinstance(value, (int, float)) else None,
        "chosen": _chosen(metric, logprobs, count, sample, task) if len(logprobs) > 1 else resps[0],
        "gold": sample["target"],
        "logprobs": logprobs[:count],
    }


def _chosen(metric: str, logprobs: Sequence[float], count: int, sample: Mapping[str, Any], task: Any) -> int:
    """Which choice the shown metric takes, by the harness's own rules."""
    values = np.array(logprobs[:count])
    if metric == "acc_mutual_info":
        values = values - np.array(logprobs[count:])
    elif metric in ("acc_norm", "acc_bytes"):
        choices = task.doc_to_choice(sample["doc"])
        if len(choices) == count:
            values = values / [len(c) if metric == "acc_norm" else len(c.encode()) for c in choices]
    return int(values.argmax())


def _choices(sample: Mapping[str, Any]) -> int:
    """How many requests are answers to choose from: of mutual information, half ask for them without the question."""
    return len(sample["arguments"]) // (2 if "acc_mutual_info" in sample else 1)


def _chance(samples: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Of choosing blindly, where each example has several requests with answers to choose from."""
    counts = [_choices(sample) for sample in samples]
    if not metric.startswith("acc") or min(counts, default=0) < 2:
        return None
    right = [len(set(map(str, s["target"]))) if isinstance(s["target"], (list, tuple)) else 1 for s in samples]
    return sum(r / count for r, count in zip(right, counts, strict=True)) / len(counts)


def _first_metric(scores: Mapping[str, Any], chosen: str | None = None) -> str:
    names = [n for n in _numbers(scores) if chosen is None or n.endswith(f",{chosen}")] or list(_numbers(scores))
    ranked: Iterable[str] = (n for wanted in MEANS for n in names if n.partition(",")[0] == wanted)
    return next(iter(ranked), names[0] if names else "")


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none`: 0.5, without standard errors and counts."""
    return {
        name: float(value)
        for name, value in scores.items()
        if "," in name and "_stderr," not in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _stderr(scores: Mapping[str, Any], metric: str) -> float | None:
    name, _, chosen = metric.partition(",")
    value = scores.get(f"{name}_stderr,{chosen}")
    return float(value) if isinstance(value, (int, float)) else None
