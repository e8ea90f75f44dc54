"""One part tokenised: the work of one task, on this machine or another."""

import contextlib
import json
import operator
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_prep.curation import DocumentFilter, FilterSettings, digest_pair, signature_of
from data_prep.engines import EngineSettings
from data_prep.errors import PrepError
from data_prep.holdout import is_digest_held_out, sha256_of_text, utf8_size
from data_prep.long_rows import LongDocument, Spool, too_much_to_hold
from data_prep.long_texts import NoPlaceToCut, pieces_of
from data_prep.part_files import HELD, MAIN, REJECTS, ROWS, TABLE, PartFacts, finish_part, new_folder, table_type
from data_prep.parts import Part
from data_prep.readers import open_reader
from data_prep.rows import Document, Rejected
from data_prep.sources import Source
from data_prep.tokenising import Engine, Separators
from data_prep.windows import join_documents

_BATCH_CHARACTERS = 1 << 20  # of text encoded before its ids are written, in at most so many documents:
_BATCH_DOCUMENTS = 4096
_COPY_BYTES = 1 << 20
_REPORT_S = 0.2


class BadRow(PrepError):
    """A row that is no document, in a run that stops at the first. Its line counts from the start of its segment."""

    def __init__(self, part: int, segment: int, line: int, reason: str):
        super().__init__(part, segment, line, reason)
        self.part, self.segment, self.line, self.reason = part, segment, line, reason


@dataclass(frozen=True)
class PartSettings:
    """All that decides what a part holds, and nothing else: it travels to the process that makes the part."""

    sources: list[Source]
    engine: EngineSettings
    separators: Separators
    dtype: str
    text_key: str
    skip_bad_rows: bool
    holdout: float  # 0..1
    filters: FilterSettings
    most_held: int  # bytes of a row, or characters of its text, that may be held where they have to be


@dataclass(frozen=True)
class Progress:
    """What a task has done since it last told."""

    bytes: int = 0  # of input as stored
    documents: int = 0
    tokens: int = 0
    rejected: int = 0

    def __add__(self, other: "Progress") -> "Progress":
        return Progress(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: "Progress") -> "Progress":
        return Progress(*map(operator.sub, astuple(self), astuple(other)))


Report = Callable[[Progress], None]


def tokenise_part(settings: PartSettings, part: Part, parts: Path, engine: Engine, report: Report) -> None:
    """Write one part below `parts`.

    Memory: one batch, whatever the size of the part and of its rows; and of a text what lies between two places to cut.

    Raises:
        BadRow: a row that is no document, unless such rows are skipped.
        PrepError, OSError: as reading does.
    """
    folder = new_folder(parts, part.number)
    with contextlib.ExitStack() as files:
        writer = _PartWriter(settings, folder, engine, files)
        last = Progress()
        due_s = time.monotonic() + _REPORT_S
        done = 0
        for place, segment in enumerate(part.segments):
            source, every = settings.sources[segment.source], bool(settings.filters.predicate)
            spool = Spool(folder, settings.most_held)
            reader = open_reader(source, settings.text_key, segment.start, segment.end, every, spool)
            for row in reader.rows():
                refused = row if isinstance(row, Rejected) else writer.add(row)
                if refused:
                    if not settings.skip_bad_rows:
                        raise BadRow(part.number, place, refused.line, refused.reason)
                    writer.reject(place, refused)
                if isinstance(row, LongDocument):
                    row.remove()
                del row
                if time.monotonic() >= due_s:
                    now = writer.progress(done + reader.bytes_read)
                    report(now - last)
                    last, due_s = now, time.monotonic() + _REPORT_S
            done += segment.end - segment.start
            writer.facts.rows.append(reader.rows_read)
            if reader.is_whole:
                writer.facts.sha256[str(segment.source)] = reader.sha256
        writer.flush()
    finish_part(parts, part.number, folder, writer.facts)
    report(writer.progress(part.bytes) - last)


@dataclass
class _Batch:
    """Documents of one split that wait to be encoded."""

    texts: list[str] = field(default_factory=list)
    records: list[int] = field(default_factory=list)  # their places in the table
    characters: int = 0


