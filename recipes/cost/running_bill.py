"""The bill of a process while it runs, with those of the processes before it: what its ledger and checkpoints keep."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recipes.cost.ledger import EARLIER, Ledger
from recipes.cost.phase_clock import PhaseClock
from recipes.cost.segments import PHASES, Segment, merge, segment_from

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0


class RunningBill:
    """Every second since the process began, by phase, and what was done in them.

    Events of the run and the heartbeat's thread ask it side by side.

    ledger: where it is kept; None: in checkpoints alone. already_s: seconds of this process before it is made.
    device_kwh: energy of all devices after so many seconds, where it is known.
    """

    def __init__(self, ledger: str | None, already_s: float, device_kwh: Callable[[float], float | None]) -> None:
        self._ledger = None if ledger is None else Ledger(ledger)
        self._clock = PhaseClock("startup", already_s)
        self._device_kwh = device_kwh
        self._lock = threading.Lock()  # the heartbeat reads what the events write
        self._current = Segment(id=uuid.uuid4().hex[:12], devices=0, seconds=dict.fromkeys(PHASES, 0.0))
        self._earlier: dict[str, Segment] = {}
        self._stop = threading.Event()
        self._closed = False

    @property
    def is_open(self) -> bool:
        return self._current.devices > 0

    @property
    def path(self) -> Path | None:
        """None on ranks other than 0 and without a ledger."""
        return None if self._ledger is None else self._ledger.path

    def open(self, devices: int, usd_per_device_hour: float | None, keeps: bool, **notes: Any) -> None:
        """Begin the ledger, which is kept by one process of the run."""
        self.update(devices=devices, usd_per_device_hour=usd_per_device_hour)
        if not keeps:
            self._ledger = None
        if self._ledger is None:
            return
        self._earlier = self._ledger.read()
        self.write("start", **notes)
        atexit.register(self.end)  # where it cannot be built
        threading.Thread(target=self._beat, name="cost-ledger", daemon=True).start()

    def end(self) -> None:
        """The clock stops here: a summary read later is the bill at the end."""
        if self._closed:
            return
        self._stop.set()
        self.current()
        self._closed = True
        self.try_to_write("end")

    def switch(self, phase: str) -> None:
        """What comes now is billed to this phase."""
        if not self._closed:
            with self._lock:
                self._clock.switch(phase)

    @contextlib.contextmanager
    def spending(self, phase: str) -> Iterator[None]:
        """Bills the time inside to `phase`, whatever event it falls into."""
        before = self._clock.phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def move(self, source: str, target: str, seconds: float) -> None:
        """Counts time of one phase as another's."""
        with self._lock:
            self._clock.move(source, target, seconds)

    def train_s(self) -> float:
        with self._lock:
            return self._clock.seconds()["train"]

    def update(self, **changes: Any) -> None:
        """What this process has done or knows by now: fields of its segment."""
        with self._lock:
            self._current = replace(self._current, **changes)

    def current(self) -> Segment:
        """This process so far."""
        with self._lock:
            if not self._closed:
                seconds = self._clock.seconds()
                self._current = replace(
                    self._current, seconds=seconds, device_kwh=self._device_kwh(sum(seconds.values()))
                )
            return self._current

    def segments(self) -> list[Segment]:
        """All processes, this one last; complete where the ledger is kept."""
        return [*self._earlier.values(), self.current()]

    def to_text(self) -> str:
        """All of it, for a checkpoint."""
        segments = merge([self._earlier, {self._current.id: self.current()}])
        self.try_to_write("checkpoint")  # or a kill soon after leaves a ledger that knows less than the checkpoint
        return json.dumps([asdict(segment) for segment in segments.values()])

    def add(self, text: str) -> None:
        """What a checkpoint knew of the processes before this one."""
        loaded = {segment.id: segment for segment in map(segment_from, json.loads(text))}
        loaded.pop(self._current.id, None)
        if self._ledger is not None:  # of another machine, whose ledger is not here
            for segment in loaded.values():
                if segment.id not in self._earlier:
                    self._ledger.append(EARLIER, segment, before=self._current.id)
        self._earlier = merge([loaded, self._earlier])

    def write(self, event: str, **notes: Any) -> None:
        if self._ledger is not None:
            self._ledger.append(event, self.current(), **notes)

    def try_to_write(self, event: str) -> None:
        try:
            self.write(event)
        except OSError as error:  # a full disk must not end the run
            log.warning("Cost ledger: could not write a line: %s", error)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if self._ledger is not None and not self._ledger.path.parent.is_dir():  # the run's folder was deleted
                return
            self.try_to_write("beat")
