"""The bill of a run across its restarts: segments of billed time, and the append-only file that keeps them.

A segment is one process of a run, from its start to its end or its death. The file has one JSON object a line; the
last line of a segment that can be read holds its totals so far, so a process killed at any moment has been billed up
to its last heartbeat or checkpoint. Durations come from a monotonic clock; wall-clock times in the file are for people
only.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# compile: what the first step of a process took beyond its second, which is mostly compilation and warm-up
EARLIER = "earlier"  # the event of a line about a process whose ledger is not here
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
class RunCost:
    """A run's bill and speed over all its segments; None means not known, never zero."""

    wall_s: float
    startup_s: float
    compile_s: float
    data_s: float
    train_s: float
    evaluation_s: float
    checkpoint_s: float
    other_s: float
    lost_s: float  # of train_s: steps that were lost in a crash and done again
    goodput: float | None  # (train_s - lost_s) / wall_s
    starts: int  # processes so far, one more than the restarts
    devices: int  # of the current process
    device_hours: float
    usd: float | None
    usd_per_device_hour: float | None
    rate_source: str
    tokens: int  # that the model has learned from
    tokens_processed: int  # these and the ones repeated after restarts
    tokens_per_s: float | None  # all devices together, over training and data time
    usd_per_million_tokens: float | None
    mfu: float | None
    mfu_basis: str
    kwh: float | None = None  # at the meter of the data centre
    kg_co2e: float | None = None
    energy_basis: str = "not known"
    usd_projected_total: float | None = None
    hours_left: float | None = None


class PhaseClock:
    """Splits wall time into phases. Every second since the start lies in exactly one of them."""

    def __init__(self, phase: str, already_s: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._phase = phase
        self._since = now()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._seconds[phase] += already_s

    @property
    def phase(self) -> str:
        return self._phase

    def switch(self, phase: str) -> None:
        """Ends the current phase and starts another."""
        moment = self._now()
        # A clock that steps back (a virtual machine that moved) must not take time off the bill.
        self._seconds[self._phase] += max(0.0, moment - self._since)
        self._phase, self._since = phase, moment

    def move(self, source: str, target: str, seconds: float) -> None:
        """Counts time of one phase as another's."""
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, the running one included."""
        self.switch(self._phase)
        return dict(self._seconds)


class Ledger:
    """The append-only file. Lines that cannot be read, such as one torn by a kill, are left out."""

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise ValueError(f"ledger: got {str(path)!r}, expected a path on a local or mounted disk.")
        self.path = Path(path)

    def read(self) -> dict[str, Segment]:
        """Each segment's last readable state, by id; empty when there is no file yet."""
        records, unreadable = read_records(self.path)
        if unreadable:
            log.warning("%s: %d unreadable lines left out of the bill (torn by a kill?).", self.path, unreadable)
        return segments_of(records)

    def append(self, event: str, segment: Segment, **notes: Any) -> None:
        """Adds a line in one write, so that only a death in the middle of it can tear it."""
        record = {"event": event, "unix_s": round(time.time(), 3), **asdict(segment), **notes}
        record["seconds"] = {phase: round(s, 3) for phase, s in segment.seconds.items()}
        if event == "start":
            self.path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(record) + "\n").encode()
        with self.path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last process died in the middle of a line: leave it torn
                    line = b"\n" + line
            file.write(line)
            file.flush()
            if event != "beat":
                os.fsync(file.fileno())


def first_start_unix_s(path: str | Path) -> float | None:
    """When the run of a ledger began by the clock of its machine; None when no line says so."""
    starts = (record for record in _records(Path(path)) if record and record.get("event") == "start")
    return next((float(record["unix_s"]) for record in starts if isinstance(record.get("unix_s"), (int, float))), None)


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The file's lines as written, and how many could not be read. No file, no lines."""
    found = list(_records(path))
    records = [record for record in found if record is not None]
    return records, len(found) - len(records)


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Line by line, of a run of weeks hundreds of thousands; None for one that cannot be read."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                segment_from(record)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                yield None
            else:
                yield record


def segments_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Segment]:
    """Each segment's last state by id, in the order that they began.

    What a checkpoint knew of processes elsewhere (EARLIER) was written down only by the one that went on from it, the
    line's `before`: they come right before that.
    """
    first: dict[str, float] = {}
    last: dict[str, Mapping[str, Any]] = {}  # one of the many lines of a process
    earlier = []
    for place, record in enumerate(records):
        if record.get("event") == EARLIER:
            earlier.append(record)
            continue
        name = str(record["id"])
        first.setdefault(name, float(place))
        if name not in last or _wall_s(record) >= _wall_s(last[name]):
            last[name] = record
    placed = [(first[name], record) for name, record in last.items()]
    placed += [(first.get(str(record.get("before")), 0.0) - 0.5, record) for record in earlier]
    ordered = sorted(placed, key=lambda pair: pair[0])
    return merge({s.id: s} for s in (segment_from(record) for _, record in ordered))


def _wall_s(record: Mapping[str, Any]) -> float:
    return sum(float(record["seconds"].get(phase, 0.0)) for phase in PHASES)


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


def summarize(segments: Iterable[Segment], current: Segment, tokens: int, rate_source: str, mfu_basis: str) -> RunCost:
    """Adds up a run. `current` is the running process (also in `segments`), `tokens` what the model has learned from.

    MFU = FLOPs / (seconds of training and data waiting * devices * peak), over the segments whose peak is known.
    """
    segments = list(segments)
    seconds = {phase: sum(s.seconds[phase] for s in segments) for phase in PHASES}
    wall_s = sum(seconds.values())
    usd = usd_of(segments, last_rate(segments))
    processed = sum(s.tokens for s in segments)
    lost_s = lost_seconds(segments, tokens)
    active_s = seconds["train"] + seconds["data"]
    counted = [s for s in segments if s.peak_flops_per_s and s.flops]
    at_peak = sum((s.seconds["train"] + s.seconds["data"]) * s.devices * (s.peak_flops_per_s or 0) for s in counted)
    return RunCost(
        wall_s=wall_s,
        **{f"{phase}_s": seconds[phase] for phase in PHASES},  # type: ignore[arg-type]
        lost_s=lost_s,
        goodput=(seconds["train"] - lost_s) / wall_s if wall_s else None,
        starts=len(segments),
        devices=current.devices,
        device_hours=sum(s.device_hours for s in segments),
        usd=usd,
        usd_per_device_hour=current.usd_per_device_hour,
        rate_source=rate_source,
        tokens=tokens,
        tokens_processed=processed,
        tokens_per_s=processed / active_s if processed and active_s else None,
        usd_per_million_tokens=usd / tokens * 1e6 if usd is not None and tokens else None,
        mfu=sum(s.flops for s in counted) / at_peak if at_peak else None,
        mfu_basis=mfu_basis,
    )
