"""A sample of the input on which engines are compared: the first documents of sources spread over the list."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.long_rows import LONG_ROW, LongDocument, Spool
from data_prep.readers import open_reader
from data_prep.reading import sample_bytes, sample_rows
from data_prep.rows import Document, Rejected, parse_row
from data_prep.sources import Source

_SOURCES = 8
_DOCUMENTS = 8  # of each
_CHARACTERS = 8192  # of each
_READ_BYTES = 1 << 18  # of each source, in which a line that is not too long ends


def sample_texts(sources: Sequence[Source], text_key: str) -> list[str]:
    """Beginnings of documents, always the same ones; rows that are no document are passed over."""
    chosen = sources[:: max(len(sources) // _SOURCES, 1)][:_SOURCES]
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:  # of long rows
        spool = Spool(Path(folder), most_held=LONG_ROW)
        for source in chosen:
            documents = (row for row in _rows(source, text_key, spool) if not isinstance(row, Rejected))
            texts += [document.text[:_CHARACTERS] for document in itertools.islice(documents, _DOCUMENTS)]
    return texts


def _rows(source: Source, text_key: str, spool: Spool) -> Iterator[Document | LongDocument | Rejected]:
    """The first rows of a source, or as much of one as is read of it."""
    if source.name.endswith(".parquet"):
        yield from itertools.islice(open_reader(source, text_key, spool=spool).rows(), _DOCUMENTS)
    elif source.name.endswith(".txt"):
        yield Document(1, sample_bytes(source, _READ_BYTES).decode("utf-8", errors="ignore"), b"")
    else:
        lines = sample_rows(source, _READ_BYTES)
        for number, line in enumerate(lines, 1):
            yield parse_row(number, line, text_key)
        if not lines:  # the first is longer, as those of books are
            yield from itertools.islice(open_reader(source, text_key, spool=spool).rows(), 1)
