"""One row: the document that a line of JSON Lines holds, or the reason that it holds none."""

from typing import Any, NamedTuple, cast

import orjson

_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "starts with a UTF-8 byte order mark; save the file without it",
    b"\xff\xfe": "starts with a UTF-16 byte order mark; expected UTF-8",
    b"\xfe\xff": "starts with a UTF-16 byte order mark; expected UTF-8",
}


class Document(NamedTuple):
    """One good row: `text` as decoded, `row` the line's bytes as they stand in the file, without the line's end.

    values: the fields of a row that is no JSON, some of which JSON may not have.
    """

    line: int  # counts from 1
    text: str
    row: bytes
    values: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """The whole object that the row is."""
        return cast("dict[str, Any]", orjson.loads(self.row)) if self.values is None else self.values


class Rejected(NamedTuple):
    """One bad row and why."""

    line: int  # counts from 1
    reason: str


def parse_row(number: int, line: bytes, text_key: str) -> Document | Rejected:
    """The document that a line of JSON Lines holds, or why it holds none."""
    row = line.rstrip(b"\r\n")
    value = parse_object(number, row)
    text = value if isinstance(value, Rejected) else text_of(number, value, text_key)
    return text if isinstance(text, Rejected) else Document(number, text, row)


def text_of(number: int, value: dict[str, Any], text_key: str) -> str | Rejected:
    """The text of a row's object, or why it has none. A key `a.b` that it has not is `b` of the object `a`."""
    if text_key not in value:
        inner = _nested(value, text_key)
        if inner is not None:
            return text_of(number, {text_key: inner}, text_key)
        keys = ", ".join(sorted(value)[:8]) or "none"
        return Rejected(number, f"no key {text_key!r} (--text-key); its keys: {keys}")
    text = value[text_key]
    if not isinstance(text, str):
        return Rejected(number, f"{text_key!r} is {json_name(text)}, expected a string")
    if not text:
        return Rejected(number, f"{text_key!r} is empty")
    return text


def _nested(value: Any, path: str) -> Any:
    """What stands at `a.b.c`, of objects within objects; None: nothing."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def parse_object(number: int, row: bytes) -> dict[str, Any] | Rejected:
    """The object that a line of JSON Lines is, or why it is none."""
    if array := array_on_line_one(number, row):
        return array
    try:
        value = orjson.loads(row)
    except orjson.JSONDecodeError as error:
        return Rejected(number, why_not_json(row, error))
    if not isinstance(value, dict):
        return Rejected(number, f"expected a JSON object, got {json_name(value)}")
    return value


def array_on_line_one(number: int, beginning: bytes) -> Rejected | None:
    """Why a line that begins so holds none of the rows, where a file is one array of them."""
    if number != 1 or not beginning.startswith(b"["):
        return None
    return Rejected(number, "a JSON array begins here; expected an object a line, as `jq -c '.[]' FILE` makes")


def byte_order_mark(content: bytes) -> str | None:
    """What is wrong with a file that begins so; None: nothing."""
    return next((reason for mark, reason in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)


def why_not_json(row: bytes, error: orjson.JSONDecodeError) -> str:
    """Why a line is no JSON."""
    if mark := byte_order_mark(row):
        return mark
    if not row.strip():
        return "blank line"
    return why_no_string(row, error, 0, f"column {error.colno}")


def why_no_string(piece: bytes, error: orjson.JSONDecodeError, at: int, place: str) -> str:
    """Why a piece of a line, from byte `at` on, is no JSON; `place` says where, if it is UTF-8."""
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError as bad:
        return f"not UTF-8: byte 0x{piece[bad.start]:02x} at byte {at + bad.start + 1} of the line ({bad.reason})"
    if "surrogate" in error.msg:
        return f"a lone surrogate (\\ud800-\\udfff without its pair), which is no character; {place}"
    return f"malformed JSON: {error.msg.split(': line')[0]} ({place})"


def json_name(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
        str: "a string",
    }
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")
