"""Sequences into MDS shards: the files that `streaming.StreamingDataset` reads, byte for byte as `MDSWriter` writes.

A shard, all integers little-endian uint32 unless said:

    n | offsets of the n samples and of the end (n + 1) | configuration in JSON | samples

A sample of the one column `tokens`, encoded `ndarray:<dtype>`:

    its size in bytes | 1 axis and the width of its length (uint8) | its length (1, 2 or 4 bytes) | ids

n: samples of a shard; S: tokens a sequence; B: bytes a sample.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.errors import PrepError
from data_prep.windows import Ids

SHARD_BYTES = 1 << 26  # MDSWriter's default size_limit
INDEX = "index.json"


@dataclass(frozen=True)
class WrittenShard:
    """A finished shard: its name in the folder, size in bytes, SHA-256 and number of samples."""

    name: str
    bytes: int
    sha256: str
    samples: int


class MdsWriter:
    """Writes sequences of one length into shards of at most `shard_bytes`; `finish` writes the index.

    Memory: one shard.

    Raises:
        PrepError: when not even one sequence fits into a shard.
    """

    def __init__(self, folder: Path, seq_len: int, dtype: str, shard_bytes: int = SHARD_BYTES):
        self.folder = folder
        self.shards: list[WrittenShard] = []
        self.sequences = 0
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._settings = {
            "column_encodings": [f"ndarray:{dtype}"],
            "column_names": ["tokens"],
            "column_sizes": [None],
            "compression": None,
            "format": "mds",
            "hashes": [],
            "size_limit": shard_bytes,
            "version": 2,
        }
        self._settings_json = json.dumps(self._settings, sort_keys=True).encode()
        room = shard_bytes - 8 - len(self._settings_json)
        sequence_bytes = seq_len * self._dtype.itemsize
        if sequence_bytes + 16 > room:
            too_long = f"--seq-len {seq_len}: one sequence is {sequence_bytes:,} bytes"
            raise PrepError(f"{too_long}, which a shard of {shard_bytes:,} bytes cannot hold.")
        self._prefix = _sample_prefix(seq_len, self._dtype.itemsize)
        self._sample_bytes = len(self._prefix) + sequence_bytes
        self._samples_a_shard = room // (self._sample_bytes + 4)
        self._pending: list[npt.NDArray[np.uint8]] = []  # blocks of (n, B)
        self._pending_samples = 0

    def write(self, sequences: Ids) -> None:
        """Add sequences (n, S)."""
        count = len(sequences)
        samples: npt.NDArray[np.uint8] = np.empty((count, self._sample_bytes), dtype=np.uint8)  # (n, B)
        samples[:, : len(self._prefix)] = np.frombuffer(self._prefix, dtype=np.uint8)
        ids = np.ascontiguousarray(sequences, dtype=self._dtype)  # (n, S)
        samples[:, len(self._prefix) :] = ids.view(np.uint8).reshape(count, ids.itemsize * ids.shape[1])
        self.sequences += count
        while len(samples):
            room = self._samples_a_shard - self._pending_samples
            if room == 0:
                self._flush()
                continue
            self._pending.append(samples[:room])
            self._pending_samples += len(samples[:room])
            samples = samples[room:]

    def finish(self) -> list[WrittenShard]:
        """Write the last shard and the index."""
        if self._pending_samples:
            self._flush()
        entries = [
            {
                **self._settings,
                "raw_data": {"basename": shard.name, "bytes": shard.bytes, "hashes": {}},
                "samples": shard.samples,
                "zip_data": None,
            }
            for shard in self.shards
        ]
        write_durably(self.folder / INDEX, json.dumps({"shards": entries, "version": 2}, sort_keys=True).encode())
        return self.shards

    def _flush(self) -> None:
        count = self._pending_samples
        head = 4 + 4 * (count + 1) + len(self._settings_json)
        offsets = head + self._sample_bytes * np.arange(count + 1, dtype="<u4")
        name = f"shard.{len(self.shards):05}.mds"
        digest = hashlib.sha256()
        size = 0
        with open(self.folder / name, "wb") as file:
            blocks = [np.uint32(count).astype("<u4").tobytes(), offsets.astype("<u4").tobytes(), self._settings_json]
            for block in (*blocks, *(np.ascontiguousarray(pending).data.cast("B") for pending in self._pending)):
                size += file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        self.shards.append(WrittenShard(name=name, bytes=size, sha256=digest.hexdigest(), samples=count))
        self._pending = []
        self._pending_samples = 0


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sample_prefix(seq_len: int, bytes_a_token: int) -> bytes:
    """What stands before the ids of every sample of one length."""
    width = next(power for power in range(4) if seq_len < 1 << (8 << power))  # the length takes 2**width bytes
    shape = bytes([(1 << 2) | width]) + seq_len.to_bytes(1 << width, "little")
    return (len(shape) + seq_len * bytes_a_token).to_bytes(4, "little") + shape
