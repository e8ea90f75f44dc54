"""Rows too long to hold: their text goes through files, a block at a time, so that memory does not grow with a row.

A JSON string that is cut where neither an escape sequence nor a character stands is JSON strings again. So the blocks
of a long string are parsed one by one, and the rest of its row, with a mark in the string's place, is an ordinary row.
"""

import codecs
import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import orjson

from data_prep.rows import Rejected, array_on_line_one, byte_order_mark, parse_object, text_of, why_no_string

LONG_ROW = 8 << 20  # bytes of a row from which it is not held
_BLOCK = 1 << 20  # bytes of a row that are held of it
# A string may be cut in front of these: an ASCII character that is in no escape sequence, by what it is or as no
# backslash is near, the first byte of any other character, or an escape sequence that is not the second half of a
# surrogate pair.
_CUT = re.compile(rb"[ ,.\-(\xc2-\xf4]|(?<=[^\\]{6})[\x00-\x7f]|(?<!\\)\\(?!u[dD][c-fC-F])")
_LONGEST_ESCAPE = 6  # bytes


@dataclass(frozen=True)
class LongText:
    """A text in a file, where another document has a str. Its length is in characters."""

    path: Path
    characters: int
    utf8_bytes: int
    sha256: bytes  # of these

    def __len__(self) -> int:
        return self.characters

    def __getitem__(self, part: slice) -> str:
        """Its beginning, for messages."""
        return next(self.blocks(), "")[part]

    def blocks(self) -> Iterator[str]:
        """The text in order, about a million characters at a time."""
        with open(self.path, encoding="utf-8", newline="") as file:
            while block := file.read(_BLOCK):
                yield block


class Spool(NamedTuple):
    """Where rows go that are too long to hold, and how much of one is held all the same where it has to be."""

    folder: Path  # for their files
    most_held: int  # bytes


class LongDocument(NamedTuple):
    """One good row that is not in memory."""

    line: int  # counts from 1
    text: LongText
    row: Path  # a file of the row's bytes, without the line's end

    def fields(self) -> dict[str, Any]:
        """The whole object that the row is, in memory."""
        return cast("dict[str, Any]", orjson.loads(self.row.read_bytes()))

    def remove(self) -> None:
        """Remove its files."""
        self.text.path.unlink()
        self.row.unlink()


def read_long_row(
    number: int, beginning: bytes, file: BinaryIO, text_key: str, spool: Spool
) -> LongDocument | Rejected:
    """The rest of a line of JSON Lines read from `file`, and the document that the line holds, or why it holds none.

    Memory: what the row has beside strings of more than 1 MiB, and of these what has no place to cut, each up to
    `spool.most_held`.

    Args:
        beginning: its first LONG_ROW bytes.

    Raises:
        OSError: as reading and writing do.
    """
    folder = spool.folder
    path = folder / "long.row"
    strings = _Strings(number, spool)
    reason = array_on_line_one(number, beginning)
    with strings, open(path, "w+b") as copy:
        block = beginning
        while block:
            copy.write(block)
            for start in range(0, len(block), _BLOCK):
                reason = reason or strings.add(block[start : start + _BLOCK])
            block = b"" if block.endswith(b"\n") else file.readline(_BLOCK)
        _cut_line_end(copy)
        reason = reason or strings.end()
        found = reason or strings.text(text_key)
    document = LongDocument(number, found, path) if isinstance(found, LongText) else None
    for other in folder.glob("long.*"):
        if document is None or other not in (document.text.path, document.row):
            other.unlink()
    if document:
        return document
    assert isinstance(found, Rejected)
    return found


def too_much_to_hold(number: int, what: str, most: int) -> Rejected:
    """A row of which more than `most` bytes cannot be taken in pieces."""
    return Rejected(number, f"{what}; at most --hold-mb {most / 1e6:g} of a row may be in memory as a whole")


