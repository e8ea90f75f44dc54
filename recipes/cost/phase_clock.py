"""Which second of a process went into what."""

from __future__ import annotations

import time
from collections.abc import Callable

from recipes.cost.segments import PHASES


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
