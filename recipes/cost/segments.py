"""The processes of a run, and what they add up to: seconds, dollars, tokens.

A segment is one process of a run, from its start to its end or its death. Durations come from a monotonic clock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# compile: what the first step of a process took beyond its second, which is mostly compilation and warm-up
PHASES = ("startup", "compile", "data", "train", "evaluation", "checkpoint", "other")


@dataclass(frozen=True)
class Segment:
    """What one process has used so far. Tokens and FLOPs are those of all devices together."""

    id: str
    devices: int
    seconds: Mapping[str, float]  # by phase
    usd_per_device_hour: float | None = None
    peak_flops_per_s: float | None = None  # of one device at the run's precision
    tokens: int = 0  # processed, also those that a restart will repeat
    flops: float = 0.0  # as the model's flops_per_batch counts them
    tokens_from: int = 0  # that the model had learned from when this process began to train
    device_kwh: float | None = None  # drawn by all devices, without the data centre's overhead
    gpu: str | None = None  # row of the hardware table that the devices are

    @property
    def wall_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def device_hours(self) -> float:
        return self.wall_s * self.devices / 3600


@dataclass(frozen=True)
class Totals:
    """What the processes of a run add up to; None means not known, never zero."""

    seconds: Mapping[str, float]  # billed, by phase
    lost_s: float  # of seconds["train"]: steps that were lost in a crash and done again
    device_hours: float
    usd: float | None
    tokens: int  # that the model has learned from
    tokens_processed: int  # these and the ones repeated after restarts

    @property
    def wall_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by phase, with `lost` taken out of `train`: they add up to wall_s."""
        return {**self.seconds, "train": self.seconds["train"] - self.lost_s, "lost": self.lost_s}

    @property
    def goodput(self) -> float | None:
        """The share of billed time in which the model learned what it now knows."""
        return self.parts["train"] / self.wall_s if self.wall_s else None

    @property
    def usd_per_million_tokens(self) -> float | None:
        return self.usd / self.tokens * 1e6 if self.usd is not None and self.tokens else None


def totals_of(segments: Iterable[Segment], tokens: int) -> Totals:
    """tokens: what the model has learned from. A process that knew no rate is billed at the last one that is known."""
    segments = list(segments)
    return Totals(
        seconds={phase: sum(s.seconds[phase] for s in segments) for phase in PHASES},
        lost_s=lost_seconds(segments, tokens),
        device_hours=sum(s.device_hours for s in segments),
        usd=usd_of(segments, last_rate(segments)),
        tokens=tokens,
        tokens_processed=sum(s.tokens for s in segments),
    )


def segment_from(record: Mapping[str, Any]) -> Segment:
    """A segment from its JSON form.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    seconds = {phase: float(record["seconds"].get(phase, 0.0)) for phase in PHASES}
    if not all(math.isfinite(s) and s >= 0 for s in seconds.values()):
        raise ValueError(f"seconds: got {seconds}, expected finite numbers of 0 or more.")
    rate, peak = record["usd_per_device_hour"], record["peak_flops_per_s"]
    return Segment(
        id=str(record["id"]),
        devices=int(record["devices"]),
        seconds=seconds,
        usd_per_device_hour=_float_or_none(rate),
        peak_flops_per_s=_float_or_none(peak),
        tokens=int(record["tokens"]),
        flops=float(record["flops"]),
        tokens_from=int(record.get("tokens_from", 0)),
        device_kwh=_float_or_none(record.get("device_kwh")),
        gpu=record.get("gpu"),
    )


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def merge(sources: Iterable[Mapping[str, Segment]]) -> dict[str, Segment]:
    """The union by id; where two sources know a segment, the one that saw more of it wins."""
    merged: dict[str, Segment] = {}
    for source in sources:
        for key, segment in source.items():
            if key not in merged or segment.wall_s >= merged[key].wall_s:
                merged[key] = segment
    return merged


def usd_of(segments: Iterable[Segment], rate: float | None) -> float | None:
    """Dollars, each segment at the rate it ran at, or at `rate` where it had none; None if one stays without."""
    total = 0.0
    for segment in segments:
        usd_per_device_hour = rate if segment.usd_per_device_hour is None else segment.usd_per_device_hour
        if usd_per_device_hour is None:
            return None
        total += segment.device_hours * usd_per_device_hour
    return total


def last_rate(segments: Iterable[Segment]) -> float | None:
    """Dollars a device-hour of the last process that knew them: for those that did not."""
    known = [s.usd_per_device_hour for s in segments if s.usd_per_device_hour is not None]
    return known[-1] if known else None


def lost_seconds(segments: Iterable[Segment], tokens: int) -> float:
    """Training seconds whose steps a later process did again, or that no process has gone on from.

    A process that began after `tokens_from` tokens and trained on `tokens` more has lost those beyond the point where
    the next one began; `tokens` is where the run stands now. Its training time is lost in the same proportion. One that
    died in its first step has lost it all; the last may be in it still.
    """
    segments = list(segments)
    lost = sum(s.seconds["train"] for s in segments[:-1] if s.tokens == 0)
    trained = [s for s in segments if s.tokens > 0]
    if not trained:
        return lost
    starts = [s.tokens_from for s in trained[1:]] + [tokens]
    went_on_from = list(itertools.accumulate(reversed(starts), min))[
        ::-1
    ]  # a later one may go back further than the next
    for segment, start in zip(trained, went_on_from, strict=True):
        repeated = max(0, segment.tokens_from + segment.tokens - start)
        lost += segment.seconds["train"] * min(1.0, repeated / segment.tokens)
    return lost
