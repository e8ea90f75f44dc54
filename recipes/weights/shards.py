"""Tensors written as safetensors shards, as fast as the disk takes them.

Threads take chunks of rows: read, convert, write, each into memory of its own that it keeps. The disk is given every
chunk at once (the kernel would gather gigabytes first, and the flush at the end wait for all of them), and flushes a
shard while the next one is being read. So reading and converting hide behind writing, which is the limit.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.durable import flush
from recipes.weights.hf_names import Link
from recipes.weights.number_types import SIZES
from recipes.weights.tensor_files import Buffers, TensorFiles

CHUNK_BYTES = 4 * 2**20  # that a thread takes at a time, as float32


@dataclass(frozen=True)
class Target:
    """A tensor to be written: its pieces lie one behind the other along the first dimension."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Link, ...]

    def bytes(self, dtype: str) -> int:
        return SIZES[dtype] * math.prod(self.shape)


def write_shards(
    source: TensorFiles, targets: Sequence[Target], folder: Path, dtype: str, shard_bytes: int
) -> list[str]:
    """Write safetensors files of `shard_bytes` at most (a tensor is not split) and their index; the files' names."""
    shards: list[list[Target]] = [[]]
    for target in targets:
        used = sum(t.bytes(dtype) for t in shards[-1])
        if shards[-1] and used + target.bytes(dtype) > shard_bytes:
            shards.append([])
        shards[-1].append(target)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    with ThreadPoolExecutor(max_workers=1) as flusher:
        flushes = []
        for name, shard in zip(names, shards, strict=True):
            _write(folder / name, source, shard, dtype)
            flushes.append(flusher.submit(flush, folder / name))
        for done in flushes:
            done.result()
    if len(shards) > 1:
        where = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        index = {"metadata": {"total_size": sum(t.bytes(dtype) for t in targets)}, "weight_map": where}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return names


def _write(path: Path, source: TensorFiles, targets: Sequence[Target], dtype: str) -> None:
    """One file, its header first: all sizes are known before a number is read."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for target in targets:
        size = target.bytes(dtype)
        header[target.name] = {"dtype": dtype, "shape": list(target.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with path.open("xb", buffering=0) as file, ThreadPoolExecutor(max_workers=source.readers) as workers:
        to, buffers = file.fileno(), Buffers()
        _pwrite(to, struct.pack("<Q", len(text)) + text, 0)
        moves = [workers.submit(_move, source, chunk, dtype, to, buffers) for chunk in _chunks(targets, start, dtype)]
        try:
            for move in moves:
                move.result()
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Chunk:
    """Some rows of a tensor, and where the bytes that they become begin in the file."""

    name: str
    first: int
    rows: int
    at: int
    bytes: int


def _chunks(targets: Sequence[Target], at: int, dtype: str) -> Iterator[Chunk]:
    for piece in (piece for target in targets for piece in target.pieces):
        numbers = math.prod(piece.shape[1:])  # in a row
        step = max(1, CHUNK_BYTES // (4 * numbers))
        for first in range(0, piece.shape[0], step):
            rows = min(step, piece.shape[0] - first)
            chunk = Chunk(piece.ours, piece.ours_at + first, rows, at, rows * numbers * SIZES[dtype])
            yield chunk
            at += chunk.bytes


def _move(source: TensorFiles, chunk: Chunk, dtype: str, to: int, buffers: Buffers) -> None:
    if not source.copy_rows(chunk.name, chunk.first, chunk.rows, dtype, to, chunk.at):
        _pwrite(to, source.rows_as(dtype, chunk.name, chunk.first, chunk.rows, buffers), chunk.at)
    os.posix_fadvise(to, chunk.at, chunk.bytes, os.POSIX_FADV_DONTNEED)  # Linux: begin to write it, without waiting


def _pwrite(file: int, data: bytes | memoryview, at: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written
