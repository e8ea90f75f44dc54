"""Numbers as people read them: no more digits than are known, and a letter for millions."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three digits, and all before the point: `26,912`, `100`, `0.0231`."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def usd(value: float) -> str:
    """Dollars, never with an exponent: `$13,450`, `$16.21`, `$500`, `$0.0231`, `$0.000048`."""
    if abs(value) >= 999.995:
        return f"${value:,.0f}"
    if abs(value) >= 0.9995 or value == 0:
        return f"${value:.2f}".removesuffix(".00")
    digits = min(20, 2 - math.floor(math.log10(abs(value))))  # three of them count
    return f"${value:.{digits}f}".rstrip("0").rstrip(".")


def short(value: float, digits: int = 3) -> str:
    """`1.5 M`, `26 B`, `999`, `0.02`."""
    for size, letter, least in ((1e12, "T", 1e12), (1e9, "B", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if abs(value) >= least * (1 - 0.5 * 10.0**-digits):
            return f"{value / size:.{digits}g} {letter}"
    return f"{value:.{max(4, digits)}g}"
