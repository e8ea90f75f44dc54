"""Rows too long to hold: what they give is what they would give in memory, whatever is cut where."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data_prep import long_rows, reading
from data_prep.long_rows import LongDocument, read_long_row, read_long_text
from data_prep.rows import Document, Rejected, parse_row
from data_prep.sources import find_sources
from tests.data_prep.conftest import tree

PIECES = [
    " ",
    "a b",
    "the end. ",
    "é",
    "日本",
    "😀",
    "\\n",
    "\\\\",
    '\\"',
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\/",
    "{",
    "x" * 9,
    "'",
]
BAD_PIECES = ["\\ud83d", "\\ude00", "\\x", "\\u12", "\x01", "\t"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 bytes, so that rows of some hundred have every kind of cut."""
    monkeypatch.setattr(long_rows, "_BLOCK", 32)


def rows(bad: list[str]) -> list[bytes]:
    """300 rows whose strings are made of PIECES, each with one of `bad` somewhere."""
    rng = random.Random(1)
    found = []
    for _ in range(300):
        strings = [rng.choices(PIECES, k=rng.choice((0, 3, 40))) for _ in range(3)]
        if bad:
            string = rng.choice(strings)
            string.insert(rng.randint(0, len(string)), rng.choice(bad))
        first, text, last = (f'"{"".join(string)}"' for string in strings)
        order = [f'"before": {first}', f'"text": {text}', f'"n": [1, {{"after": {last}}}]']
        rng.shuffle(order)
        found.append(("{" + ", ".join(order) + "}").encode())
    return found


def read(row: bytes, folder: Path, beginning: int) -> Document | Rejected:
    found = read_long_row(3, row[:beginning], io.BytesIO(row[beginning:] + b"\r\n{}\n"), "text", folder)
    if isinstance(found, Rejected):
        assert not list(folder.iterdir())
        return found
    text = "".join(found.text.blocks())
    document = Document(3, text, found.row.read_bytes())
    assert (len(found.text), found.text.utf8_bytes) == (len(text), len(text.encode()))
    assert found.text[:10] == text[:10]
    found.remove()
    assert not list(folder.iterdir())
    return document


def test_good_rows_are_what_they_are_in_memory(tmp_path: Path) -> None:
    texts = 0
    for number, row in enumerate(rows([])):
        expected = parse_row(3, row, "text")
        assert read(row, tmp_path, 1 + number % 50) == expected
        texts += isinstance(expected, Document)
    assert texts > 150


def test_bad_rows_are_refused_for_the_same_reason(tmp_path: Path) -> None:
    kinds: set[str] = set()
    for row in [*rows(BAD_PIECES), b'{"text": "' + b"ab " * 50, b'{"text": "' + b"ab " * 50 + b'"', b"  " * 40]:
        expected, got = parse_row(3, row, "text"), read(row, tmp_path, 20)
        assert isinstance(got, Rejected) == isinstance(expected, Rejected), row
        if isinstance(got, Rejected) and isinstance(expected, Rejected):
            kind = got.reason.split(":")[0].split(",")[0]
            assert kind == expected.reason.split(":")[0].split(",")[0], (row, got, expected)
            kinds.add(kind)
    assert kinds == {
        "malformed JSON",
        "a lone surrogate (\\ud800-\\udfff without its pair)",
        "blank line",
    }
    row = b'{"text": "' + b"ab " * 50 + b'\xe9 "}'
    assert read(row, tmp_path, 20) == parse_row(3, row, "text")
    assert "byte 0xe9 at byte 161 of the line" in parse_row(3, row, "text").reason  # type: ignore[union-attr]


def test_a_text_file(tmp_path: Path) -> None:
    text = "".join(random.Random(2).choices([piece for piece in PIECES if "\\u" not in piece] + ['"', "\r\n"], k=500))
    found = read_long_text(io.BytesIO(text.encode()), "text", tmp_path)
    assert isinstance(found, LongDocument)
    assert "".join(found.text.blocks()) == text
    assert orjson.loads(found.row.read_bytes()) == {"text": text}
    found.remove()
    bad = text.encode()[:1001] + b"\xff" + text.encode()
    at = next(n for n in range(len(bad)) if bad[n] == 0xFF)
    found = read_long_text(io.BytesIO(bad), "text", tmp_path)
    assert found == Rejected(1, f"not UTF-8: byte 0xff at byte {at + 1} of the file (invalid start byte)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rows_behind_a_long_one_are_read(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONG_ROW", 64)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("a", "b c " * 40, "d", "e" * 500, "f" * 53, "g")]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(gzip.compress(b"".join(lines)) if suffix else b"".join(lines))
    source = find_sources([str(path)])[0]
    spool = tmp_path / "spool"
    spool.mkdir()
    expected = [orjson.loads(line)["text"] for line in lines]
    ends = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    ranges = [(0, source.bytes)] if suffix else [*itertools.pairwise(ends), (0, source.bytes), (0, 70)]
    for start, end in ranges:
        reader = reading.SourceReader(source, "text", start, end, spool)
        texts = []
        for row in reader.rows():
            assert not isinstance(row, Rejected)
            texts.append("".join(row.text.blocks()) if isinstance(row, LongDocument) else row.text)
        inside = [text for text, at in zip(expected, ends, strict=False) if start <= at < end]
        assert texts == (expected if suffix else inside)


def test_a_row_of_any_length_takes_the_same_memory(
    prepare: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Documents of 12 MB, in JSONL and as text files, held out or not: the bytes that short settings give."""
    sentence = "Peace and good will to all — “friends” of the republic. "
    texts = [f"{number} " + sentence * (200_000 if number % 2 else 3) for number in range(4)]
    path = jsonl([{"id": n, "text": text} for n, text in enumerate(texts)])
    for n, text in enumerate(texts):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{n}.txt").write_text(text)
    (tmp_path / "all.py").write_text("def all(row):\n    return True\n")
    whole_rows = ("--filter", f"{tmp_path}/all.py:all")  # which has them in memory
    for name, source, options in (("a", path, ()), ("b", path, whole_rows), ("c", tmp_path / "texts", ())):
        made = prepare(source, "--out", tmp_path / name, "--holdout", "0.5", "--dedup", *options)
        assert made.returncode == 0, made.stderr
    files = [tree(tmp_path / name) for name in "abc"]
    shards = [
        {name: content for name, content in each.items() if name.endswith((".mds", "index.json"))} for each in files
    ]
    assert shards[0] == shards[1] == shards[2]
    assert len(shards[0]) >= 4
    assert files[0]["val/documents.jsonl"] == files[1]["val/documents.jsonl"]
