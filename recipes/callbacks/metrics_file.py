"""Every metric of a run as lines of JSON, so that a run can be read, compared and drawn without a tracking service."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from recipes.json_lines import append

log = logging.getLogger(__name__)


class MetricsFile(LoggerDestination):
    """Append `{"step": batches, "unix_s": seconds, metric: value, …}` lines to a file, from rank 0 only.

    A line is written whole at the end of each batch and evaluation, so that a kill costs the last line at most; a
    resumed run appends, and where a batch stands twice the later line counts. What is not finite is null: JSON has no
    NaN, and readers other than Python's refuse it.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._writes = False
        self._pending: dict[str, float | None] = {}
        self._step = 0

    def init(self, state: State, logger: Logger) -> None:
        self._writes = dist.get_global_rank() == 0
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if not self._writes:
            return
        step = self._step if step is None else int(step)
        if step != self._step:
            self._write()
            self._step = step
        for name, value in metrics.items():
            try:
                number = float(value)
                self._pending[name] = number if math.isfinite(number) else None
            except (TypeError, ValueError):
                continue

    def batch_end(self, state: State, logger: Logger) -> None:
        self._write()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._write()

    def fit_end(self, state: State, logger: Logger) -> None:
        self._write()

    def close(self, state: State, logger: Logger) -> None:
        self._write()

    def _write(self) -> None:
        if self._pending:
            try:
                append(self._path, {"step": self._step, "unix_s": round(time.time(), 3), **self._pending})
            except OSError as error:  # a full disk must not end the run
                log.warning("%s: could not write a line: %s", self._path, error)
            self._pending = {}
