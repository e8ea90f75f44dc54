"""The append-only file in which the processes of a run keep what they have used.

It has one JSON object a line; the last line of a segment that can be read holds its totals so far, so a process killed
at any moment has been billed up to its last heartbeat or checkpoint. Times of day in it are for people only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from recipes import json_lines
from recipes.cost.segments import Segment, merge, segment_from

log = logging.getLogger(__name__)

EARLIER = "earlier"  # the event of a line about a process whose ledger is not here


class Ledger:
    """The append-only file. Lines that cannot be read, such as one torn by a kill, are left out."""

    def __init__(self, path: str | Path) -> None:
        if "://" in str(path):
            raise ValueError(f"ledger: got {str(path)!r}, expected a path on a local or mounted disk.")
        self.path = Path(path)

    def read(self) -> dict[str, Segment]:
        """Each segment's last readable state, by id; empty when there is no file yet."""
        lines, unreadable = read_lines(self.path)
        if unreadable:
            log.warning("%s: %d unreadable lines left out of the bill (torn by a kill?).", self.path, unreadable)
        return segments_of(lines)

    def append(self, event: str, segment: Segment, **notes: Any) -> None:
        """Adds a line in one write, so that only a death in the middle of it can tear it."""
        record = {"event": event, "unix_s": round(time.time(), 3), **asdict(segment), **notes}
        record["seconds"] = {phase: round(s, 3) for phase, s in segment.seconds.items()}
        if event == "start":
            self.path.parent.mkdir(parents=True, exist_ok=True)
        json_lines.append(self.path, record, durable=event != "beat")


def first_start_unix_s(path: str | Path) -> float | None:
    """When the run of a ledger began by the clock of its machine; None when no line says so."""
    starts = (line.record for line in _lines(Path(path)) if line and line.record.get("event") == "start")
    return next((float(record["unix_s"]) for record in starts if isinstance(record.get("unix_s"), (int, float))), None)


class Line(NamedTuple):
    """A line of the file as written, and what its process had used by then."""

    record: Mapping[str, Any]
    segment: Segment


def read_lines(path: Path) -> tuple[list[Line], int]:
    """The file's lines, and how many could not be read. No file, no lines."""
    found = list(_lines(path))
    lines = [line for line in found if line is not None]
    return lines, len(found) - len(lines)


def _lines(path: Path) -> Iterator[Line | None]:
    for record in json_lines.read(path):
        try:
            yield None if record is None else Line(record, segment_from(record))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            yield None


def segments_of(lines: Iterable[Line]) -> dict[str, Segment]:
    """Each segment's last state by id, in the order that they began.

    What a checkpoint knew of processes elsewhere (EARLIER) was written down only by the one that went on from it, the
    line's `before`: they come right before that.
    """
    began: dict[str, float] = {}
    own: dict[str, Segment] = {}
    elsewhere: list[Line] = []
    for place, line in enumerate(lines):
        if line.record.get("event") == EARLIER:
            elsewhere.append(line)
            continue
        name, segment = line.segment.id, line.segment
        began.setdefault(name, float(place))
        if name not in own or segment.wall_s >= own[name].wall_s:
            own[name] = segment
    placed = [(began[name], segment) for name, segment in own.items()]
    placed += [(began.get(str(line.record.get("before")), 0.0) - 0.5, line.segment) for line in elsewhere]
    return merge({segment.id: segment} for _, segment in sorted(placed, key=lambda pair: pair[0]))
