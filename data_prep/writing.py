"""Sequences into MDS shards: the files that `streaming.StreamingDataset` reads, byte for byte as `MDSWriter` writes.

A shard, all integers little-endian uint32 unless said:

    n | offsets of the n samples and of the end (n + 1) | configuration in JSON | samples

A sample of the one column `tokens`, encoded `ndarray:<dtype>`:

    its size in bytes | 1 axis and the width of its length (uint8) | its length (1, 2 or 4 bytes) | ids

n: samples of a shard; S: tokens a sequence; B: bytes a sample.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.durable import write_durably
from data_prep.errors import PrepError
from data_prep.manifest import FileRecord
from data_prep.windows import Ids

SHARD_BYTES = 1 << 26  # MDSWriter's default size_limit
INDEX = "index.json"


class ShardFormat:
    """Sequences of one length as shards of at most `shard_bytes`.

    Raises:
        PrepError: when not even one sequence fits into a shard.
    """

    def __init__(self, seq_len: int, dtype: str, shard_bytes: int = SHARD_BYTES):
        self.seq_len = seq_len
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._settings = _mds_settings("tokens", f"ndarray:{dtype}", shard_bytes)
        self._settings_json = json.dumps(self._settings, sort_keys=True).encode()
        room = shard_bytes - 8 - len(self._settings_json)
        sequence_bytes = seq_len * self.dtype.itemsize
        if sequence_bytes + 16 > room:
            too_long = f"--seq-len {seq_len}: one sequence is {sequence_bytes:,} bytes"
            raise PrepError(f"{too_long}, which a shard of {shard_bytes:,} bytes cannot hold.")
        self._prefix = _sample_prefix(seq_len, self.dtype.itemsize)
        self._sample_bytes = len(self._prefix) + sequence_bytes
        self.samples_a_shard = room // (self._sample_bytes + 4)

    def pack(self, sequences: Ids) -> npt.NDArray[np.uint8]:
        """Sequences (n, S) as samples (n, B)."""
        samples: npt.NDArray[np.uint8] = np.empty((len(sequences), self._sample_bytes), dtype=np.uint8)  # (n, B)
        samples[:, : len(self._prefix)] = np.frombuffer(self._prefix, dtype=np.uint8)
        ids = np.ascontiguousarray(sequences, dtype=self.dtype)  # (n, S)
        samples[:, len(self._prefix) :] = ids.view(np.uint8).reshape(len(ids), self.dtype.itemsize * self.seq_len)
        return samples

    def write(self, folder: Path, number: int, samples: int, blocks: Iterable[Ids]) -> FileRecord:
        """Write shard `number` of `samples` sequences, which arrive in blocks (n, S). Memory: a block, three times."""
        head = _head(np.full(samples, self._sample_bytes), self._settings_json)
        name = shard_name(number)
        packed = (self.pack(block).data.cast("B") for block in blocks if len(block))
        size, digest = write_hashed(folder / name, itertools.chain([head], packed))
        assert size == len(head) + samples * self._sample_bytes
        return FileRecord(name=name, bytes=size, sha256=digest, samples=samples)

    def write_index(self, folder: Path, shards: Sequence[FileRecord]) -> None:
        """Write index.json."""
        write_index(folder, self._settings, shards)


class JsonShardWriter:
    """Samples of one JSON column into shards of at most `shard_bytes`, as MDSWriter would. Memory: one shard."""

    def __init__(self, folder: Path, column: str, shard_bytes: int = SHARD_BYTES):
        self.shards: list[FileRecord] = []
        self._folder = folder
        self._limit = shard_bytes
        self._settings = _mds_settings(column, "json", shard_bytes)
        self._settings_json = json.dumps(self._settings, sort_keys=True).encode()
        self._samples: list[bytes] = []
        self._empty = 8 + len(self._settings_json)  # bytes of a shard without samples: count, first offset, settings
        self._size = self._empty

    def write(self, value: Any) -> None:
        """Add a sample.

        Raises:
            PrepError: it does not fit into a shard.
        """
        content = json.dumps(value).encode()
        sample = len(content).to_bytes(4, "little") + content
        if self._empty + 4 + len(sample) > self._limit:
            raise PrepError(f"one sample is {len(sample):,} bytes, which a shard of {self._limit:,} bytes cannot hold.")
        if self._size + 4 + len(sample) > self._limit:
            self._flush()
        self._samples.append(sample)
        self._size += 4 + len(sample)

    def finish(self) -> list[FileRecord]:
        """Write the last shard and the index."""
        if self._samples:
            self._flush()
        write_index(self._folder, self._settings, self.shards)
        return self.shards

    def _flush(self) -> None:
        head = _head([len(sample) for sample in self._samples], self._settings_json)
        name = shard_name(len(self.shards))
        size, digest = write_hashed(self._folder / name, itertools.chain([head], self._samples))
        self.shards.append(FileRecord(name=name, bytes=size, sha256=digest, samples=len(self._samples)))
        self._samples, self._size = [], self._empty


def _mds_settings(column: str, encoding: str, shard_bytes: int) -> dict[str, Any]:
    """What a shard with one column says about itself."""
    return {
        "column_encodings": [encoding],
        "column_names": [column],
        "column_sizes": [None],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": shard_bytes,
        "version": 2,
    }


def write_index(folder: Path, settings: dict[str, Any], shards: Sequence[FileRecord]) -> None:
    """Write the index.json of shards that were all written with `settings`."""
    entries = [
        {
            **settings,
            "raw_data": {"basename": shard.name, "bytes": shard.bytes, "hashes": {}},
            "samples": shard.samples,
            "zip_data": None,
        }
        for shard in shards
    ]
    write_durably(folder / INDEX, json.dumps({"shards": entries, "version": 2}, sort_keys=True).encode())


def shard_name(number: int) -> str:
    return f"shard.{number:05}.mds"


def write_hashed(path: Path, blocks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Write a file, wait until it is on the disk; returns its size in bytes and its SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "wb", buffering=0) as file:
        for block in blocks:
            view = memoryview(block)
            while len(view):  # a raw file may take less than it is given
                view = view[file.write(view) or 0 :]
            size += len(block)
            digest.update(block)
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _head(sample_bytes: npt.ArrayLike, settings_json: bytes) -> bytes:
    """What stands before the samples of a shard."""
    offsets = np.concatenate(([0], np.cumsum(sample_bytes)))
    offsets += 4 + 4 * len(offsets) + len(settings_json)
    return (len(offsets) - 1).to_bytes(4, "little") + offsets.astype("<u4").tobytes() + settings_json


def _sample_prefix(seq_len: int, bytes_a_token: int) -> bytes:
    """What stands before the ids of every sample of one length."""
    width = next(power for power in range(4) if seq_len < 1 << (8 << power))  # the length takes 2**width bytes
    shape = bytes([(1 << 2) | width]) + seq_len.to_bytes(1 << width, "little")
    return (len(shape) + seq_len * bytes_a_token).to_bytes(4, "little") + shape