class _PartWriter:
    """Takes rows and writes the files of a part."""

    def __init__(self, settings: PartSettings, folder: Path, engine: Engine, files: contextlib.ExitStack):
        self.facts = PartFacts()
        self._settings = settings
        self._engine = engine
        self._filter = DocumentFilter(settings.filters)
        self._folder = folder
        self._files = files
        self._open: dict[str, BinaryIO] = {}
        self._batches = {MAIN: _Batch(), HELD: _Batch()}
        self._type = table_type(settings.filters.dedup, settings.filters.near_dedup)
        self._records: list[Any] = []
        self._ids_bytes = np.dtype(settings.dtype).itemsize
        self._added = len(settings.separators.before) + len(settings.separators.after)

    def progress(self, done_bytes: int) -> Progress:
        facts = self.facts
        return Progress(done_bytes, sum(facts.documents.values()), sum(facts.tokens.values()), facts.rejected)

    def reject(self, segment: int, row: Rejected) -> None:
        """Note a row that is no document."""
        self.facts.rejected += 1
        line = {"segment": segment, "line": row.line, "reason": row.reason}
        self._file(REJECTS).write(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def add(self, document: Document | LongDocument) -> Rejected | None:
        """Take a document, unless a filter leaves it out; or say why it cannot be taken."""
        reason = self._filter.by_length(document)
        if reason is None and isinstance(document, LongDocument):
            refused = self._not_to_be_held(document)
            if refused:
                return refused
        reason = reason or self._filter.by_predicate(document)
        if reason:
            self.facts.left_out[reason] = self.facts.left_out.get(reason, 0) + 1
            return None
        if isinstance(document, LongDocument):
            text = document.text
            split = self._note(text.sha256, text.blocks())
            if split == HELD:
                with open(document.row, "rb") as row:
                    shutil.copyfileobj(row, self._file(ROWS), _COPY_BYTES)
                self._file(ROWS).write(b"\n")
            self._encode_long(split, text.blocks(), text.utf8_bytes)
            return None
        self._add_short(document)
        if len(self._records) >= _BATCH_DOCUMENTS:
            self.flush()
        return None

    def _not_to_be_held(self, document: LongDocument) -> Rejected | None:
        """Why more of a document would be in memory at once than may be."""
        most = self._settings.most_held
        size = document.row.stat().st_size
        if self._settings.filters.predicate and size > most:
            what = f"a row of {size / 1e6:,.1f} MB for --filter (--max-chars leaves such out before)"
            return too_much_to_hold(document.line, what, most)
        try:
            for _ in pieces_of(document.text.blocks(), _BATCH_CHARACTERS, self._settings.engine.cuts, most):
                pass
        except NoPlaceToCut:
            what = (
                f"in a text of {document.text.utf8_bytes / 1e6:,.1f} MB a stretch without a place where a token begins"
            )
            return too_much_to_hold(document.line, what, most)
        return None

    def _add_short(self, document: Document) -> None:
        text, filters = document.text, self._settings.filters
        sha256 = sha256_of_text(text) if self._settings.holdout or filters.dedup else b""
        split = self._note(sha256, [text])
        if split == HELD:
            self._file(ROWS).write(document.row + b"\n")
        if self._settings.engine.cuts and len(text) > _BATCH_CHARACTERS:
            self._encode_long(split, [text], utf8_size(text))
            return
        batch = self._batches[split]
        batch.records.append(len(self._records) - 1)
        batch.texts.append(text)
        batch.characters += len(text)
        if batch.characters >= _BATCH_CHARACTERS or len(batch.texts) >= _BATCH_DOCUMENTS:
            self._encode(split)

    def _note(self, sha256: bytes, blocks: Iterable[str]) -> str:
        """Count a document and begin its record, without its sizes; returns its split."""
        holdout = self._settings.holdout
        split = HELD if holdout and is_digest_held_out(sha256, holdout) else MAIN
        self.facts.documents[split] += 1
        hashes = [digest_pair(sha256)] if self._settings.filters.dedup else []
        signatures = [signature_of(blocks)] if self._settings.filters.near_dedup else []
        self._records.append([split == HELD, 0, 0, *hashes, *signatures])
        return split

    def _note_sizes(self, split: str, record: int, tokens: int, size: int) -> None:
        """Complete the record of an encoded document: its tokens, and its bytes in UTF-8."""
        self._records[record][1:3] = tokens, size
        self.facts.tokens[split] += tokens
        self.facts.text_bytes[split] += size

    def flush(self) -> None:
        """Encode and write all that waits."""
        for split in (MAIN, HELD):
            self._encode(split)
        table = np.zeros(len(self._records), dtype=self._type)
        for name, column in zip(self._type.names or (), zip(*self._records, strict=True), strict=False):
            table[name] = column
        self._file(TABLE).write(table.tobytes())
        self._records = []

    def _encode(self, split: str) -> None:
        batch = self._batches[split]
        if not batch.texts:
            return
        ids = self._engine.encode(batch.texts)
        for record, text, document in zip(batch.records, batch.texts, ids, strict=True):
            # Only now, when the engine has asked for the text in UTF-8 and Python keeps it, its size costs little.
            self._note_sizes(split, record, len(document) + self._added, utf8_size(text))
        before, after = self._settings.separators.before, self._settings.separators.after
        joined = join_documents(ids, before, after, self._settings.dtype)
        self._file(f"{split}.ids").write(joined.data.cast("B"))
        self._batches[split] = _Batch()

    def _encode_long(self, split: str, blocks: Iterable[str], size: int) -> None:
        """Encode the newest record's text piece by piece, so that its ids are never in memory as a whole."""
        self._encode(split)  # what waits comes before it
        file, dtype = self._file(f"{split}.ids"), self._settings.dtype
        tokens = self._added
        file.write(np.array(self._settings.separators.before, dtype=dtype).tobytes())
        for piece in pieces_of(blocks, _BATCH_CHARACTERS, self._settings.engine.cuts):
            (ids,) = self._engine.encode([piece])
            tokens += len(ids)
            file.write(ids.astype(dtype).data.cast("B"))
        file.write(np.array(self._settings.separators.after, dtype=dtype).tobytes())
        self._note_sizes(split, len(self._records) - 1, tokens, size)

    def _file(self, name: str) -> BinaryIO:
        if name not in self._open:
            file = open(self._folder / name, "wb")  # noqa: SIM115 (closed by the caller's stack)
            self._open[name] = self._files.enter_context(file)
        return self._open[name]
