"""Tasks of lm-evaluation-harness, asked of a model, and what came of them as our results."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from eval.harness_chat import PLAIN, Asking
from eval.harness_tasks import FEWSHOT_SEED, check_examples, in_one_line
from eval.progress import harness_bars_on_terminals_alone
from eval.questions import ScoringError
from eval.results import task_entry
from eval.scoring import own_gpu

SEED = 0  # the harness's own
TEMPLATES = 1000  # compiled prompt templates that are kept
# Metrics that are the mean of one number an example, in the order that the first of is shown.
MEANS = ("acc", "acc_norm", "exact_match", "em", "f1", "contains", "mcc")


def evaluate(
    lm: Any, loaded: Any, limit: int | None = None, asking: Asking = PLAIN
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries for results.json, groups included, and one record an example. Raises ScoringError."""
    from lm_eval.evaluator import evaluate as run

    with _seeded(), _templates_compiled_once(), harness_bars_on_terminals_alone():
        for name, task in loaded["tasks"].items():
            check_examples(name, task, limit)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)  # the same shots each time that a training run asks
        with _run_in_words():
            found: Any = run(lm=lm, task_dict=loaded, limit=limit, log_samples=True, **asking.arguments())
    results, examples = [], []
    for name, scores in found["results"].items():
        samples = found["samples"].get(name)
        shots = found["n-shot"].get(name)
        label = _label(name, shots, asking)
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


def examples_of(loaded: Any, asking: Asking) -> dict[str, int]:
    """How many examples each task has, by the label that its score gets."""
    found = {}
    for name, task in loaded["tasks"].items():
        found[_label(name, task.get_config("num_fewshot"), asking)] = len(task.eval_docs)
    return found


def _label(name: str, shots: int | None, asking: Asking) -> str:
    return (f"{name}/{shots}-shot" if shots is not None else name) + asking.suffix


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The harness's seeds, and afterwards the numbers that a training run would have drawn without it."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(own_gpu()):
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


@contextlib.contextmanager
def _run_in_words() -> Iterator[None]:
    """What the harness itself raises, as a metric may for an answer, costs the scores and not a training run."""
    try:
        yield
    except (ScoringError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ScoringError(f"lm-evaluation-harness: {in_one_line(error)}") from error


def _group(label: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    metric, numbers = _first_metric(scores), _numbers(scores)
    found = task_entry(
        label, metric, numbers.get(metric), None, None, int(scores.get("sample_len") or 0), metrics=numbers
    )
    return {**found, "stderr": _stderr(scores, metric)}


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
    content = [[s["doc_hash"], s["prompt_hash"], s["target_hash"], [a[1:] for a in s["arguments"]]] for s in samples]
    digest = hashlib.sha256(json.dumps([name, content], sort_keys=True, default=str).encode()).hexdigest()
    chance = _chance(samples, metric)
    more = {"truncated": truncated, "digest": digest, "metrics": numbers}
    found = task_entry(label, metric, numbers[metric], outcomes if is_mean else None, chance, len(samples), **more)
    return found if found["stderr"] is not None else {**found, "stderr": _stderr(scores, metric)}


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
