"""The bar on a terminal; nothing where the output goes to a file or a pipe."""

import sys
import time
from types import TracebackType
from typing import Any


class ProgressBar:
    """Documents, MB/s of input and tokens/s, on standard error, while it is a terminal."""

    def __init__(self, total_bytes: int, what: str, quiet: bool = False):
        self._bar: Any = None
        self._next_s = 0.0  # time of the next update
        if quiet or not sys.stderr.isatty():
            return
        from rich.console import Console  # only here: 0.05 s
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total_bytes, counts="")

    def is_due(self) -> bool:
        """Whether somebody looks and the last update is a tenth of a second ago: cheap enough to ask at every row."""
        return self._bar is not None and time.monotonic() >= self._next_s

    def update(self, bytes_read: int, documents: int, tokens: int | None = None) -> None:
        """Counts since the start."""
        if self._bar is None:
            return
        self._next_s = time.monotonic() + 0.1
        elapsed_s = max(self._bar.tasks[self._task].elapsed or 0.0, 1e-3)
        counts = f"{documents:,} documents  {bytes_read / 1e6 / elapsed_s:,.1f} MB/s"
        if tokens is not None:
            counts += f"  {tokens / elapsed_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=bytes_read, counts=counts)

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
