"""Which documents are held out."""

import hashlib

import pytest

from data_prep.errors import PrepError
from data_prep.holdout import checked_fraction, is_held_out, sha256_of_text, utf8_size

TEXTS = [f"document {number}" for number in range(20_000)]


def test_share_is_about_what_was_asked() -> None:
    for fraction in (0.01, 0.05, 0.5):
        share = sum(is_held_out(text, fraction) for text in TEXTS) / len(TEXTS)
        deviation = (fraction * (1 - fraction) / len(TEXTS)) ** 0.5
        assert abs(share - fraction) < 4 * deviation


def test_a_smaller_part_is_inside_a_larger_one() -> None:
    assert {text for text in TEXTS if is_held_out(text, 0.01)} < {text for text in TEXTS if is_held_out(text, 0.05)}


def test_the_rule_does_not_change() -> None:
    """Shards of different days must agree: these are SHA-256 of the text, as anyone can compute it."""
    assert [n for n in range(100) if is_held_out(f"document {n}", 0.05)] == [21, 22, 55, 59, 75, 80, 94]
    assert not any(is_held_out(text, 0.0) for text in TEXTS)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(PrepError, match="--holdout"):
        checked_fraction(fraction)


@pytest.mark.parametrize("length", [1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_long_texts_are_digested_and_measured_whole(length: int) -> None:
    text = "é" * (length - 1) + "a"
    assert sha256_of_text(text) == hashlib.sha256(text.encode()).digest()
    assert utf8_size(text) == len(text.encode())
