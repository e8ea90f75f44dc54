"""Which documents go into a split, and in what order: the extents of its stream, written into a file.

Documents are numbered in the order of the input. What is asked of all of them at once is sorted on the disk, so that
memory does not grow with their number.
"""

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.curation import EXACT, NEAR
from data_prep.extents import ExtentWriter, extents_name
from data_prep.near_duplicates import DUPLICATE, mark_near_duplicates
from data_prep.part_files import HELD, MAIN, DocumentTables, PartFacts
from data_prep.sorting import Sorter

KEPT_HELD = "held.kept"  # a byte a held-out document: whether it is kept

_STATES = "states"  # a byte a document: zero, or why it is left out
_LEFT_OUT = {EXACT: DUPLICATE + 1, NEAR: DUPLICATE}
_HASHED = np.dtype([("high", ">u8"), ("low", ">u8"), ("document", ">u8")])
_PLACED = np.dtype([("key", ">u8"), ("place", ">u8"), ("part", ">u4"), ("offset", ">u8"), ("tokens", ">u8")])


@dataclass
class SplitContent:
    """What a split will hold."""

    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0


@dataclass
class Ordered:
    """What both splits will hold, and how many documents are left out as duplicates."""

    splits: dict[str, SplitContent]
    left_out: dict[str, int] = field(default_factory=dict)


def order_by_part(facts: Sequence[PartFacts], folder: Path) -> Ordered:
    """Everything, in the order of the input; the extents go into `folder`."""
    splits = {}
    for split in (MAIN, HELD):
        with ExtentWriter(folder / extents_name(split)) as extents:
            extents.add(np.arange(len(facts)), 0, [part.tokens[split] for part in facts])
        splits[split] = SplitContent(
            tokens=extents.tokens,
            documents=sum(part.documents[split] for part in facts),
            text_bytes=sum(part.text_bytes[split] for part in facts),
        )
    return Ordered(splits)


def order_by_document(
    tables: DocumentTables, folder: Path, dedup: bool, similarity: float | None, shuffle_seed: int | None
) -> Ordered:
    """Documents without duplicates, the first of each kept; the main split shuffled, if a seed is given.

    The extents and KEPT_HELD go into `folder`. Disk: up to 65 bytes a document there, and what `mark_near_duplicates`
    says. Memory: what a Sorter has, and a mapped file of a byte a document, which the system may write out.
    """
    states = np.memmap(folder / _STATES, dtype=np.uint8, mode="w+", shape=max(tables.documents, 1))
    if dedup:
        _mark_exact_duplicates(tables, states, folder)
    if similarity is not None:
        undecided = mark_near_duplicates(tables, states, similarity, folder)
        if undecided:
            what = "of templates with too many alike are kept, not compared with all before them"
            print(f"note: --near-dedup: {undecided:,} documents {what}", file=sys.stderr)
    wanted = {EXACT: dedup, NEAR: similarity is not None}
    left_out = {name: _count(states, _LEFT_OUT[name]) for name, asked in wanted.items() if asked}
    return Ordered(_write(tables, states, folder, shuffle_seed), left_out)


def shuffle_keys(first: int, count: int, seed: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 of seed and place, for `count` places from `first` on: sorted by these, the places are shuffled.

    Not NumPy's generator, whose permutations may change with its version.
    """
    mask = (1 << 64) - 1
    state = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64((seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & mask)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _mark_exact_duplicates(tables: DocumentTables, states: npt.NDArray[np.uint8], folder: Path) -> None:
    sorter = Sorter(_HASHED, folder)
    for block in tables.blocks():
        hashed = np.empty(len(block.records), dtype=_HASHED)
        hashed["high"], hashed["low"] = block.records["hash"].T
        hashed["document"] = block.numbers
        sorter.add(hashed)
    last: npt.NDArray[Any] = np.empty(0, dtype=_HASHED)
    for piece in sorter.sorted():
        both = np.concatenate([last, piece], dtype=_HASHED)
        same = (both["high"][1:] == both["high"][:-1]) & (both["low"][1:] == both["low"][:-1])
        states[both["document"][1:][same]] = _LEFT_OUT[EXACT]
        last = both[-1:]


def _write(
    tables: DocumentTables, states: npt.NDArray[np.uint8], folder: Path, shuffle_seed: int | None
) -> dict[str, SplitContent]:
    """Write the extents and KEPT_HELD."""
    splits = {MAIN: SplitContent(), HELD: SplitContent()}
    sorter = Sorter(_PLACED, folder)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ExtentWriter(folder / extents_name(split))) for split in splits}
        kept_held = stack.enter_context(open(folder / KEPT_HELD, "wb"))
        for block in tables.blocks():
            records, held = block.records, block.records["held"] == 1
            kept = states[block.first : block.first + len(records)] == 0
            kept_held.write(kept[held].tobytes())
            for split, content in splits.items():
                here = held if split == HELD else ~held
                tokens = records["tokens"][here]
                offsets = block.offsets[split] + np.cumsum(tokens) - tokens
                wanted = kept[here]
                placed = np.empty(int(wanted.sum()), dtype=_PLACED)
                placed["part"], placed["offset"], placed["tokens"] = block.part, offsets[wanted], tokens[wanted]
                if split == MAIN and shuffle_seed is not None:
                    placed["key"] = shuffle_keys(content.documents, len(placed), shuffle_seed)
                    placed["place"] = np.arange(content.documents, content.documents + len(placed))
                    sorter.add(placed)
                else:
                    _add(writers[split], [placed])
                content.documents += len(placed)
                content.text_bytes += int(records["bytes"][kept & here].sum())
        _add(writers[MAIN], sorter.sorted())
    for split, content in splits.items():
        content.tokens = writers[split].tokens
    return splits


def _add(writer: ExtentWriter, pieces: Iterable[npt.NDArray[Any]]) -> None:
    for piece in pieces:
        writer.add(piece["part"], piece["offset"], piece["tokens"])


def _count(states: npt.NDArray[np.uint8], state: int) -> int:
    step = 1 << 24
    return sum(int(np.count_nonzero(states[at : at + step] == state)) for at in range(0, len(states), step))
