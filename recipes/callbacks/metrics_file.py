"""Every metric of a run as lines of JSON, so that a run can be read, compared and drawn without a tracking service."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist


class MetricsFile(LoggerDestination):
    """Append `{"step": batches, "unix_s": seconds, metric: value, …}` lines to a file, from rank 0 only.

    A line is written whole at the end of each batch and evaluation, so that a kill costs the last line at most; a
    resumed run appends, and where a batch stands twice the later line counts.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file: TextIO | None = None
        self._pending: dict[str, float] = {}
        self._step = 0

    def init(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torn = _ends_mid_line(self._path)
            self._file = self._path.open("a", encoding="utf-8")
            if torn:
                self._file.write("\n")

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self._file is None:
            return
        step = self._step if step is None else int(step)
        if step != self._step:
            self._write()
            self._step = step
        for name, value in metrics.items():
            try:
                self._pending[name] = float(value)
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
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        if self._file is not None and self._pending:
            line = {"step": self._step, "unix_s": round(time.time(), 3), **self._pending}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._pending = {}


def _ends_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"
