"""The stream of a split: the runs of parts' ids that make it up, in a file, and the ids read in its order."""

import bisect
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.part_files import part_folder
from data_prep.windows import Ids

EXTENT = np.dtype([("part", "<u4"), ("offset", "<u8"), ("tokens", "<u8"), ("end", "<u8")])  # end: in the stream
_OPEN_FILES = 256
_AHEAD = 1024  # extents


def extents_name(split: str) -> str:
    """The file of a split's extents, in the folder of orders."""
    return f"{split}.extents"


class ExtentWriter:
    """Writes a stream's extents, in its order."""

    def __init__(self, path: Path):
        self.tokens = 0  # of the stream so far
        self._file = open(path, "wb")  # noqa: SIM115 (a context manager itself)

    def __enter__(self) -> "ExtentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, parts: npt.ArrayLike, offsets: npt.ArrayLike, tokens: npt.ArrayLike) -> None:
        """The next extents: `tokens` ids of each part, from its id `offsets` on. Empty ones are left out."""
        counts = np.asarray(tokens, dtype=np.uint64)
        extents = np.zeros(len(counts), dtype=EXTENT)
        extents["part"], extents["offset"], extents["tokens"] = parts, offsets, counts
        extents["end"] = self.tokens + np.cumsum(counts)
        self.tokens += int(counts.sum())
        self._file.write(extents[counts > 0].tobytes())


def read_stream(
    parts: Path, split: str, extents_file: Path, dtype: str, start: int, end: int, block: int
) -> Iterator[Ids]:
    """Ids [start, end) of a split's stream, in blocks of `block` ids (the last one shorter)."""
    extents = np.memmap(extents_file, dtype=EXTENT, mode="r")
    itemsize = np.dtype(dtype).itemsize
    files: dict[int, Any] = {}
    # not np.searchsorted, which copies the column: it does not lie at multiples of its size
    ahead = _rows(extents, bisect.bisect_right(extents["end"], start))
    part = offset = tokens = 0
    stop = start  # of this extent, in the stream
    try:
        for first in range(start, end, block):
            ids = np.empty(min(block, end - first), dtype=dtype)
            at = first
            while at < first + len(ids):
                if at == stop:
                    part, offset, tokens, stop = next(ahead)
                skipped = at - (stop - tokens)
                count = min(stop, first + len(ids)) - at
                if part not in files:
                    if len(files) >= _OPEN_FILES:
                        files.pop(next(iter(files))).close()
                    files[part] = open(part_folder(parts, part) / f"{split}.ids", "rb", buffering=0)  # noqa: SIM115
                files[part].seek((offset + skipped) * itemsize)
                _fill(files[part], ids[at - first : at - first + count])
                at += count
            yield ids
    finally:
        for file in files.values():
            file.close()


def _rows(extents: npt.NDArray[Any], place: int) -> Iterator[tuple[int, int, int, int]]:
    """Extents from one on, as numbers of Python's, which are made of many at once."""
    for first in range(place, len(extents), _AHEAD):
        yield from extents[first : first + _AHEAD].tolist()


def _fill(file: Any, ids: Ids) -> None:
    view = ids.data.cast("B")
    while len(view):
        got = file.readinto(view)
        if not got:
            raise OSError(f"{file.name} is shorter than when it was written")
        view = view[got:]
