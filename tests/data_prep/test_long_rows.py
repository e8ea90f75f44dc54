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

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from data_prep import formats, long_rows, part_task, pretrain, reading
from data_prep.holdout import is_held_out
from data_prep.long_rows import LongDocument, Spool, read_long_row, read_long_text
from data_prep.mds import read_index, token_stream
from data_prep.rows import Document, Rejected, parse_row
from data_prep.sources import find_sources
from tests.data_prep.conftest import engine_settings, tree

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
    "deadBEEF0123",
    "\\\\" * 9,
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
    found = read_long_row(3, row[:beginning], io.BytesIO(row[beginning:] + b"\r\n{}\n"), "text", Spool(folder, 10**6))
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
    assert found == Rejected(1, f"not UTF-8: byte 0xff at byte {at + 1} of the text (invalid start byte)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rows_behind_a_long_one_are_read(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONG_ROW", 64)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in ("a", "b c " * 40, "d", "e" * 500, "f" * 53, "g")]
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(gzip.compress(b"".join(lines)) if suffix else b"".join(lines))
    source = find_sources([str(path)])[0]
    spool = Spool(tmp_path / "spool", 10**6)
    spool.folder.mkdir()
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


def test_what_a_row_has_beside_its_long_strings_is_limited(tmp_path: Path) -> None:
    row = b'{"text": "' + b"ab " * 500 + b'", "numbers": [' + b"1, " * 500 + b"1]}"
    for most, is_held in ((1600, True), (1400, False)):
        found = read_long_row(3, row[:40], io.BytesIO(row[40:] + b"\n"), "text", Spool(tmp_path, most))
        assert isinstance(found, LongDocument) == is_held
        if isinstance(found, LongDocument):
            found.remove()
        else:
            reason = "too much beside its long strings; at most --hold-mb 0.0014 of a row may be in memory as a whole"
            assert found == Rejected(3, reason)
        assert not list(tmp_path.iterdir())


def test_what_a_string_has_without_a_place_to_cut_is_limited(tmp_path: Path) -> None:
    def read_text(text: bytes) -> LongDocument | Rejected:
        row = b'{"text": "' + text + b'"}'
        return read_long_row(3, row[:40], io.BytesIO(row[40:] + b"\n"), "text", Spool(tmp_path, 100))

    for text in (b"0123456789abcdef" * 300, b"\\u00e9" * 800, b"\\ud83d\\ude00" * 400, b"a\\\\" * 999):
        found = read_text(text)
        assert isinstance(found, LongDocument)
        assert "".join(found.text.blocks()) == json.loads(b'"' + text + b'"')
        found.remove()
    reason = (
        "in a string a stretch without a place to cut; at most --hold-mb 0.0001 of a row may be in memory as a whole"
    )
    assert read_text(b"\\" * 5000) == Rejected(3, reason)
    assert not list(tmp_path.iterdir())


