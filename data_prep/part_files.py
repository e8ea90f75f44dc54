"""A finished part on disk: a folder below the staging folder, there as a whole or not at all.

parts/00012/main.ids          ids of the main split's documents, one after another, separators included
parts/00012/held.ids          those of the held-out documents
parts/00012/held.jsonl        their rows
parts/00012/documents         one record a document: DOCUMENT, and what de-duplication wants
parts/00012/rejected.jsonl    rows that are no document
parts/00012/part.json         PartFacts
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.durable import flush, write_durably

MAIN, HELD = "main", "held"
FACTS = "part.json"
TABLE = "documents"
ROWS = "held.jsonl"
REJECTS = "rejected.jsonl"
DOCUMENT = [("held", "u1"), ("tokens", "<u8"), ("bytes", "<u8")]  # tokens: separators included; bytes: of the text
HASH = ("hash", "<u8", (2,))  # the first 16 bytes of the text's SHA-256
SIGNATURES = 128  # hash functions of a MinHash signature
SIGNATURE = ("signature", "<u4", (SIGNATURES,))
_BLOCK_RECORDS = 1 << 13


@dataclass
class PartFacts:
    """What a part holds. `tokens`, `documents` and `text_bytes` are by MAIN and HELD."""

    rows: list[int] = field(default_factory=list)  # of each segment, rejected ones included
    sha256: dict[str, str] = field(default_factory=dict)  # of the sources that lie in it whole, by their number
    documents: dict[str, int] = field(default_factory=lambda: {MAIN: 0, HELD: 0})
    text_bytes: dict[str, int] = field(default_factory=lambda: {MAIN: 0, HELD: 0})
    tokens: dict[str, int] = field(default_factory=lambda: {MAIN: 0, HELD: 0})
    rejected: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # documents that a filter took, by its name
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of the part's other files


def table_type(with_hashes: bool, with_signatures: bool) -> np.dtype[Any]:
    """The type of a record of TABLE."""
    return np.dtype([*DOCUMENT, *([HASH] if with_hashes else []), *([SIGNATURE] if with_signatures else [])])


def part_folder(parts: Path, number: int) -> Path:
    return parts / f"{number:06}"


def new_folder(parts: Path, number: int) -> Path:
    """An empty folder for one attempt at a part, which no other process writes in."""
    folder = parts / f".{number:06}-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir()
    return folder


def finish_part(parts: Path, number: int, folder: Path, facts: PartFacts) -> None:
    """Give the folder its final name, once everything in it is on the disk."""
    for path in sorted(folder.iterdir()):
        facts.sizes[path.name] = path.stat().st_size
        flush(path)
    write_durably(folder / FACTS, json.dumps(dataclasses.asdict(facts)).encode())
    final = part_folder(parts, number)
    try:
        os.rename(folder, final)
    except OSError:
        if load_part(parts, number) is not None:  # another process, of a run that was killed, was faster
            shutil.rmtree(folder, ignore_errors=True)
            return
        if not final.is_dir():
            raise
        shutil.rmtree(final)  # it was whole once
        os.rename(folder, final)


def load_part(parts: Path, number: int) -> PartFacts | None:
    """A finished part, or None where there is none or a file of it is cut short."""
    folder = part_folder(parts, number)
    try:
        facts = PartFacts(**json.loads((folder / FACTS).read_bytes()))
        whole = all((folder / name).stat().st_size == size for name, size in facts.sizes.items())
    except (OSError, ValueError, TypeError):
        return None
    return facts if whole else None


@dataclass(frozen=True)
class TableBlock:
    """Some of the records of a part's documents, in order."""

    part: int
    first: int  # the number of the first document, counted through all parts
    offsets: dict[str, int]  # where their ids begin in the part's, by MAIN and HELD
    records: npt.NDArray[Any]

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Of the documents, counted through all parts."""
        return np.arange(self.first, self.first + len(self.records))


class DocumentTables:
    """The records of all documents of `count` parts."""

    def __init__(self, parts: Path, count: int, kind: np.dtype[Any]):
        self._parts = parts
        self._kind = kind
        sizes = [(part_folder(parts, number) / TABLE).stat().st_size for number in range(count)]
        self._starts = np.cumsum([0, *(size // kind.itemsize for size in sizes)])

    @property
    def documents(self) -> int:
        return int(self._starts[-1])

    def blocks(self) -> Iterator[TableBlock]:
        """All records, in order. Memory: a few MiB."""
        for part, first in enumerate(self._starts[:-1].tolist()):
            offsets = {MAIN: 0, HELD: 0}
            with open(part_folder(self._parts, part) / TABLE, "rb") as file:
                while len(records := np.fromfile(file, dtype=self._kind, count=_BLOCK_RECORDS)):
                    yield TableBlock(part, first, dict(offsets), records)
                    first += len(records)
                    held = int(records["tokens"][records["held"] == 1].sum())
                    offsets[HELD] += held
                    offsets[MAIN] += int(records["tokens"].sum()) - held

    def signatures(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """(n, SIGNATURES): of documents that are given by their numbers."""
        values = np.empty((len(documents), SIGNATURES), dtype=np.uint32)
        parts = np.searchsorted(self._starts, documents, side="right") - 1
        assert self._kind.fields is not None
        at = (documents - self._starts[:-1][parts]) * self._kind.itemsize + self._kind.fields["signature"][1]
        for part in np.unique(parts).tolist():
            with open(part_folder(self._parts, part) / TABLE, "rb", buffering=0) as file:  # mapped it would be held
                for place in np.flatnonzero(parts == part).tolist():
                    file.seek(at[place])
                    file.readinto(values[place])  # type: ignore[arg-type]
        return values
