"""Near-duplicate documents, by locality-sensitive hashing of their MinHash signatures.

A signature is cut into bands; documents that agree in one whole band are compared, and are near duplicates where the
share of equal hashes is the threshold or more. It estimates the Jaccard similarity of their shingles: those that both
have, as a share of those that the two have together; so a text within a longer one is no near duplicate of it. A
document is left out if it is a near duplicate of one before it that is kept.

So the first of the documents that share a band is kept if that holds in all its bands, and those that are near
duplicates of it are left out; then the same is asked of those that are left, until none is. Each round reads a file
from its beginning to its end, so nothing of it has to be in memory.

Documents of one template, alike but below the threshold, share bands with all others, and a round decides about one or
two of them. So that their time does not grow with the square of their number there are at most 500 rounds; those that
nothing is decided about then are kept. Other documents are decided about in a few rounds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.part_files import SIGNATURES, DocumentTables
from data_prep.sorting import Sorter

DUPLICATE = 1
_BLOCKED = 255  # in some band there is one before it; within a round
_SHARED = np.dtype([("band", ">u8"), ("document", ">u8")])  # band: a hash of which one it is and of what it holds
_BLOCK_RECORDS = 1 << 16
_PAIRS = 1 << 13  # compared at once
_MOST_ROUNDS = 500

States = npt.NDArray[np.uint8]


def mark_near_duplicates(tables: DocumentTables, states: States, threshold: float, folder: Path) -> int:
    """Set the state of near duplicates to DUPLICATE.

    Returns:
        how many documents are kept because the rounds were over.

    Disk: in `folder`, 16 bytes a band of each document for a while, and then of those documents only that share one.

    Args:
        tables: with signatures.
        states: (documents,); looked at are those whose state is 0.
    """
    path, following = folder / "shared", folder / "shared.next"
    _write_shared(tables, states, rows_of_a_band(threshold), path)
    for _ in range(_MOST_ROUNDS):
        if not path.stat().st_size:
            break
        for _, is_first, documents in _bands(path, states):
            states[documents[~is_first]] = _BLOCKED
        for leaders, is_first, documents in _bands(path, states):
            led = ~is_first & (states[leaders] == 0)
            pairs = np.unique(np.stack([leaders[led], documents[led]]), axis=1)
            for start in range(0, pairs.shape[1], _PAIRS):
                first, second = pairs[:, start : start + _PAIRS]
                same = tables.signatures(first) == tables.signatures(second)
                states[second[np.mean(same, axis=1) >= threshold]] = DUPLICATE
        with open(following, "wb") as file:
            for records in _read(path):
                file.write(records[states[_numbers(records)] == _BLOCKED].tobytes())
        for records in _read(following):
            states[_numbers(records)] = 0
        following.rename(path)
    undecided = _count(path, states)
    path.unlink()
    return undecided


def rows_of_a_band(threshold: float) -> int:
    """The most rows a band with which a pair at the threshold still agrees in some band in 19 cases of 20.

    With b bands of r rows the chance is 1 - (1 - threshold^r)^b (Leskovec, Rajaraman, Ullman, section 3.4.2).
    """
    fitting = [r for r in range(1, SIGNATURES + 1) if 1 - (1 - threshold**r) ** (SIGNATURES // r) >= 0.95]
    return max(fitting, default=1)


def _write_shared(tables: DocumentTables, states: States, rows: int, path: Path) -> None:
    """A record for each band of each document that another has too, in order."""
    sorter = Sorter(_SHARED, path.parent)
    for block in tables.blocks():
        free = np.flatnonzero(states[block.first : block.first + len(block.records)] == 0)
        bands = _hash_bands(block.records["signature"][free], rows)  # (n, bands)
        records = np.empty(bands.shape, dtype=_SHARED)
        records["band"] = bands
        records["document"] = block.numbers[free, None]
        sorter.add(records.reshape(-1))
    with open(path, "wb") as file:
        last: npt.NDArray[Any] = np.empty(0, dtype=_SHARED)  # it waits for the one behind it
        last_is_shared = False
        for piece in sorter.sorted():
            records = np.concatenate([last, piece], dtype=_SHARED)  # else its bytes would be swapped
            same = records["band"][1:] == records["band"][:-1]
            shared = np.append(last_is_shared, same) | np.append(same, False)
            file.write(records[:-1][shared[:-1]].tobytes())
            last, last_is_shared = records[-1:], bool(shared[-1])
        file.write(last[: int(last_is_shared)].tobytes())


def _hash_bands(signatures: npt.NDArray[np.uint32], rows: int) -> npt.NDArray[np.uint64]:
    """(n, SIGNATURES) -> (n, bands): 64 bits of each band, with which one it is (steps of FNV-1a, a word at a time)."""
    count = SIGNATURES // rows
    bands = signatures[:, : count * rows].reshape(len(signatures), count, rows).astype(np.uint64)  # (n, bands, rows)
    hashes = np.arange(count, dtype=np.uint64) + np.zeros((len(signatures), 1), dtype=np.uint64)  # (n, bands)
    for row in range(rows):
        hashes = (hashes ^ bands[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _bands(path: Path, states: States) -> Iterator[tuple[Any, Any, Any]]:
    """Of the documents that are not left out, those that share a band, in blocks.

    Yields:
        leaders: (n,) the first document of the band; is_first: (n,) whether it is this one; documents: (n,).
    """
    band: Any = None
    leader = 0
    for records in _read(path):
        records = records[states[_numbers(records)] != DUPLICATE]
        if not len(records):
            continue
        bands, documents = records["band"], _numbers(records)
        is_first = np.append(band is None or bands[0] != band, bands[1:] != bands[:-1])
        starts = np.maximum.accumulate(np.where(is_first, np.arange(len(bands)), -1))
        leaders = np.where(starts >= 0, documents[starts], leader)
        band, leader = bands[-1], int(leaders[-1])
        yield leaders, is_first, documents


def _read(path: Path) -> Iterator[npt.NDArray[Any]]:
    with open(path, "rb") as file:
        while len(records := np.fromfile(file, dtype=_SHARED, count=_BLOCK_RECORDS)):
            yield records


def _count(path: Path, states: States) -> int:
    """How many documents the records are of; their states are 0, before and after."""
    count = 0
    for records in _read(path):
        new = np.unique(_numbers(records))
        new = new[states[new] == 0]
        states[new] = _BLOCKED
        count += len(new)
    for records in _read(path):
        states[_numbers(records)] = 0
    return count


def _numbers(records: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return records["document"].astype(np.int64)
