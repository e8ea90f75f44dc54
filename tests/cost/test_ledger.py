"""The bill across restarts: clocks that step back, torn lines, merging what two sources know."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.cost.ledger import EARLIER, Ledger, first_start_unix_s
from recipes.cost.phase_clock import PhaseClock
from recipes.cost.run_cost import summarize
from recipes.cost.segments import PHASES, Segment, lost_seconds, merge, usd_of


def segment(id: str, train_s: float, **kwargs: object) -> Segment:
    base = Segment(id=id, devices=2, seconds={**dict.fromkeys(PHASES, 0.0), "train": train_s}, usd_per_device_hour=3.6)
    return replace(base, **kwargs)  # type: ignore[arg-type]


def test_phases_add_up_even_when_the_clock_steps_back() -> None:
    times = iter([0.0, 1.0, 3.0, 2.0, 5.0, 5.0])  # 3 → 2 steps back
    clock = PhaseClock("startup", already_s=10, now=lambda: next(times))
    clock.switch("data")
    clock.switch("train")
    clock.switch("evaluation")
    assert clock.seconds() == {
        "startup": 11.0,
        "compile": 0.0,
        "data": 2.0,
        "train": 0.0,
        "evaluation": 3.0,
        "checkpoint": 0.0,
        "other": 0.0,
    }


def test_last_state_of_every_segment_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    assert ledger.read() == {}
    ledger.append("start", segment("a", 0))
    ledger.append("beat", segment("a", 50, tokens=7))
    ledger.append("start", segment("b", 0))
    ledger.append("end", segment("b", 20))
    assert ledger.read() == {"a": segment("a", 50, tokens=7), "b": segment("b", 20)}


def test_what_a_checkpoint_brought_from_elsewhere_comes_first(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("end", segment("a", 100, tokens=1000))
    ledger.append("start", segment("c", 0))
    ledger.append(EARLIER, segment("b", 100, tokens=1000, tokens_from=1000), before="c")  # from here to there and back
    ledger.append("end", segment("c", 60, tokens=600, tokens_from=1800))
    assert list(ledger.read()) == ["a", "b", "c"]
    assert sum(lost_seconds(ledger.read().values(), 2400)) == pytest.approx(20)


@pytest.mark.parametrize(
    "rubbish",
    [
        '{"event": "beat", "id"',
        "\x00\x00\x00",
        "[1]",
        "null",
        "[" * 200_000,
        '{"id": "a", "devices": 1, "tokens": 0, "flops": 0, "seconds": {"train": NaN}}',
        '{"id": "a", "devices": 1, "tokens": 0, "flops": 0, "seconds": {"train": 1e308}}',
        '{"id": "a", "devices": -8, "tokens": 0, "flops": 0, "seconds": {"train": 9}}',
        '{"id": "a", "devices": 1, "tokens": -9, "flops": 0, "seconds": {"train": 9}}',
        '{"id": "a", "devices": 1, "tokens": 0, "flops": 0, "usd_per_device_hour": -5, "seconds": {"train": 9}}',
        '{"id": "a", "devices": 1, "tokens": 0, "flops": Infinity, "seconds": {"train": 9}}',
    ],
)
def test_rubbish_is_left_out_and_does_not_eat_the_next_line(tmp_path: Path, rubbish: str) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("start", segment("a", 5))
    with ledger.path.open("a") as file:
        file.write(rubbish)
    ledger.append("start", segment("b", 7))
    assert ledger.read() == {"a": segment("a", 5), "b": segment("b", 7)}


def test_a_segment_known_twice_is_billed_once() -> None:
    old, new = segment("a", 5), segment("a", 9)
    assert merge([{"a": new}, {"a": old}, {"b": old}]) == {"a": new, "b": old}


def test_dollars_at_each_segments_own_rate() -> None:
    cheap, dear = segment("a", 1000, gpu="l4"), segment("b", 1000, gpu="h200", usd_per_device_hour=36)
    assert usd_of([cheap, dear]) == pytest.approx(2 + 20)
    assert usd_of([]) == 0


def test_a_rate_is_borrowed_from_the_same_device_alone() -> None:
    cheap, dear = segment("a", 1000, gpu="l4"), segment("b", 1000, gpu="h200", usd_per_device_hour=36)
    unknown = segment("c", 1000, gpu="h200", usd_per_device_hour=None)
    assert usd_of([unknown, cheap, dear]) == pytest.approx(20 + 2 + 20)
    assert usd_of([unknown, cheap]) is None
    assert usd_of([unknown, cheap], otherwise=7.2) == pytest.approx(4 + 2)  # where a limit has to be kept
    died_early = replace(unknown, gpu=None)
    assert usd_of([died_early, dear, cheap]) == pytest.approx(2 + 20 + 2)
    on_a_cpu = replace(died_early, tokens=5)
    assert usd_of([on_a_cpu, dear, cheap]) is None


def test_summary_over_segments() -> None:
    a = segment("a", 100, tokens=1000, flops=2e15, peak_flops_per_s=1e14)
    b = segment("b", 100, tokens=1000, flops=1e15)  # on a device whose peak is not known
    cost = summarize([a, b], b, tokens=1500, rate_source="stated", mfu_basis="…")
    assert cost.tokens_per_s == 10
    assert cost.mfu == pytest.approx(2e15 / (100 * 2 * 1e14))
    assert cost.usd_per_million_tokens == pytest.approx(0.4 / 1500 * 1e6)
    assert (cost.starts, cost.device_hours) == (2, pytest.approx(400 / 3600))


def test_lost_steps_are_those_a_later_process_did_again() -> None:
    died = segment("a", 100, tokens=1000)
    unborn = segment("b", 0)  # crashed before its first step
    in_it = segment("d", 30)  # in its first step
    assert sum(lost_seconds([in_it, in_it], 0)) == 30  # the last may be in it still
    assert sum(lost_seconds([in_it, segment("c", 60, tokens=600)], 600)) == 30
    went_on = segment("c", 60, tokens=600, tokens_from=800)
    assert sum(lost_seconds([died, unborn, went_on], 1400)) == pytest.approx(20)
    assert sum(lost_seconds([died], 1000)) == 0
    assert sum(lost_seconds([died], 0)) == 100  # nothing was saved
    assert sum(lost_seconds([], 0)) == 0
    far_back = segment("e", 80, tokens=80, tokens_from=20)  # further than the start before it
    between = segment("c", 20, tokens=20, tokens_from=100)
    assert sum(lost_seconds([segment("a", 100, tokens=100), between, far_back], 100)) == pytest.approx(100)
    assert lost_seconds([died, unborn, went_on], 1400) == pytest.approx([20, 0, 0])
    cost = summarize([died, unborn, went_on], went_on, 1400, "stated", "…")
    assert cost.lost_s == pytest.approx(20)
    assert cost.goodput == pytest.approx(140 / 160)


def test_a_last_start_without_a_rate_is_billed_as_the_one_before() -> None:
    first, last = segment("a", 100, tokens=100), segment("b", 100, tokens=100, tokens_from=100)
    first, last = replace(first, usd_per_device_hour=3.6), replace(last, usd_per_device_hour=None)
    assert summarize([first, last], last, 200, "unknown", "…").usd == pytest.approx(0.1 * 2 * first.devices)


def test_when_a_run_began(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert first_start_unix_s(path) is None
    Ledger(path).append("start", segment("a", 0))
    assert first_start_unix_s(path) == pytest.approx(time.time(), abs=5)


def test_what_a_checkpoint_goes_with_is_on_the_disk_and_a_beat_need_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for event, count in (("start", 1), ("beat", 1), ("checkpoint", 2), ("end", 3)):
        ledger.append(event, segment("a", 1))
        assert len(synced) == count
