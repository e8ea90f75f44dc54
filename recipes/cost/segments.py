"""The processes of a run, and what they add up to: seconds, dollars, tokens.

A segment is one process of a run, from its start to its end or its death. Durations come from a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGEST = 1e30  # FLOPs of the largest runs are 1e26

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

    @property
    def knew_its_device(self) -> bool:
        """Whether it came as far as a device: before that, there is no GPU and no step."""
        return self.gpu is not None or self.tokens > 0


@dataclass(frozen=True)
class Totals:
    """What the processes of a run add up to; None means not known, never zero."""

    seconds: Mapping[str, float]  # billed, by phase
    lost_s: float  # of seconds["train"]: steps that were lost in a crash and done again
    device_seconds: Mapping[str, float]  # by part, as in `parts`: starts may have different numbers of devices
    usd: float | None
    usd_by_part: Mapping[str, float] | None  # each start at its own rate; None where usd is
    tokens: int  # that the model has learned from
    tokens_processed: int  # these and the ones repeated after restarts
    mfu: float | None  # of the processes whose peak is known
    device_kwh: float | None  # drawn by all devices, without the data centre's overhead

    @property
    def wall_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def device_hours(self) -> float:
        return sum(self.device_seconds.values()) / 3600

    @property
    def tokens_per_s(self) -> float | None:
        """All devices together, over training and data time."""
        active_s = self.seconds["train"] + self.seconds["data"]
        return self.tokens_processed / active_s if self.tokens_processed and active_s else None

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by phase, with `lost` taken out of `train`: they add up to wall_s."""
        return _parts(self.seconds, self.lost_s)

    @property
    def shares(self) -> dict[str, float]:
        """Of the billed time of all devices, by part; zeros before any was billed."""
        whole = sum(self.device_seconds.values())
        return {part: s / whole if whole else 0.0 for part, s in self.device_seconds.items()}

    @property
    def goodput(self) -> float | None:
        """The share of the billed time of all devices in which the model learned what it now knows."""
        return self.shares["train"] if self.wall_s else None

    @property
    def usd_per_million_tokens(self) -> float | None:
        return self.usd / self.tokens * 1e6 if self.usd is not None and self.tokens else None


def totals_of(segments: Iterable[Segment], tokens: int) -> Totals:
    """tokens: what the model has learned from.

    MFU = FLOPs / (seconds of training and data waiting * devices * peak), over the segments whose peak is known.
    """
    segments = list(segments)
    counted = [s for s in segments if s.peak_flops_per_s and s.flops]
    at_peak = sum((s.seconds["train"] + s.seconds["data"]) * s.devices * (s.peak_flops_per_s or 0) for s in counted)
    lost_s, usd, rates = lost_seconds(segments, tokens), usd_of(segments), _rate_by_segment(segments)
    parts = [_parts(s.seconds, lost) for s, lost in zip(segments, lost_s, strict=True)]
    return Totals(
        seconds={phase: sum(s.seconds[phase] for s in segments) for phase in PHASES},
        lost_s=sum(lost_s),
        device_seconds=_sum_by_part(parts, [s.devices for s in segments]),
        usd=usd,
        usd_by_part=None
        if usd is None
        else _sum_by_part(parts, [s.devices * (rates[s.id] or 0.0) / 3600 for s in segments]),
        tokens=tokens,
        tokens_processed=sum(s.tokens for s in segments),
        mfu=sum(s.flops for s in counted) / at_peak if at_peak else None,
        device_kwh=_device_kwh(segments),
    )


def _parts(seconds: Mapping[str, float], lost_s: float) -> dict[str, float]:
    """Seconds by phase, with `lost` taken out of `train`."""
    return {**seconds, "train": seconds["train"] - lost_s, "lost": lost_s}


