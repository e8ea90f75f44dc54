"""The append-only file in which the processes of a run keep what they have used.

It has one JSON object a line; the last line of a segment that can be read holds its totals so far, so a process killed
at any moment has been billed up to its last heartbeat or checkpoint. Times of day in it are for people only.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.cost.segments import PHASES, Segment, merge, segment_from

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
