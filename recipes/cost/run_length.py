"""Lengths of a run and its parts as recipes write them: `100ba`, `1ep`, `2e9tok`, `0.1dur`; a bare number is epochs."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_WRITTEN = re.compile(r"(\d*\.?\d+(?:e\d+)?)(ep|ba|sp|tok|iter|sec|dur)")


class Duration(NamedTuple):
    """`unit`: ep (epochs), ba (global batches), sp (items of a batch), tok, sec, iter, dur (parts of the whole run)."""

    amount: float
    unit: str


def read_duration(value: Any) -> Duration | None:
    """The duration that a recipe's value says; None where it says none."""
    if isinstance(value, bool):
        return None
    text = f"{value}ep" if isinstance(value, int) else str(value).replace("_", "").strip().lower()
    match = _WRITTEN.fullmatch(text)
    return Duration(float(match[1]), match[2]) if match else None
