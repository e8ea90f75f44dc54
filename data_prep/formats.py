"""Readers of the other formats: a parquet file's rows, and a text file as one document."""

from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import orjson

from data_prep.errors import PrepError
from data_prep.long_rows import LONG_ROW, LongDocument, Spool, read_long_text
from data_prep.reading import HashingFile, check_unchanged
from data_prep.rows import Document, Rejected, byte_order_mark, json_name
from data_prep.sources import Source

_BATCH_ROWS = 32
_READ_BYTES = 1 << 20  # of a column at once


class TextReader:
    """A .txt file: one document, the whole text; with `spool`, a long one's text goes into a file there."""

    is_whole = True

    def __init__(self, source: Source, text_key: str, spool: Spool | None = None):
        self.source = source
        self._spool = spool
        self.rows_read = 0
        self._text_key = text_key
        self._raw = HashingFile(source.path, hashed=True)

    @property
    def bytes_read(self) -> int:
        return self._raw.count

    @property
    def sha256(self) -> str:
        return self._raw.digest.hexdigest()

    def rows(self) -> Iterator[Document | LongDocument | Rejected]:
        """The one row."""
        if self._spool and self.source.bytes >= LONG_ROW:
            with self._raw as file:
                row = read_long_text(cast(BinaryIO, file), self._text_key, self._spool.folder, is_whole_file=True)
            check_unchanged(self.source)
            self.rows_read = 1
            yield row
            return
        with self._raw as file:
            content = file.readall()
        check_unchanged(self.source)
        self.rows_read = 1
        if mark := byte_order_mark(content):
            yield Rejected(1, mark)
            return
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as bad:
            what = f"not UTF-8: byte 0x{content[bad.start]:02x} at byte {bad.start + 1} of the text ({bad.reason})"
            yield Rejected(1, what)
            return
        del content
        if text:
            yield Document(1, text, orjson.dumps({self._text_key: text}))
        else:
            yield Rejected(1, "the file is empty")


class ParquetReader:
    """The rows of the row groups that begin at bytes [start, end) of a parquet file.

    A document's row is an object of the text alone, or of all columns where `all_fields` is set.

    Raises:
        PrepError: a file that is no parquet file or has no such column.
    """

    is_whole = False  # its bytes are not read in order, so not hashed on the way

    def __init__(
        self, source: Source, text_key: str, start: int, end: int, all_fields: bool, spool: Spool | None = None
    ):
        self.source = source
        self._spool = spool
        self.rows_read = 0
        self._text_key = text_key
        self._range = range(start, end)
        self._all_fields = all_fields
        self._raw = HashingFile(source.path, hashed=False)

    @property
    def bytes_read(self) -> int:
        return min(self._raw.count, len(self._range))

    @property
    def sha256(self) -> str:
        raise AssertionError("a parquet file is hashed by a task of its own")

    def rows(self) -> Iterator[Document | LongDocument | Rejected]:
        """Every row in order. Memory: 32 rows; a row twice, as pyarrow decodes it."""
        import pyarrow  # only here: 0.1 s
        import pyarrow.parquet

        try:
            with self._raw:
                raw = pyarrow.PythonFile(self._raw, mode="r")
                with pyarrow.parquet.ParquetFile(raw, buffer_size=_READ_BYTES) as file:
                    yield from self._rows(file)
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error).splitlines()[0]
            raise PrepError(f"{self.source.path}: not a parquet file that can be read ({reason}).") from error
        check_unchanged(self.source)

    def _rows(self, file: Any) -> Iterator[Document | LongDocument | Rejected]:
        import pyarrow

        names = file.schema_arrow.names
        if self._text_key not in names:
            listed = ", ".join(names[:8])
            raise PrepError(f"{self.source.path}: no column {self._text_key!r} (--text-key); its columns: {listed}.")
        groups = [number for number in range(file.num_row_groups) if _start(file.metadata, number) in self._range]
        columns = names if self._all_fields else [self._text_key]
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns) if groups else ():
            for place, value in enumerate(batch.column(columns.index(self._text_key))):
                self.rows_read += 1
                content = value.as_buffer() if hasattr(value, "as_buffer") else None
                if self._spool and not self._all_fields and content is not None and content.size >= LONG_ROW:
                    long = read_long_text(
                        cast(BinaryIO, pyarrow.BufferReader(content)), self._text_key, self._spool.folder
                    )
                    yield long._replace(line=self.rows_read)
                    continue
                try:
                    text = value.as_py()
                    if isinstance(text, bytes):
                        text = text.decode("utf-8")
                except Exception as error:  # whatever Arrow, and what it asks about times, says of a value
                    yield Rejected(self.rows_read, _unreadable(self._text_key, error))
                    continue
                if not isinstance(text, str):
                    yield Rejected(self.rows_read, f"{self._text_key!r} is {json_name(text)}, expected a string")
                elif not text:
                    yield Rejected(self.rows_read, f"{self._text_key!r} is empty")
                else:
                    yield self._document(text, batch, place) if self._all_fields else self._row(text, {})

    def _document(self, text: str, batch: Any, place: int) -> Document | Rejected:
        """A row with all its fields."""
        fields = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                fields[name] = column[place].as_py()
            except Exception as error:
                return Rejected(self.rows_read, _unreadable(name, error))
        return self._row(text, fields)

    def _row(self, text: str, fields: dict[str, Any]) -> Document:
        values = {**fields, self._text_key: text}
        return Document(self.rows_read, text, orjson.dumps(values, default=str), values if self._all_fields else None)


def _unreadable(name: str, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"{name!r} is not UTF-8 ({error.reason})"
    return f"{name!r} cannot be read ({type(error).__name__}: {error})"


def _start(metadata: Any, number: int) -> int:
    """The byte at which a row group begins."""
    group = metadata.row_group(number)
    columns = [group.column(place) for place in range(group.num_columns)]
    return min(
        column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset for column in columns
    )