def test_what_must_be_held_is_limited(prepare: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def good(row):\n    return True\n")
    sentence = "peace and good will to all friends of the republic, "
    texts = [sentence * 2, sentence * 190_000, sentence, "x" * 9_500_000, "Well. " * 20]
    rows = jsonl([{"text": text} for text in texts])
    word = "in a text of 9.5 MB a stretch without a place where a token begins; at most --hold-mb 9 of a row"
    first, last = (
        f"a row of {size} MB for --filter (--max-chars leaves such out before); at most --hold-mb 9 of a row"
        for size in (9.9, 9.5)
    )
    cases: list[tuple[list[str], list[tuple[int, str]]]] = [
        ([], [(4, word)]),
        (["--filter", f"{tmp_path}/own.py:good"], [(2, first), (4, last)]),
        (["--filter", f"{tmp_path}/own.py:good", "--max-chars", "9000000"], []),
    ]
    for number, (options, expected) in enumerate(cases):
        common = ["--hold-mb", "9", "--on-error", "skip", "--max-rejected", "0.5", *options]
        made = prepare(rows, "--out", tmp_path / str(number), *common)
        assert made.returncode == 0, made.stderr
        rejected = tmp_path / str(number) / "train" / "rejected.jsonl"
        lines = [json.loads(line) for line in rejected.read_text().splitlines()] if expected else []
        assert rejected.exists() == bool(expected)
        assert [
            (int(line["place"].rpartition(":")[2]), line["reason"].partition(" may be")[0]) for line in lines
        ] == expected
    stopped = prepare(rows, "--out", tmp_path / "stopped", "--hold-mb", "9")
    assert stopped.returncode == 1
    assert f"{rows}:4: {word}" in stopped.stderr
    assert not list((tmp_path / "stopped").glob("train"))
    assert (
        "--hold-mb 8: expected megabytes of a row, from 9 (12)" in prepare(rows, "--out", "x", "--hold-mb", "8").stderr
    )


def test_long_documents_in_every_format(
    jsonl: Callable[..., Path], tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents that count as long, in JSONL, parquet and text files: the ids of their texts encoded as a whole."""
    for module in (reading, formats):
        monkeypatch.setattr(module, "LONG_ROW", 1 << 16)
    monkeypatch.setattr(long_rows, "_BLOCK", 1 << 12)
    monkeypatch.setattr(part_task, "_BATCH_CHARACTERS", 1 << 13)
    rng = random.Random(0)
    words = ["peace", "and", "—", "good", "will", "“to”", "all", "friends", "of", "1789,", "the", "republic.\n"]
    paragraphs = [" ".join(rng.choices(words, k=150)) for _ in range(4)]
    texts = [paragraph * (130 if number % 2 else 3) for number, paragraph in enumerate(paragraphs)]
    (tmp_path / "texts").mkdir()
    for n, text in enumerate(texts):
        (tmp_path / "texts" / f"{n}.txt").write_text(text)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "rows.parquet")
    (tmp_path / "own.py").write_text("def odd(row):\n    return row['id'] != 3 or len(row['text']) < 9\n")
    rows = jsonl([{"id": n, "text": text} for n, text in enumerate(texts)])
    again = jsonl(
        [{"id": n, "text": text} for n, text in enumerate([*texts, texts[1] + "Well.", "B " + texts[2]])], "b"
    )
    again = again.rename(tmp_path / "again.jsonl")
    engine = engine_settings("tokenizers", str(tokenizer / "tokenizer.json"), False).make()
    ids_of = {text: engine.encode([text])[0] for text in (*texts, texts[1] + "Well.", "B " + texts[2])}
    held = [text for text in texts if is_held_out(text, 0.5)]
    kept = [text for text in texts if not is_held_out(text, 0.5)]
    runs: list[tuple[Path, list[str], list[str]]] = [
        (rows, texts, []),
        (tmp_path / "texts", texts, []),
        (tmp_path / "rows.parquet", texts, []),
        (rows, texts[:3], ["--filter", f"{tmp_path}/own.py:odd"]),
        (again, texts, ["--near-dedup", "0.7", "--dedup"]),
        (rows, kept, ["--holdout", "0.5"]),
    ]
    for number, (source, expected, options) in enumerate(runs):
        words = [source, "--out", tmp_path / str(number), "--tokenizer", tokenizer, "--seq-len", "64", *options]
        assert pretrain.main([*map(str, words), "--workers", "1"]) == 0  # in this process, with the settings above
        ids = np.concatenate([np.append(ids_of[text], 0) for text in expected])  # 0: EOS
        written = np.concatenate(list(token_stream(read_index(tmp_path / str(number) / "train"))))
        assert written.tolist() == ids[: len(written)].tolist()
        assert len(ids) - len(written) < 64
    documents = [json.loads(line)["text"] for line in tree(tmp_path / "5")["val/documents.jsonl"].splitlines()]
    assert documents == held
    assert 0 < len(held) < 4
