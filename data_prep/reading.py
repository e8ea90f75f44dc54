"""Bytes on disk into documents, a row at a time, or the reason that a row is not a document."""

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import orjson

from data_prep.errors import PrepError
from data_prep.sources import Source
from data_prep.storage import FileState, open_file, state_of

_BLOCK = 1 << 20  # bytes a read
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "starts with a UTF-8 byte order mark; save the file without it",
    b"\xff\xfe": "starts with a UTF-16 byte order mark; expected UTF-8",
    b"\xfe\xff": "starts with a UTF-16 byte order mark; expected UTF-8",
}


class Document(NamedTuple):
    """One good row: `text` as decoded, `row` the line's bytes as they stand in the file, without the line's end."""

    line: int  # counts from 1
    text: str
    row: bytes

    def fields(self) -> dict[str, Any]:
        """The whole object that the row is."""
        return cast("dict[str, Any]", orjson.loads(self.row))


class Rejected(NamedTuple):
    """One bad row and why."""

    line: int  # counts from 1
    reason: str


class SourceReader:
    """Reads the rows of one source that begin at bytes [start, end), once; a whole source is hashed on the way.

    Args:
        end: None: to the end.

    Raises:
        PrepError: compressed data that is damaged or cut short, or a file that changed while it was read.
        OSError: what the operating system says.
    """

    def __init__(self, source: Source, text_key: str, start: int = 0, end: int | None = None):
        self.source = source
        self._text_key = text_key
        self._start = start
        self._end = source.bytes if end is None else end
        self.is_whole = start == 0 and self._end == source.bytes
        self.rows_read = 0
        self._raw = HashingFile(source.path, hashed=self.is_whole)

    @property
    def bytes_read(self) -> int:
        """Bytes of the file read so far: compressed ones, where it is compressed."""
        return self._raw.count

    @property
    def sha256(self) -> str:
        """SHA-256 of the file; only after `rows` has ended, and only of a whole one."""
        assert self.is_whole
        return self._raw.digest.hexdigest()

    def rows(self) -> Iterator[Document | Rejected]:
        """Every row in order; lines count from the start of the range. Memory: one line."""
        for row in self.lines():
            yield parse_row(self.rows_read, row, self._text_key)
            del row

    def lines(self) -> Iterator[bytes]:
        """The lines as they stand in the file, without their ends; `rows_read` counts them."""
        try:
            with self._raw, self._lines() as lines:
                for line in lines:
                    self.rows_read += 1
                    row = line.rstrip(b"\r\n")
                    del line  # a row may be large: hold it once
                    yield row
                    del row
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise PrepError(self._damage(self.rows_read, error)) from error
        except OSError as error:
            if error.errno is None:  # pyarrow's word for damaged zstd data
                raise PrepError(self._damage(self.rows_read, error)) from error
            raise
        check_unchanged(self.source)

    @contextlib.contextmanager
    def _lines(self) -> Iterator[Iterator[bytes]]:
        with _decompressed(self._raw, self.source.path) as lines:
            yield iter(lines) if self.is_whole else self._lines_in_range(lines)

    def _lines_in_range(self, file: BinaryIO) -> Iterator[bytes]:
        """The lines that begin in the range. No more of a line that began before is read than lies in the range."""
        at = max(self._start - 1, 0)
        file.seek(at)
        while self._start and at < self._end:
            piece = file.readline(min(_BLOCK, self._end - at))
            at += len(piece)
            if not piece or piece.endswith(b"\n"):
                break
        while at < self._end:
            line = file.readline()
            if not line:
                break
            at += len(line)
            yield line

    def _damage(self, line: int, error: BaseException) -> str:
        return f"{self.source.path}:{line + 1}: the compressed data is damaged or cut short ({error}); fetch it again."


def sample_rows(source: Source, read_bytes: int) -> list[bytes]:
    """The whole lines in the first `read_bytes` of the text of a source; damaged data ends the list."""
    raw = HashingFile(source.path, hashed=False)
    text = b""
    with contextlib.suppress(EOFError, zlib.error, OSError), raw, _decompressed(raw, source.path) as file:
        text = file.read(read_bytes)
    lines = text.split(b"\n")
    return lines if len(text) < read_bytes else lines[:-1]


def check_unchanged(source: Source) -> None:
    """Raises PrepError where a source is no longer what it was when the run began."""
    if state_of(source.path) != FileState(source.bytes, source.mtime_ns):
        raise PrepError(f"{source.path} changed while it was read; run again when nothing writes to it.")


def parse_row(number: int, line: bytes, text_key: str) -> Document | Rejected:
    """The document that a line of JSON Lines holds, or why it holds none."""
    row = line.rstrip(b"\r\n")
    value = parse_object(number, row)
    if isinstance(value, Rejected):
        return value
    if text_key not in value:
        keys = ", ".join(sorted(value)[:8]) or "none"
        return Rejected(number, f"no key {text_key!r} (--text-key); its keys: {keys}")
    text = value[text_key]
    if not isinstance(text, str):
        return Rejected(number, f"{text_key!r} is {json_name(text)}, expected a string")
    if not text:
        return Rejected(number, f"{text_key!r} is empty")
    return Document(number, text, row)


def parse_object(number: int, row: bytes) -> dict[str, Any] | Rejected:
    """The object that a line of JSON Lines is, or why it is none."""
    try:
        value = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        return Rejected(number, _why_not_json(number, row, error))
    if not isinstance(value, dict):
        return Rejected(number, f"expected a JSON object, got {json_name(value)}")
    return value


def _why_not_json(number: int, row: bytes, error: orjson.JSONDecodeError) -> str:
    if number == 1:
        for mark, reason in _BYTE_ORDER_MARKS.items():
            if row.startswith(mark):
                return reason
    if not row.strip():
        return "blank line"
    try:
        row.decode("utf-8")
    except UnicodeDecodeError as bad:
        return f"not UTF-8: byte 0x{row[bad.start]:02x} at byte {bad.start + 1} of the line ({bad.reason})"
    if "surrogate" in error.msg:
        return f"a lone surrogate (\\ud800-\\udfff without its pair), which is no character; column {error.colno}"
    return f"malformed JSON: {error.msg.split(': line')[0]} (column {error.colno})"


def json_name(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
        str: "a string",
    }
    return "null" if value is None else names[type(value)]


class HashingFile(io.RawIOBase):
    """A file that counts and, if `hashed`, hashes the bytes that pass."""

    def __init__(self, path: str, hashed: bool):
        self._hashed = hashed
        self._file = open_file(path)
        self.count = 0  # bytes
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return not self._hashed

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        got = self._file.readinto(buffer) or 0  # type: ignore[attr-defined]
        if self._hashed:
            self.digest.update(memoryview(buffer)[:got])
        self.count += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(raw: HashingFile, path: str) -> BinaryIO:
    """The text lines of a plain, gzip or zstd file, as a buffered binary stream."""
    buffered = io.BufferedReader(raw, _BLOCK)
    if path.endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=buffered)), _BLOCK))
    if path.endswith(".zst"):
        import pyarrow  # only here: 0.1 s

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(buffered, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))
    return cast(BinaryIO, buffered)
