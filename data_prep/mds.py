"""Reading MDS shards without streaming: index.json, and samples as the bytes of their columns.

A sample: the sizes of its columns of no fixed size (uint32 each), then the columns one after another.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import PrepError
from data_prep.windows import Ids
from data_prep.writing import INDEX

_WIDTHS = (np.dtype("u1"), np.dtype("<u2"), np.dtype("<u4"), np.dtype("<u8"))  # of the lengths of an array's axes


@dataclass(frozen=True)
class ShardEntry:
    """One shard as index.json has it. `columns`: (name, encoding, fixed size in bytes or None)."""

    path: Path
    samples: int
    columns: list[tuple[str, str, int | None]]


def read_index(folder: Path) -> list[ShardEntry]:
    """The shards of a folder.

    Raises:
        PrepError: no index.json, or shards that are compressed or not MDS.
    """
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except FileNotFoundError as error:
        raise PrepError(f"{folder}: no {INDEX} in it; expected a folder of MDS shards.") from error
    except ValueError as error:
        raise PrepError(f"{folder / INDEX}: not JSON ({error}).") from error
    entries = []
    try:
        for shard in index["shards"]:
            if shard["format"] != "mds" or shard["compression"]:
                kind = f"{shard['format']}, compression {shard['compression']}"
                raise PrepError(f"{folder}: shards are {kind}; expected mds without compression.")
            columns = list(zip(shard["column_names"], shard["column_encodings"], shard["column_sizes"], strict=True))
            samples, name = shard["samples"], shard["raw_data"]["basename"]
            if not (_is_count(samples) and isinstance(name, str) and all(map(_is_column, columns))):
                raise ValueError(f"got {columns} of {samples} samples in {name}")
            entries.append(ShardEntry(folder / name, samples, columns))
    except PrepError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise PrepError(f"{folder / INDEX}: not an index of MDS shards ({what}); prepare the shards again.") from error
    return entries


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _is_column(column: tuple[object, object, object]) -> bool:
    name, encoding, size = column
    return isinstance(name, str) and isinstance(encoding, str) and (size is None or _is_count(size))


def read_samples(entry: ShardEntry, first: int = 0, count: int | None = None) -> Iterator[dict[str, bytes]]:
    """Samples of a shard, from `first` on, as the bytes of each column."""
    last = entry.samples if count is None else min(first + count, entry.samples)
    with open(entry.path, "rb") as file:
        file.seek(4 + 4 * first)
        head = file.read(4 * (last - first + 1))
        offsets = np.frombuffer(head[: len(head) // 4 * 4], dtype="<u4").tolist()
        if len(offsets) != last - first + 1:
            raise PrepError(_damaged(entry, "its list of samples is cut short"))
        for start, end in itertools.pairwise(offsets):
            file.seek(start)
            content = file.read(max(end - start, 0))
            try:
                sample = _split(content, entry.columns)
            except (ValueError, StopIteration) as error:
                raise PrepError(_damaged(entry, "a sample has no columns")) from error
            if len(content) != end - start:
                raise PrepError(_damaged(entry, "a sample is cut short"))
            yield sample


def _damaged(entry: ShardEntry, what: object) -> str:
    return f"{entry.path} is damaged ({what}); `python -m data_prep.verify` tells which files are."


def decode_array(content: bytes, encoding: str) -> Ids:
    """An `ndarray:<dtype>` column.

    Raises:
        PrepError: it is damaged.
    """
    try:
        dtype = np.dtype(encoding.split(":")[1]).newbyteorder("<")
        axes, width = content[0] >> 2, _WIDTHS[content[0] & 3]
        head = 1 + axes * width.itemsize
        shape = np.frombuffer(content[1:head], dtype=width)
        return np.frombuffer(content, dtype=dtype, offset=head).reshape(shape.tolist())
    except (ValueError, IndexError, TypeError) as error:
        what = f"a sample is no {encoding} ({error})"
        raise PrepError(f"a shard is damaged: {what}; `python -m data_prep.verify` tells which.") from error


def token_stream(entries: list[ShardEntry]) -> Iterator[Ids]:
    """The ids of each sample of pretraining shards, in order.

    Raises:
        PrepError: shards without a column of tokens.
    """
    for entry in entries:
        encodings = {name: encoding for name, encoding, _ in entry.columns}
        if "tokens" not in encodings:
            names = ", ".join(encodings)
            raise PrepError(f"{entry.path}: columns {names}; expected tokens, as shards for pretraining have.")
        for sample in read_samples(entry):
            encoding = encodings["tokens"]
            if encoding.startswith("ndarray"):
                yield decode_array(sample["tokens"], encoding)
            else:
                try:
                    yield np.frombuffer(sample["tokens"], dtype="<i8")  # bytes: LLM Foundry's older shards
                except ValueError as error:
                    raise PrepError(_damaged(entry, f"a sample is no int64 ids: {error}")) from error


def _split(sample: bytes, columns: list[tuple[str, str, int | None]]) -> dict[str, bytes]:
    at = 4 * sum(size is None for _, _, size in columns)
    sizes: Iterator[Any] = iter(np.frombuffer(sample[:at], dtype="<u4").tolist())
    found = {}
    for name, _, fixed in columns:
        size = next(sizes) if fixed is None else fixed
        found[name] = sample[at : at + size]
        at += size
    return found
