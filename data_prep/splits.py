"""The splits made out of finished parts: their shards, the held-out rows, and what each holds."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_prep.errors import PrepError
from data_prep.ordering import KEPT_HELD, Ordered, SplitContent
from data_prep.part_files import HELD, MAIN, ROWS, part_folder
from data_prep.split_manifest import DOCUMENTS, BuiltSplit
from data_prep.tasks import ORDERS, PARTS, ShardTask, read_shard
from data_prep.workers import Executor
from data_prep.writing import ShardFormat

_COPY_BYTES = 1 << 20


def build_splits(
    staging: Path,
    names: dict[str, str],
    ordered: Ordered,
    seq_len: int,
    dtype: str,
    executor: Executor,
    left_out: Mapping[str, int],
) -> dict[str, BuiltSplit]:
    """Write the shards and indexes of the splits in `names` (by MAIN and HELD) into `staging/<name>`.

    left_out: of the input's documents, how many for which reason: what a user may not have expected.

    Raises:
        PrepError: a split with not one sequence.
    """
    layout = ShardFormat(seq_len, dtype)
    tasks: dict[str, list[ShardTask]] = {}
    for split, name in names.items():
        content = ordered.splits[split]
        sequences = content.tokens // seq_len
        if not sequences:
            raise PrepError(_too_little(split, name, content, seq_len, left_out))
        (staging / name).mkdir(exist_ok=True)
        each = layout.samples_a_shard
        tasks[split] = [
            ShardTask(split, name, number, first, min(each, sequences - first), seq_len, dtype)
            for number, first in enumerate(range(0, sequences, each))
        ]
    executor.run([task for listed in tasks.values() for task in listed if read_shard(staging, task) is None])
    built = {}
    for split, name in names.items():
        content = ordered.splits[split]
        shards = [shard for task in tasks[split] if (shard := read_shard(staging, task))]
        assert len(shards) == len(tasks[split])
        layout.write_index(staging / name, shards)
        if split == HELD:
            _write_rows(staging, staging / name / DOCUMENTS)
        sequences, left_over = divmod(content.tokens, seq_len)
        built[split] = BuiltSplit(
            documents=content.documents,
            text_bytes=content.text_bytes,
            sequences=sequences,
            tokens=sequences * seq_len,
            dropped_tokens=left_over,
            shards=shards,
        )
    return built


def shard_bytes(names: dict[str, str], ordered: Ordered, dtype: str) -> int:
    """About the bytes that `build_splits` will write."""
    return sum(ordered.splits[split].tokens for split in names) * np.dtype(dtype).itemsize


def _write_rows(staging: Path, path: Path) -> None:
    """The rows of the held-out documents that are kept, in the order of the input."""
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        kept = staging / ORDERS / KEPT_HELD
        wanted = stack.enter_context(open(kept, "rb")) if kept.is_file() else None
        for number in sorted(int(folder.name) for folder in (staging / PARTS).glob("[0-9]*")):
            rows = part_folder(staging / PARTS, number) / ROWS
            if not rows.is_file():
                continue
            with open(rows, "rb") as part:
                if wanted is None:
                    shutil.copyfileobj(part, file, _COPY_BYTES)
                    continue
                while part.peek(1):
                    _copy_line(part, file if wanted.read(1) == b"\1" else None)


def _copy_line(source: BinaryIO, target: BinaryIO | None) -> None:
    """Read one line, a block at a time, and write it, if there is a target."""
    piece = b" "
    while piece and not piece.endswith(b"\n"):
        piece = source.readline(_COPY_BYTES)
        if target:
            target.write(piece)


def told_left_out(counts: Mapping[str, int]) -> str:
    """How many documents were left out for which reason; "": none."""
    told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()) if count)
    return f"left out: {told}" if told else ""


def _too_little(split: str, name: str, content: SplitContent, seq_len: int, left_out: Mapping[str, int]) -> str:
    told = f" ({told_left_out(left_out)})" if any(left_out.values()) else ""
    larger = "" if split == MAIN else ", or a larger --holdout"
    return (
        f"split {name!r}: {content.documents:,} documents with {content.tokens:,} tokens are fewer than one sequence "
        f"of {seq_len:,}{told}; give more text, or a shorter --seq-len{larger}."
    )
