"""Numbers as people read them."""

from __future__ import annotations

import pytest

from recipes.cost.figures import usd


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (13_449.6, "$13,450"),
        (70_852.0, "$70,852"),
        (1e9, "$1,000,000,000"),
        (999.996, "$1,000"),
        (500.0, "$500"),
        (16.2124, "$16.21"),
        (0.99996, "$1"),
        (0.02312, "$0.0231"),
        (0.0000479, "$0.0000479"),
        (0.0, "$0"),
    ],
)
def test_dollars_have_no_exponent(dollars: float, text: str) -> None:
    assert usd(dollars) == text
