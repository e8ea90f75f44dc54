"""Which documents go into a split, and in what order: the extents of the parts' ids that make up its stream.

An extent is a run of ids of one part. Without shuffling and de-duplication there is one a part; else one a document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.curation import EXACT, NEAR
from data_prep.near_duplicates import NearDuplicates
from data_prep.part_files import HELD, MAIN, PartFacts, part_folder, read_table, table_type
from data_prep.windows import Ids

EXTENT = np.dtype([("part", "<u4"), ("offset", "<u8"), ("tokens", "<u8"), ("end", "<u8")])  # end: in the stream
Extents = npt.NDArray[Any]


@dataclass
class SplitContent:
    """What a split will hold."""

    extents: Extents
    documents: int
    text_bytes: int

    @property
    def tokens(self) -> int:
        return int(self.extents["end"][-1]) if len(self.extents) else 0


@dataclass
class Ordered:
    """Both splits, the documents left out as duplicates, and which held-out ones of each part are kept."""

    splits: dict[str, SplitContent]
    left_out: dict[str, int] = field(default_factory=dict)
    kept_held: dict[int, npt.NDArray[np.bool_]] | None = None  # by part; None: all


def order_by_part(facts: Sequence[PartFacts]) -> Ordered:
    """Everything, in the order of the input."""
    splits = {}
    for split in (MAIN, HELD):
        extents = np.zeros(len(facts), dtype=EXTENT)
        extents["part"] = np.arange(len(facts))
        extents["tokens"] = [part.tokens[split] for part in facts]
        splits[split] = SplitContent(
            extents=_with_ends(extents[extents["tokens"] > 0]),
            documents=sum(part.documents[split] for part in facts),
            text_bytes=sum(part.text_bytes[split] for part in facts),
        )
    return Ordered(splits)


def order_by_document(
    parts: Path, count: int, dedup: bool, near: NearDuplicates | None, shuffle_seed: int | None
) -> Ordered:
    """Documents without duplicates, the first of each kept; the main split shuffled, if a seed is given.

    Memory: 37 bytes a document; 16 more to find exact duplicates, near ones as `NearDuplicates` says.
    """
    kind = table_type(dedup, near is not None)
    keep = _unique(parts, count, kind) if dedup else None
    pieces: dict[str, list[Extents]] = {MAIN: [], HELD: []}
    documents, text_bytes = {MAIN: 0, HELD: 0}, {MAIN: 0, HELD: 0}
    kept_held: dict[int, npt.NDArray[np.bool_]] = {}
    left_out = {name: 0 for name, wanted in ((EXACT, dedup), (NEAR, near is not None)) if wanted}
    seen = 0
    for number in range(count):
        table = read_table(parts, number, kind)
        kept = np.ones(len(table), dtype=bool) if keep is None else keep[seen : seen + len(table)].copy()
        seen += len(table)
        if dedup:
            left_out[EXACT] += int(np.sum(~kept))
        if near is not None:
            for place in np.flatnonzero(kept).tolist():
                if near.is_duplicate(table["signature"][place]):
                    kept[place] = False
                    left_out[NEAR] += 1
        for split in (MAIN, HELD):
            here = table["held"] == (split == HELD)
            extents: Extents = np.zeros(int(here.sum()), dtype=EXTENT)
            extents["part"] = number
            extents["tokens"] = table["tokens"][here]
            extents["offset"] = np.cumsum(extents["tokens"]) - extents["tokens"]
            pieces[split].append(extents[kept[here]])
            documents[split] += int(np.sum(kept & here))
            text_bytes[split] += int(table["bytes"][kept & here].sum())
        kept_held[number] = kept[table["held"] == 1]
    splits = {}
    for split, found in pieces.items():
        stream: Extents = np.concatenate(found) if found else np.zeros(0, dtype=EXTENT)
        if split == MAIN and shuffle_seed is not None:
            stream = stream[shuffled(len(stream), shuffle_seed)]
        splits[split] = SplitContent(_with_ends(stream), documents[split], text_bytes[split])
    return Ordered(splits, left_out, kept_held if keep is not None or near is not None else None)


def shuffled(count: int, seed: int) -> npt.NDArray[np.int64]:
    """A permutation of `count` that depends on the seed alone: places sorted by SplitMix64 of seed and place.

    Not NumPy's generator, whose permutations may change with its version.
    """
    mask = (1 << 64) - 1
    state = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64((seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & mask)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable")


def read_stream(
    parts: Path, split: str, extents: Extents, dtype: str, start: int, end: int, block: int
) -> Iterator[Ids]:
    """Ids [start, end) of a split's stream, in blocks of `block` ids (the last one shorter)."""
    itemsize = np.dtype(dtype).itemsize
    files: dict[int, Any] = {}
    place = int(np.searchsorted(extents["end"], start, side="right"))
    try:
        for first in range(start, end, block):
            ids = np.empty(min(block, end - first), dtype=dtype)
            at = first
            while at < first + len(ids):
                part, offset, tokens, stop = (int(value) for value in extents[place])
                skipped = at - (stop - tokens)
                count = min(stop, first + len(ids)) - at
                if part not in files:
                    if len(files) >= 256:  # open files
                        files.pop(next(iter(files))).close()
                    files[part] = open(part_folder(parts, part) / f"{split}.ids", "rb", buffering=0)  # noqa: SIM115
                files[part].seek((offset + skipped) * itemsize)
                _fill(files[part], ids[at - first : at - first + count])
                at += count
                place += at == stop
            yield ids
    finally:
        for file in files.values():
            file.close()


def _fill(file: Any, ids: Ids) -> None:
    view = ids.data.cast("B")
    while len(view):
        got = file.readinto(view)
        if not got:
            raise OSError(f"{file.name} is shorter than when it was written")
        view = view[got:]


def _with_ends(extents: Extents) -> Extents:
    extents["end"] = np.cumsum(extents["tokens"])
    return extents


def _unique(parts: Path, count: int, kind: np.dtype[Any]) -> npt.NDArray[np.bool_]:
    """For each document of all parts, whether it is the first with its text."""
    tables = [read_table(parts, number, kind)["hash"] for number in range(count)]
    hashes = np.concatenate(tables) if tables else np.zeros((0, 2), dtype="<u8")
    order = np.lexsort((np.arange(len(hashes)), hashes[:, 1], hashes[:, 0]))
    ranked = hashes[order]
    first = np.ones(len(hashes), dtype=bool)
    first[1:] = np.any(ranked[1:] != ranked[:-1], axis=1)
    keep = np.zeros(len(hashes), dtype=bool)
    keep[order] = first
    return keep
