"""One split while it is made: documents go in, shards come out."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import PrepError
from data_prep.manifest import FileRecord
from data_prep.reading import Document
from data_prep.tokenising import Engine, Separators
from data_prep.windows import WindowCutter, join_documents
from data_prep.writing import MdsWriter, WrittenShard

DOCUMENTS = "documents.jsonl"
_BATCH_CHARACTERS = 1 << 20  # text given to the engine at once, in at most so many documents:
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True)
class BuiltSplit:
    """What a finished split holds."""

    documents: int
    text_bytes: int  # in UTF-8
    sequences: int
    tokens: int  # in the sequences
    dropped_tokens: int  # at the end, fewer than one sequence
    shards: list[FileRecord]


class SplitBuilder:
    """Tokenises documents in batches, cuts the ids into sequences and writes them into `folder`.

    Memory: one batch and one shard, whatever the size of the input.

    Args:
        keep_rows: also copy each document's row, as it stands in the source, to `documents.jsonl`.
    """

    def __init__(self, folder: Path, engine: Engine, separators: Separators, seq_len: int, dtype: str, keep_rows: bool):
        folder.mkdir()
        self.folder = folder
        self._documents = 0
        self._text_bytes = 0
        self._engine = engine
        self._separators = separators
        self._cutter = WindowCutter(seq_len, dtype)
        self._writer = MdsWriter(folder, seq_len, dtype)
        self._batch: list[str] = []
        self._batch_characters = 0
        self._rows = open(folder / DOCUMENTS, "wb") if keep_rows else None  # noqa: SIM115 (closed by finish)

    @property
    def tokens(self) -> int:
        """Tokens made so far, separators included."""
        return self._writer.sequences * self._cutter.seq_len + self._cutter.left_over

    def add(self, document: Document) -> None:
        """Add one document."""
        self._documents += 1
        self._text_bytes += len(document.text.encode("utf-8"))
        self._batch.append(document.text)
        self._batch_characters += len(document.text)
        if self._rows is not None:
            self._rows.write(document.row + b"\n")
        if self._batch_characters >= _BATCH_CHARACTERS or len(self._batch) >= _BATCH_DOCUMENTS:
            self._encode_batch()

    def finish(self) -> BuiltSplit:
        """Write what is left, and the index.

        Raises:
            PrepError: not one sequence.
        """
        if self._batch:
            self._encode_batch()
        if self._rows is not None:
            self._rows.close()
        if not self._writer.sequences:
            larger = ", or a larger --holdout" if self._rows is not None else ""
            raise PrepError(
                f"split {self.folder.name!r}: {self._documents:,} documents with {self.tokens:,} tokens are fewer than "
                f"one sequence of {self._cutter.seq_len:,}; give more text, or a shorter --seq-len{larger}."
            )
        shards = self._writer.finish()
        return BuiltSplit(
            documents=self._documents,
            text_bytes=self._text_bytes,
            sequences=self._writer.sequences,
            tokens=self._writer.sequences * self._cutter.seq_len,
            dropped_tokens=self._cutter.left_over,
            shards=[_record(shard) for shard in shards],
        )

    def _encode_batch(self) -> None:
        encoded = self._engine.encode(self._batch)
        self._batch, self._batch_characters = [], 0
        ids = join_documents(encoded.ids, encoded.lengths, self._separators.before, self._separators.after)
        self._writer.write(self._cutter.push(ids))


def _record(shard: WrittenShard) -> FileRecord:
    return FileRecord(name=shard.name, bytes=shard.bytes, sha256=shard.sha256, samples=shard.samples)
