"""A sample of the input on which engines are compared: the first documents of sources spread over the list."""

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.long_rows import LongDocument
from data_prep.readers import open_reader
from data_prep.reading import sample_bytes, sample_rows
from data_prep.rows import Document, Rejected, parse_row
from data_prep.sources import Source

_SOURCES = 8
_DOCUMENTS = 8  # of each
_CHARACTERS = 8192  # of each
_READ_BYTES = 1 << 18  # of each source, so that a long line costs nothing


def sample_texts(sources: Sequence[Source], text_key: str) -> list[str]:
    """Beginnings of documents, always the same ones; rows that are no document are passed over."""
    chosen = sources[:: max(len(sources) // _SOURCES, 1)][:_SOURCES]
    texts = []
    for source in chosen:
        rows: Iterable[Document | LongDocument | Rejected]
        if source.path.endswith(".txt"):
            rows = [Document(1, sample_bytes(source, _READ_BYTES).decode("utf-8", errors="ignore"), b"")]
        elif source.path.endswith(".parquet"):
            with tempfile.TemporaryDirectory() as folder:
                rows = itertools.islice(open_reader(source, text_key, spool=Path(folder)).rows(), _DOCUMENTS)
                texts += [row.text[:_CHARACTERS] for row in rows if not isinstance(row, Rejected)]
            continue
        else:
            rows = [parse_row(n, line, text_key) for n, line in enumerate(sample_rows(source, _READ_BYTES), 1)]
        texts += [row.text[:_CHARACTERS] for row in rows if isinstance(row, Document)][:_DOCUMENTS]
    return texts
