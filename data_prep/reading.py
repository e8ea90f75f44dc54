"""Bytes on disk into documents, a row at a time, or the reason that a row is not a document."""

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

import orjson

from data_prep.errors import PrepError
from data_prep.sources import Source

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


class Rejected(NamedTuple):
    """One bad row and why."""

    line: int  # counts from 1
    reason: str


class SourceReader:
    """Reads one source once, whole, hashing its bytes on the way.

    Raises:
        PrepError: compressed data that is damaged or cut short, or a file that changed while it was read.
        OSError: what the operating system says.
    """

    def __init__(self, source: Source, text_key: str):
        self.source = source
        self._text_key = text_key
        self._raw = _HashingFile(source.path)

    @property
    def bytes_read(self) -> int:
        """Bytes of the file read so far: compressed ones, where it is compressed."""
        return self._raw.count

    @property
    def sha256(self) -> str:
        """SHA-256 of the file; whole only after `rows` has ended."""
        return self._raw.digest.hexdigest()

    def rows(self) -> Iterator[Document | Rejected]:
        """Every row in order. Memory: one line."""
        number = 0
        try:
            with self._raw, _decompressed(self._raw, self.source.path) as lines:
                for line in lines:
                    number += 1
                    yield parse_row(number, line, self._text_key)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise PrepError(self._damage(number, error)) from error
        except OSError as error:
            if error.errno is None:  # pyarrow's word for damaged zstd data
                raise PrepError(self._damage(number, error)) from error
            raise
        status = os.stat(self.source.path)
        if (status.st_size, status.st_mtime_ns) != (self.source.bytes, self.source.mtime_ns):
            raise PrepError(f"{self.source.path} changed while it was read; run again when nothing writes to it.")

    def _damage(self, line: int, error: BaseException) -> str:
        return f"{self.source.path}:{line + 1}: the compressed data is damaged or cut short ({error}); fetch it again."


def parse_row(number: int, line: bytes, text_key: str) -> Document | Rejected:
    """The document that a line of JSON Lines holds, or why it holds none."""
    row = line.rstrip(b"\r\n")
    try:
        value = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        return Rejected(number, _why_not_json(number, row, error))
    if not isinstance(value, dict):
        return Rejected(number, f"expected a JSON object, got {_json_name(value)}")
    if text_key not in value:
        keys = ", ".join(sorted(value)[:8]) or "none"
        return Rejected(number, f"no key {text_key!r} (--text-key); its keys: {keys}")
    text = value[text_key]
    if not isinstance(text, str):
        return Rejected(number, f"{text_key!r} is {_json_name(text)}, expected a string")
    if not text:
        return Rejected(number, f"{text_key!r} is empty")
    return Document(number, text, row)


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


def _json_name(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
        str: "a string",
    }
    return "null" if value is None else names[type(value)]


class _HashingFile(io.RawIOBase):
    """A file that counts and hashes the bytes that pass."""

    def __init__(self, path: str):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
        self.count = 0  # bytes
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        got = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:got])
        self.count += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(raw: _HashingFile, path: str) -> BinaryIO:
    """The text lines of a plain, gzip or zstd file, as a buffered binary stream."""
    buffered = io.BufferedReader(raw, _BLOCK)
    if path.endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=buffered)), _BLOCK))
    if path.endswith(".zst"):
        import pyarrow  # only here: 0.1 s

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(buffered, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))
    return cast(BinaryIO, buffered)
