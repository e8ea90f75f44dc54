"""Bytes on disk into documents, a row at a time, or the reason that a row is not a document."""

import contextlib
import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

from data_prep.errors import PrepError
from data_prep.long_rows import LONG_ROW, LongDocument, Spool, read_long_row, too_much_to_hold
from data_prep.rows import Document, Rejected, array_on_line_one, parse_row
from data_prep.sources import Source
from data_prep.storage import FileState, open_file, remote_errors, state_of

_BLOCK = 1 << 20  # bytes a read


class SourceReader:
    """Reads the rows of one source that begin at bytes [start, end), once; a whole source is hashed on the way.

    Args:
        end: None: to the end.
        spool: where rows go that are too long to hold; None: every row is held.

    Raises:
        PrepError: compressed data that is damaged or cut short, or a file that changed while it was read.
        OSError: what the operating system says.
    """

    def __init__(
        self, source: Source, text_key: str, start: int = 0, end: int | None = None, spool: Spool | None = None
    ):
        self.source = source
        self._spool = spool
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

    def rows(self) -> Iterator[Document | LongDocument | Rejected]:
        """Every row in order; lines count from the start of the range. Memory: one row, or a few MB with `spool`."""
        limit = -1 if self._spool is None else LONG_ROW
        with self._damage_in_words():
            for line, file in self._lines(limit):
                if self._spool is None or len(line) < limit or line.endswith(b"\n"):
                    yield parse_row(self.rows_read, line, self._text_key)
                else:
                    yield read_long_row(self.rows_read, line, file, self._text_key, self._spool)
                del line  # a row may be large: hold it once
        check_unchanged(self.source)

    def lines(self, most: int) -> Iterator[bytes | Rejected]:
        """The lines as they stand in the file, without their ends; `rows_read` counts them. Of `most` bytes at most."""
        with self._damage_in_words():
            for line, file in self._lines(most):
                size, array = len(line), array_on_line_one(self.rows_read, line)
                while size >= most and not line.endswith(b"\n") and (more := file.readline(_BLOCK)):
                    line, size = more, size + len(more)
                row = line.rstrip(b"\r\n")
                del line
                what = f"a row of {size / 1e6:,.1f} MB"
                yield row if size <= most else array or too_much_to_hold(self.rows_read, what, most)
                del row
        check_unchanged(self.source)

    def _lines(self, limit: int) -> Iterator[tuple[bytes, BinaryIO]]:
        """The lines that begin in the range, or the first `limit` bytes of each, whose rest the taker then reads."""
        end = math.inf if self.is_whole else self._end
        with self._raw, _decompressed(self._raw, self.source.name) as file:
            at = 0 if self.is_whole else self._first_line(file)
            while at < end:
                line = file.readline(limit)
                if not line:
                    break
                self.rows_read += 1
                size = len(line)
                yield line, file
                del line
                at = file.tell() if size == limit and not self.is_whole else at + size

    def _first_line(self, file: BinaryIO) -> int:
        """Go to the first line that begins in the range. Of one that began before no more is read than lies in it."""
        at = max(self._start - 1, 0)
        file.seek(at)
        while self._start and at < self._end:
            piece = file.readline(min(_BLOCK, self._end - at))
            at += len(piece)
            if not piece or piece.endswith(b"\n"):
                break
        return at

    @contextlib.contextmanager
    def _damage_in_words(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise PrepError(self._damage(self.rows_read, error)) from error
        except OSError as error:
            if error.errno is None and self.source.name.endswith(".zst"):  # pyarrow's word for damaged zstd data
                raise PrepError(self._damage(self.rows_read, error)) from error
            raise

    def _damage(self, line: int, error: BaseException) -> str:
        if "requires too much memory" in str(error):  # zstd's words
            what = "compressed with a window above 128 MB"
            return f"{self.source.path}: {what}; decompress it (zstd -d --long=31), and give that or compress it anew."
        return f"{self.source.path}:{line + 1}: the compressed data is damaged or cut short ({error}); fetch it again."


def sample_rows(source: Source, read_bytes: int) -> list[bytes]:
    """The whole lines in the first `read_bytes` of the text of a source; damaged data ends the list."""
    text = sample_bytes(source, read_bytes)
    lines = text.split(b"\n")
    return lines if len(text) < read_bytes else lines[:-1]


def sample_bytes(source: Source, read_bytes: int) -> bytes:
    """The first `read_bytes` of the text of a source; none where its data is damaged."""
    raw = HashingFile(source.path, hashed=False)
    with contextlib.suppress(EOFError, zlib.error, OSError), raw, _decompressed(raw, source.name) as file:
        return file.read(read_bytes)
    return b""


def check_unchanged(source: Source) -> None:
    """Raises PrepError where a source is no longer what it was when the run began."""
    if state_of(source.path) != FileState(source.bytes, source.mtime_ns):
        raise PrepError(f"{source.path} changed while it was read; run again when nothing writes to it.")


class HashingFile(io.RawIOBase):
    """A file that counts and, if `hashed`, hashes the bytes that pass."""

    def __init__(self, path: str, hashed: bool):
        self._hashed = hashed
        self._path = path
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
        with remote_errors(self._path):
            got = self._file.readinto(buffer) or 0  # type: ignore[attr-defined]
        if self._hashed:
            self.digest.update(memoryview(buffer)[:got])
        self.count += got
        return got

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(raw: HashingFile, name: str) -> BinaryIO:
    """The text lines of a plain, gzip or zstd file, as a buffered binary stream."""
    buffered = io.BufferedReader(raw, _BLOCK)
    if name.endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=buffered)), _BLOCK))
    if name.endswith(".zst"):
        import pyarrow  # only here: 0.1 s

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(buffered, mode="r"), "zstd")
        return cast(BinaryIO, io.BufferedReader(stream, _BLOCK))
    return cast(BinaryIO, buffered)