def _sum_by_part(parts: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    pairs = list(zip(parts, weights, strict=True))
    return {part: sum(each[part] * weight for each, weight in pairs) for part in (*PHASES, "lost")}


def _device_kwh(segments: Iterable[Segment]) -> float | None:
    """None as soon as one process that trained does not know its own.

    One that died before it had a meter is left out: it had not come to its first step.
    """
    known = [s.device_kwh for s in segments if s.device_kwh is not None]
    unknown = [s for s in segments if s.device_kwh is None and s.tokens]
    return sum(known) if known and not unknown else None


def segment_from(record: Mapping[str, Any]) -> Segment:
    """A segment from its JSON form.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    return Segment(
        id=str(record["id"]),
        devices=int(_number("devices", record["devices"], least=1)),
        seconds={phase: _number(phase, record["seconds"].get(phase, 0.0)) for phase in PHASES},
        usd_per_device_hour=_number_or_none("usd_per_device_hour", record["usd_per_device_hour"]),
        peak_flops_per_s=_number_or_none("peak_flops_per_s", record["peak_flops_per_s"]),
        tokens=int(_number("tokens", record["tokens"])),
        flops=_number("flops", record["flops"]),
        tokens_from=int(_number("tokens_from", record.get("tokens_from", 0))),
        device_kwh=_number_or_none("device_kwh", record.get("device_kwh")),
        gpu=record.get("gpu"),
    )


def _number_or_none(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value)


def _number(name: str, value: Any, least: int = 0) -> float:
    """Of a line that a hand or a torn disk may have changed: with a negative or endless one there is no bill."""
    number = float(value)
    if not least <= number <= LARGEST:
        raise ValueError(f"{name}: got {value}, expected a number from {least} to {LARGEST:g}.")
    return number


def merge(sources: Iterable[Mapping[str, Segment]]) -> dict[str, Segment]:
    """The union by id; where two sources know a segment, the one that saw more of it wins."""
    merged: dict[str, Segment] = {}
    for source in sources:
        for key, segment in source.items():
            if key not in merged or segment.wall_s >= merged[key].wall_s:
                merged[key] = segment
    return merged


def usd_by_segment(segments: Iterable[Segment]) -> dict[str, float | None]:
    """Dollars of each by id, at the rate that it ran at; None where that is not known."""
    segments = list(segments)
    rates = _rate_by_segment(segments)
    return {s.id: None if (rate := rates[s.id]) is None else s.device_hours * rate for s in segments}


def _rate_by_segment(segments: Sequence[Segment]) -> dict[str, float | None]:
    """Dollars a device-hour of each by id.

    One that knew none has the last rate of the same kind of device, and one that died before it knew its device the
    last of any: a run does not go on for nothing because one start of it could not be priced.
    """
    rates = {s.gpu: s.usd_per_device_hour for s in segments if s.usd_per_device_hour is not None}
    last = next((s.usd_per_device_hour for s in reversed(segments) if s.usd_per_device_hour is not None), None)
    found: dict[str, float | None] = {}
    for segment in segments:
        rate = segment.usd_per_device_hour
        if rate is None:
            rate = rates.get(segment.gpu) if segment.knew_its_device else last
        found[segment.id] = rate
    return found


def usd_of(segments: Iterable[Segment], otherwise: float | None = None) -> float | None:
    """Dollars of all; None if those of one are not known.

    otherwise: a rate for these, where a limit has to be kept whatever is known.
    """
    segments = list(segments)
    each = usd_by_segment(segments)
    if otherwise is not None:
        each |= {s.id: s.device_hours * otherwise for s in segments if each[s.id] is None}
    return None if None in each.values() else sum(usd for usd in each.values() if usd is not None)


def lost_seconds(segments: Iterable[Segment], tokens: int) -> list[float]:
    """Of each segment, the training seconds whose steps a later process did again, or that no process has gone on from.

    A process that began after `tokens_from` tokens and trained on `tokens` more has lost those beyond the point where
    the next one began; `tokens` is where the run stands now. Its training time is lost in the same proportion. One that
    died in its first step has lost it all; the last may be in it still.
    """
    segments = list(segments)
    lost = []
    went_on_from = tokens  # the least of all starts behind: a later one may go back further than the next
    for i, segment in reversed(list(enumerate(segments))):
        if segment.tokens == 0:
            share = float(i < len(segments) - 1)
        else:
            repeated = max(0, segment.tokens_from + segment.tokens - went_on_from)
            share = min(1.0, repeated / segment.tokens)
            went_on_from = min(went_on_from, segment.tokens_from)
        lost.append(segment.seconds["train"] * share)
    return lost[::-1]
