"""A task's score as text, the same in the table of an evaluation, in reports and on a model's card. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_SHARES = (
    "perplexity",
    "bits_per_byte",
)  # in the names of metrics whose numbers may lie between 0 and 1 all the same


def is_share(task: Mapping[str, Any]) -> bool:
    """Whether a task's score, an entry of results.json, is a share of something."""
    return 0 <= task["score"] <= 1 and not any(name in str(task.get("metric")) for name in NO_SHARES)


def number(task: Mapping[str, Any], value: float) -> str:
    """A number of a task's: its score, its interval's ends."""
    return f"{value:.1%}" if is_share(task) else f"{value:,.4g}"


def interval(task: Mapping[str, Any]) -> str:
    """low – high; Wilson's is no score ± half of it."""
    if task.get("low") is None or task.get("high") is None:
        return ""
    return f"{number(task, task['low'])} – {number(task, task['high'])}"


def score_with_interval(task: Mapping[str, Any]) -> str:
    score, ends, half = number(task, task["score"]), interval(task), task.get("interval_95")
    if not ends and half is not None:  # of results that have no more
        return f"{score} ± {number(task, half)}"
    return f"{score} ({ends})" if ends else score
