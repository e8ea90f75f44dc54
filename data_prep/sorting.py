"""Records sorted on the disk: memory grows with neither their number nor how many are equal.

A record is a fixed number of bytes, ordered as bytes are: a structured array of big-endian unsigned integers is sorted
by its first field, then by its second, and so on.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[Any]

_RUN_BYTES = 16 << 20  # sorted at once
_LEAST_READ = 4 << 10  # bytes of a run that are read at once


class Sorter:
    """Takes records and gives them back sorted, once.

    Memory: a few times 16 MiB; 4 KiB more for each further 16 MiB of records from 64 GiB on.

    Args:
        kind: of the records: big-endian unsigned integers.
        folder: on the disk that has room for them; the file there has no name, so that nothing of it is left.
    """

    def __init__(self, kind: np.dtype[Any], folder: Path):
        assert all(kind[name].str.startswith((">u", "|u")) for name in kind.names or ())
        self._kind = kind
        self._bytes = np.dtype(f"S{kind.itemsize}")
        self._folder = folder
        self._waiting: list[Records] = []
        self._waiting_bytes = 0
        self._file: BinaryIO | None = None
        self._runs: list[_Run] = []

    def add(self, records: Records) -> None:
        """Take records of `kind`, in any order."""
        assert records.dtype == self._kind
        self._waiting.append(np.ascontiguousarray(records).view(self._bytes))
        self._waiting_bytes += records.nbytes
        if self._waiting_bytes >= _RUN_BYTES:
            self._write_run()

    def sorted(self) -> Iterator[Records]:
        """All of them in order, in arrays of a few MiB at most."""
        if not self._runs:
            yield from self._in_pieces(self._take())
            return
        if self._waiting:
            self._write_run()
        assert self._file is not None
        with self._file:
            for piece in self._merged(self._file):
                yield from self._in_pieces(piece)

    def _take(self) -> Records:
        taken = np.sort(np.concatenate([np.empty(0, self._bytes), *self._waiting]))
        self._waiting, self._waiting_bytes = [], 0
        return taken

    def _write_run(self) -> None:
        if self._file is None:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 (closed by `sorted`)
        run = self._take()
        start = self._file.tell()
        self._file.write(run.view(np.uint8).data)
        self._runs.append(_Run(start, self._file.tell()))

    def _merged(self, file: BinaryIO) -> Iterator[Records]:
        """Up to the least of the runs' last records in memory, everything is in memory: that much is sorted at once."""
        width = self._bytes.itemsize
        read = max(_RUN_BYTES // len(self._runs), _LEAST_READ, width) // width * width
        blocks = [run.read(file, read, self._bytes) for run in self._runs]
        while blocks:
            open_ends = [block[-1] for run, block in zip(self._runs, blocks, strict=True) if run.has_more]
            if not open_ends:
                yield np.sort(np.concatenate(blocks))
                return
            bound = np.array(min(open_ends), dtype=self._bytes)
            cuts = [int(np.searchsorted(block, bound, side="right")) for block in blocks]
            yield np.sort(np.concatenate([block[:cut] for block, cut in zip(blocks, cuts, strict=True)]))
            left = [block[cut:] for block, cut in zip(blocks, cuts, strict=True)]
            going = [(run, rest) for run, rest in zip(self._runs, left, strict=True) if len(rest) or run.has_more]
            self._runs = [run for run, _ in going]
            blocks = [rest if len(rest) else run.read(file, read, self._bytes) for run, rest in going]

    def _in_pieces(self, records: Records) -> Iterator[Records]:
        each = max((4 << 20) // self._bytes.itemsize, 1)
        for start in range(0, len(records), each):
            yield records[start : start + each].view(self._kind)


@dataclass
class _Run:
    """Sorted records in a file, from byte `at` on."""

    at: int
    end: int

    @property
    def has_more(self) -> bool:
        return self.at < self.end

    def read(self, file: BinaryIO, size: int, kind: np.dtype[Any]) -> Records:
        """The next `size` bytes of them, or what is left."""
        file.seek(self.at)
        content = file.read(min(size, self.end - self.at))
        self.at += len(content)
        return np.frombuffer(content, dtype=kind)
