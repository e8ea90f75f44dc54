"""Lengths of wall-clock time as people write them: 90min, 36h, 10d, 2w."""

from __future__ import annotations

import re

HOURS_OF_UNIT = {"min": 1 / 60, "h": 1.0, "d": 24.0, "w": 168.0}


def hours_of(text: str | int | float, key: str = "deadline") -> float:
    """Hours of a length such as `36h` or `10d`; a bare number is hours.

    Raises:
        ValueError: no number with a unit, or nothing above 0.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(min|h|d|w)?\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{key}: got {text!r}, expected a length above 0 with a unit: 90min, 36h, 10d or 2w.")
    return float(match[1]) * HOURS_OF_UNIT[match[2] or "h"]


def in_words(seconds: float) -> str:
    """`45 s`, `12 min 5 s`, `3 h 20 min`, `9 d 4 h`."""
    whole = round(max(0.0, seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
