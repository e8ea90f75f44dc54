"""The reader for each format."""

from collections.abc import Iterator
from typing import Protocol

from data_prep.formats import ParquetReader, TextReader
from data_prep.long_rows import LongDocument, Spool
from data_prep.reading import SourceReader
from data_prep.rows import Document, Rejected
from data_prep.sources import Source


class Reader(Protocol):
    """Reads the rows of a range of one source, once."""

    rows_read: int

    @property
    def is_whole(self) -> bool:
        """Whether it reads the whole source in order, and so knows its SHA-256 at the end."""
        ...

    @property
    def bytes_read(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    def rows(self) -> Iterator[Document | LongDocument | Rejected]: ...


def open_reader(
    source: Source,
    text_key: str,
    start: int = 0,
    end: int | None = None,
    all_fields: bool = False,
    spool: Spool | None = None,
) -> Reader:
    """What reads the rows of a source that begin at bytes [start, end).

    Args:
        all_fields: a document's row has all that the source says of it, also where that costs more (parquet).
        spool: where documents go that are too long to hold, which are then LongDocuments; None: each is a Document.
    """
    if source.name.endswith(".txt"):
        return TextReader(source, text_key, spool)
    if source.name.endswith(".parquet"):
        return ParquetReader(source, text_key, start, source.bytes if end is None else end, all_fields, spool)
    return SourceReader(source, text_key, start, end, spool)
