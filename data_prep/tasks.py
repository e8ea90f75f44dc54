"""The kinds of tasks that a run consists of. Each can be done by any process that sees the staging folder."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.durable import write_durably
from data_prep.extents import extents_name, read_stream
from data_prep.manifest import FileRecord
from data_prep.part_files import PartFacts
from data_prep.part_task import PartSettings, Progress, Report, tokenise_part
from data_prep.parts import Part
from data_prep.reading import check_unchanged
from data_prep.sources import sha256_of_file
from data_prep.tokenising import Engine
from data_prep.writing import ShardFormat, shard_name

PARTS, RECORDS, UNFINISHED, ORDERS = "parts", "records", "unfinished", "orders"  # folders in the staging folder
_BLOCK_BYTES = 512 << 10  # of ids read at once for a shard: packed, hashed and written they stay in a core's cache


class Worker:
    """Does tasks, one after another; the engine is made for the first that needs it."""

    def __init__(self, settings: PartSettings, staging: Path, engine: Engine | None = None):
        self.settings = settings
        self.staging = staging
        self._engine = engine

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self.settings.engine.make()
        return self._engine


@dataclass(frozen=True)
class PartTask:
    """Tokenise a part."""

    part: Part

    def run(self, worker: Worker, report: Report) -> None:
        tokenise_part(worker.settings, self.part, worker.staging / PARTS, worker.engine, report)


@dataclass(frozen=True)
class HashTask:
    """Find the SHA-256 of a source that no part reads as a whole."""

    source: int

    def run(self, worker: Worker, report: Report) -> None:
        source = worker.settings.sources[self.source]
        digest = sha256_of_file(source.path)
        check_unchanged(source)
        write_record(worker.staging, f"source.{self.source}", {"sha256": digest})


@dataclass(frozen=True)
class ShardTask:
    """Write one shard of a split."""

    split: str  # MAIN or HELD
    folder: str  # of the split, below the staging folder
    number: int
    first: int  # sequence of the split
    samples: int  # sequences
    seq_len: int
    dtype: str  # of the shards

    @property
    def record(self) -> str:
        return f"{self.folder}.{shard_name(self.number)}"

    def run(self, worker: Worker, report: Report) -> None:
        layout = ShardFormat(self.seq_len, self.dtype)
        extents = worker.staging / ORDERS / extents_name(self.split)
        start, end = self.first * self.seq_len, (self.first + self.samples) * self.seq_len
        block = max(_BLOCK_BYTES // (self.seq_len * layout.dtype.itemsize), 1) * self.seq_len
        stream = read_stream(
            worker.staging / PARTS, self.split, extents, worker.settings.dtype, start, end, block
        )  # blocks of n * S ids
        attempt = worker.staging / UNFINISHED / f"{self.record}-{os.getpid()}-{os.urandom(4).hex()}"
        attempt.mkdir()
        blocks = (ids.reshape(len(ids) // self.seq_len, self.seq_len) for ids in stream)  # (n, S)
        written = layout.write(attempt, self.number, self.samples, blocks)
        os.rename(attempt / written.name, worker.staging / self.folder / written.name)
        attempt.rmdir()
        write_record(worker.staging, self.record, asdict(written))
        report(Progress(bytes=written.bytes))


Task = PartTask | HashTask | ShardTask


def write_record(staging: Path, name: str, value: dict[str, object]) -> None:
    """Note the result of a finished task; there as a whole or not at all."""
    attempt = staging / UNFINISHED / f"{name}.json-{os.getpid()}-{os.urandom(4).hex()}"
    write_durably(attempt, json.dumps(value).encode())
    os.rename(attempt, staging / RECORDS / f"{name}.json")


def read_record(staging: Path, name: str) -> dict[str, object] | None:
    """What `write_record` noted, or None where there is nothing that can be read."""
    try:
        return dict(json.loads((staging / RECORDS / f"{name}.json").read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def source_digests(staging: Path, facts: Iterable[PartFacts], sources: int) -> dict[int, str]:
    """SHA-256 of those of so many sources that parts have read as a whole or tasks have hashed, by their numbers."""
    found = {int(number): digest for part in facts for number, digest in part.sha256.items()}
    for number in range(sources):
        if number not in found and (record := read_record(staging, f"source.{number}")):
            found[number] = str(record["sha256"])
    return found


def read_shard(staging: Path, task: ShardTask) -> FileRecord | None:
    """The shard, if it is finished."""
    record = read_record(staging, task.record)
    if record is None:
        return None
    shard = FileRecord(**record)  # type: ignore[arg-type]
    path = staging / task.folder / shard.name
    return shard if path.is_file() and path.stat().st_size == shard.bytes else None