def read_long_text(file: BinaryIO, text_key: str, folder: Path, is_whole_file: bool = False) -> LongDocument | Rejected:
    """A text read to its end, as a document whose row is an object of the text alone."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    reason: Rejected | None = None
    done = 0
    row = folder / "long.row"
    with _TextWriter(folder / "long.text") as text, open(row, "wb") as copy:
        copy.write(b"{" + orjson.dumps(text_key) + b':"')
        while True:
            block = file.read(_BLOCK)
            if is_whole_file and done == 0 and (mark := byte_order_mark(block)):
                reason = Rejected(1, mark)
            try:
                piece = "" if reason else decoder.decode(block, final=not block)
            except UnicodeDecodeError as bad:
                at = done + len(block) - len(bad.object) + bad.start
                what = f"byte 0x{bad.object[bad.start]:02x} at byte {at + 1} of the text ({bad.reason})"
                reason = Rejected(1, f"not UTF-8: {what}")
                piece = ""
            text.write(piece)
            copy.write(orjson.dumps(piece)[1:-1])
            done += len(block)
            if not block:
                break
        copy.write(b'"}')
    document = LongDocument(1, text.text(), row)
    if reason:
        document.remove()
    return reason or document


class _TextWriter(ExitStack):
    """Writes a LongText."""

    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        self._file = self.enter_context(open(path, "wb"))  # noqa: SIM115
        self._digest = hashlib.sha256()
        self._characters = self._bytes = 0

    def write(self, text: str) -> None:
        content = text.encode("utf-8")
        self._file.write(content)
        self._digest.update(content)
        self._characters += len(text)
        self._bytes += len(content)

    def text(self) -> LongText:
        return LongText(self._path, self._characters, self._bytes, self._digest.digest())


class _Strings(ExitStack):
    """Takes the bytes of a row and puts its long strings into files."""

    def __init__(self, number: int, spool: Spool):
        super().__init__()
        self.texts: dict[str, LongText] = {}  # by the mark that stands in the rest of the row for it
        self._number = number
        self._folder, self._most_held = spool
        self._rest = bytearray()  # the row without its long strings
        self._carry = b""  # of the block before: a backslash whose escape sequence is not there yet
        self._string: bytearray | None = None  # of the string that has begun: what is not in its file yet
        self._string_at = 0  # where in the row that begins
        self._searched = 0  # bytes of it from its start that have no place to cut
        self._writer: _TextWriter | None = None  # its file
        self._bytes = 0  # of the row in the blocks before

    def add(self, block: bytes) -> Rejected | None:
        """Take the next bytes; a reason, if the row is known to hold no document."""
        block = self._carry + block
        backslashes = len(block) - len(block.rstrip(b"\\"))
        self._carry = b"\\" if backslashes % 2 else b""
        block = block[: len(block) - len(self._carry)]
        at = 0
        while at < len(block):
            if self._string is None:
                quote = block.find(b'"', at)
                end = len(block) if quote < 0 else quote + 1
                self._rest += block[at:end]
                if quote >= 0:
                    self._string, self._string_at = bytearray(), self._bytes + end
                at = end
                continue
            quote = _closing_quote(block, at)
            self._string += block[at : len(block) if quote < 0 else quote]
            reason = self._write(quote >= 0) if self._writer or len(self._string) > _BLOCK else None
            if reason:
                return reason
            if quote < 0:
                break
            if self._writer:
                self._close()
            else:
                self._rest += self._string + b'"'
            self._string = None
            at = quote + 1
        self._bytes += len(block)
        if len(self._rest) > self._most_held:
            return too_much_to_hold(self._number, "too much beside its long strings", self._most_held)
        return None

    def end(self) -> Rejected | None:
        """There are no more bytes; a reason, if the row holds no document."""
        if self._string is not None:
            return Rejected(self._number, "malformed JSON: a string that does not end")
        self._rest += self._carry
        return None

    def text(self, text_key: str) -> LongText | Rejected:
        """The text of the row, or why it has none."""
        value = parse_object(self._number, bytes(self._rest).rstrip(b"\r\n"))
        if isinstance(value, Rejected):
            return Rejected(self._number, value.reason + ", its long strings left out" * bool(self.texts))
        text = text_of(self._number, value, text_key)
        if isinstance(text, Rejected):
            return text
        if text in self.texts:
            return self.texts[text]
        with _TextWriter(self._folder / "long.text") as writer:  # another string of the row is the long one
            writer.write(text)
        return writer.text()

    def _write(self, is_whole: bool) -> Rejected | None:
        """Move the string so far into its file: all of it, or up to the last place where it may be cut."""
        assert self._string is not None
        if self._writer is None:
            self._writer = self.enter_context(_TextWriter(self._folder / f"long.text.{len(self.texts)}"))
        end = len(self._string) if is_whole else _last_cut(self._string, self._searched)
        piece = bytes(self._string[:end])
        try:
            self._writer.write(orjson.loads(b'"' + piece + b'"'))
        except orjson.JSONDecodeError as error:
            place = f"in the {len(piece):,} bytes from byte {self._string_at + 1}"
            return Rejected(self._number, why_no_string(piece, error, self._string_at, place))
        del self._string[:end]
        self._string_at += end
        self._searched = max(len(self._string) - _LONGEST_ESCAPE, 0)
        if len(self._string) > self._most_held:
            return too_much_to_hold(self._number, "in a string a stretch without a place to cut", self._most_held)
        return None

    def _close(self) -> None:
        assert self._writer is not None
        self._writer.close()
        mark = secrets.token_hex(16)  # so that no row can hold it
        self.texts[mark] = self._writer.text()
        self._rest += mark.encode() + b'"'
        self._writer = None


def _closing_quote(block: bytes, start: int) -> int:
    """Where the string that `block[start:]` is inside of ends; -1: later. No escape sequence lies across `start`."""
    quote = block.find(b'"', start)
    while quote >= 0:
        before = quote
        while before > start and block[before - 1] == 0x5C:
            before -= 1
        if (quote - before) % 2 == 0:
            return quote
        quote = block.find(b'"', quote + 1)
    return -1


def _last_cut(string: bytearray, searched: int) -> int:
    """The last place where a string may be cut, whose first `searched` bytes have none; 0: none."""
    last = len(string) - _LONGEST_ESCAPE
    for start in (max(last - 256, searched), searched):
        places = (found.start() for found in _CUT.finditer(string, start) if found.start() <= last)
        if place := max(places, default=0):
            return place
    return 0


def _cut_line_end(file: BinaryIO) -> None:
    """Cut the line feeds and carriage returns at the end of a file off."""
    size = file.tell()
    while size:
        file.seek(size - 1)
        if file.read(1) not in b"\r\n":
            break
        size -= 1
    file.truncate(size)
