"""How fast a run goes now and how long it still takes, from what it has done so far. Pure Python."""

from __future__ import annotations

from collections import deque

WINDOW_BATCHES = 50  # that tokens a second and MFU are taken over


class Pace:
    """Seconds are of training and waiting for data, without evaluation and checkpoints, unless said otherwise."""

    def __init__(self) -> None:
        self._window: deque[tuple[float, int, float]] = deque(maxlen=WINDOW_BATCHES + 1)
        self._first: tuple[float, float] | None = None  # wall seconds and progress after the first batch

    def forget(self) -> None:
        """A new fit begins."""
        self._window.clear()
        self._first = None

    def leave_out(self, seconds: float) -> None:
        """Seconds that were no training after all, such as compilation."""
        self._window = deque(((s - seconds, t, f) for s, t, f in self._window), maxlen=WINDOW_BATCHES + 1)

    def batch_done(self, active_s: float, tokens: int, flops: float) -> None:
        """Totals of this process after a batch."""
        self._window.append((active_s, tokens, flops))

    @property
    def tokens_per_s(self) -> float | None:
        (first_s, first, _), (last_s, last, _) = self._window[0], self._window[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and last > first else None

    @property
    def flops_per_s(self) -> float | None:
        (first_s, _, first), (last_s, _, last) = self._window[0], self._window[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and last > first else None

    def hours_left(self, progress: float | None, wall_s: float) -> float | None:
        """From the pace since the first batch, evaluation and checkpoints included; None before there is one.

        progress: fraction of the run done. wall_s: seconds of everything since the process started.
        """
        if progress is None:
            return None
        if self._first is None:
            self._first = (wall_s, progress)
        first_s, first_progress = self._first
        if progress <= first_progress:
            return None
        return max(0.0, 1 - progress) * (wall_s - first_s) / (progress - first_progress) / 3600
