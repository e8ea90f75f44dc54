"""The bar on a terminal; nothing where the output goes to a file or a pipe."""

import sys
import time
from types import TracebackType
from typing import Any

from data_prep.part_task import Progress


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
            TextColumn(what.replace("{", "{{").replace("}", "}}"), markup=False),
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

    def update(self, bytes_read: int, documents: int, tokens: int | None = None, rejected: int = 0) -> None:
        """Counts since the start."""
        if self._bar is None:
            return
        self._next_s = time.monotonic() + 0.1
        elapsed_s = max(self._bar.tasks[self._task].elapsed or 0.0, 1e-3)
        counts = f"{documents:,} documents  {bytes_read / 1e6 / elapsed_s:,.1f} MB/s"
        if tokens is not None:
            counts += f"  {tokens / elapsed_s:,.0f} tokens/s"
        if rejected:
            counts += f"  {rejected:,} rejected"
        self._bar.update(self._task, completed=bytes_read, counts=counts)

    def open(self) -> None:
        """Show it."""
        if self._bar is not None:
            self._bar.start()

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "ProgressBar":
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RunProgress:
    """Sums up what the tasks of a run tell, and shows it: first the input read, then the shards written."""

    def __init__(self, total_bytes: int, what: str):
        self.done = Progress()  # by this run
        self._total = total_bytes
        self._what = what
        self._read = 0  # bytes of input, once shards are written
        self._bar = ProgressBar(total_bytes, what)

    def skip(self, size: int) -> None:
        """Say that so many bytes were finished before."""
        if size:
            self._bar.close()
            self._bar = ProgressBar(self._total - size, f"{self._what} (resumed)")
            self._bar.open()

    def begin_writing(self, size: int) -> None:
        """From here on the bytes told are those of shards."""
        self._bar.close()
        self._bar = ProgressBar(size, f"{self._what}: shards")
        self._bar.open()
        self._read = self.done.bytes

    def report(self, progress: Progress) -> None:
        """Add what a task has done."""
        self.done += progress
        if self._bar.is_due():
            done = self.done
            self._bar.update(done.bytes - self._read, done.documents, done.tokens, done.rejected)

    def __enter__(self) -> "RunProgress":
        self._bar.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
