"""Tensors in files, read a few rows at a time, and the table of contents of safetensors folders."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.weights.number_types import BEYOND_FP16, SIZES, convert, torch_type


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `offset` bytes into `file`, its numbers in order."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape[1:])

    @property
    def bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)


class Buffers(threading.local):
    """Memory that each thread takes once: the system clears every page that it gives anew."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def get(self, purpose: str, size: int) -> np.ndarray:
        """`size` bytes; what was in them for this purpose before is gone."""
        if purpose not in self._kept or self._kept[purpose].size < size:
            self._kept[purpose] = np.empty(size, np.uint8)
        return self._kept[purpose][:size]


class TensorFiles:
    """Named tensors in files. Close it, or use it in a `with`."""

    readers = min(8, 1 + (os.cpu_count() or 1))  # threads that may read at once: one more, as one waits for the disk

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)
        self._open: dict[Path, int] = {}
        self._opening = threading.Lock()

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Any:
        """`count` rows of a tensor from row `first` on (all without one), as a torch tensor of the file's type.

        Raises ValueError where the file ends before they do.
        """
        import torch

        entry = self.entries[name]
        rows = (entry.shape[0] if entry.shape else 1) - first if count is None else count
        shape = (rows, *entry.shape[1:]) if entry.shape else ()
        buffer = torch.empty(entry.row_bytes * rows if entry.shape else entry.bytes, dtype=torch.uint8)
        self._read(entry, first * entry.row_bytes, memoryview(buffer.numpy()))  # type: ignore[arg-type]
        return buffer.view(torch_type(entry.dtype)).view(shape)

    def rows_as(self, dtype: str, name: str, first: int, count: int, buffers: Buffers) -> memoryview:
        """The bytes of rows as numbers of type `dtype`, valid until the thread's next call.

        Raises ValueError where the file ends before they do, or the type cannot hold them.
        """
        entry = self.entries.get(name)
        if entry is None:  # computed by a subclass, not read
            made = self.rows(name, first, count).to(torch_type(dtype))
            if dtype == "F16" and made.isinf().any():
                raise ValueError(f"{name}: {BEYOND_FP16}")
            return memoryview(made.contiguous().flatten().view(torch_type("U8")).numpy())
        read = buffers.get("read", count * entry.row_bytes)
        self._read(entry, first * entry.row_bytes, memoryview(read))  # type: ignore[arg-type]
        if entry.dtype == dtype:
            return memoryview(read)  # type: ignore[arg-type]
        written = buffers.get("written", count * entry.row_bytes // SIZES[entry.dtype] * SIZES[dtype])
        try:
            convert(read, entry.dtype, dtype, written)
        except ValueError as error:
            raise ValueError(f"{entry.file}: {name}: {error}") from None
        return memoryview(written)  # type: ignore[arg-type]

    def copy_rows(self, name: str, first: int, count: int, dtype: str, to: int, at: int) -> bool:
        """Copy rows to offset `at` of descriptor `to` within the kernel; False, with nothing done, if they need work.

        That is where they are of another type, or lie on a file system that cannot copy to the other's.
        """
        entry = self.entries.get(name)
        if entry is None or entry.dtype != dtype:
            return False
        start, size, done = entry.offset + first * entry.row_bytes, count * entry.row_bytes, 0
        while done < size:
            try:
                copied = os.copy_file_range(self._descriptor(entry.file), to, size - done, start + done, at + done)
            except OSError:
                if done:
                    raise
                return False
            if not copied:
                raise ValueError(f"{entry.file} is truncated: it ends inside a tensor")
            done += copied
        return True

    def _descriptor(self, file: Path) -> int:
        with self._opening:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
            return self._open[file]

    def _read(self, entry: Entry, start: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            read = os.preadv(self._descriptor(entry.file), [into[done:]], entry.offset + start + done)
            if not read:
                raise ValueError(f"{entry.file} is truncated: it ends inside a tensor")
            done += read


# --- safetensors --------------------------------------------------------------------------------------------------


def safetensors_folder(folder: Path) -> TensorFiles:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json lists.

    Raises:
        ValueError: no safetensors, a shard that is missing or cut off.
    """
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        try:
            files = sorted(set(map(str, json.loads(index.read_text())["weight_map"].values())))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} cannot be read: {error}") from None
    entries: dict[str, Entry] = {}
    for name in files:
        if not (folder / name).is_file():
            others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))[:3])
            hint = f"; it has {others}: save it as safetensors first" if others else ""
            raise ValueError(f"{folder} has no {name}{hint}")
        entries |= read_safetensors(folder / name)
    return TensorFiles(entries)


def read_safetensors(path: Path) -> dict[str, Entry]:
    """The table of contents of one file. Raises ValueError where it is none, or is cut off."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        entries = {}
        for name, about in header.items():
            if name == "__metadata__":
                continue
            start, stop = about["data_offsets"]
            if 8 + length + stop > size:
                raise ValueError(f"it has {size:,} bytes of at least {8 + length + stop:,}")
            entries[name] = Entry(path, about["dtype"], tuple(about["shape"]), 8 + length + start)
        return entries
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
