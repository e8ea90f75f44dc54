"""Rows that are no document: what is said of each kind, by the function and by the command."""

from __future__ import annotations

import errno
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
from fsspec.implementations.memory import MemoryFile

from data_prep.errors import PrepError
from data_prep.long_rows import LONG_ROW, Spool
from data_prep.reading import SourceReader
from data_prep.rows import Document, Rejected, parse_row
from data_prep.sampling import sample_texts
from data_prep.sources import find_sources, sha256_of_file
from tests.data_prep.conftest import tree

BAD_ROWS = {
    "cut": (b'{"text": "abc\n', "malformed JSON: unexpected end of data (column 14)"),
    "no colon": (b'{"text" "abc"}\n', "malformed JSON: unexpected character"),
    "two objects": (b'{"text":"a"}{"text":"b"}\n', "malformed JSON: unexpected content after document (column 13)"),
    "array": (b'["text"]\n', "expected a JSON object, got an array"),
    "no key": (b'{"body": "abc", "id": 1}\n', "no key 'text' (--text-key); its keys: body, id"),
    "null": (b'{"text": null}\n', "'text' is null, expected a string"),
    "number": (b'{"text": 3}\n', "'text' is a number, expected a string"),
    "empty text": (b'{"text": ""}\n', "'text' is empty"),
    "lone high surrogate": (rb'{"text": "a\ud800b"}' + b"\n", "a lone surrogate"),
    "lone low surrogate": (rb'{"text": "\udc00"}' + b"\n", "a lone surrogate"),
    "surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}\n', "not UTF-8: byte 0xed at byte 11 of the line"),
    "latin-1": (b'{"text": "caf\xe9"}\n', "not UTF-8: byte 0xe9 at byte 14 of the line"),
    "blank": (b"\n", "blank line"),
    "spaces": (b"  \t\r\n", "blank line"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_reason(kind: str) -> None:
    line, reason = BAD_ROWS[kind]
    row = parse_row(2, line, "text")
    assert isinstance(row, Rejected)
    assert reason in row.reason
    assert "\n" not in row.reason


@pytest.mark.parametrize(("mark", "said"), [(b"\xef\xbb\xbf", "UTF-8 byte order mark"), (b"\xff\xfe", "UTF-16")])
def test_byte_order_mark(mark: bytes, said: str) -> None:
    row = parse_row(1, mark + b'{"text": "a"}\n', "text")
    assert isinstance(row, Rejected)
    assert said in row.reason


def test_keys_of_objects_within_objects() -> None:
    row = b'{"meta": {"text": "a", "more": {"text": "b"}, "none": null}, "meta.more.text": "c"}'
    for key, text in (("meta.text", "a"), ("meta.more.text", "c")):
        assert parse_row(1, row, key) == Document(1, text, row)
    for key, said in (("meta.more", "'meta.more' is an object"), ("meta.none", "no key"), ("meta.text.x", "no key")):
        found = parse_row(1, row, key)
        assert isinstance(found, Rejected)
        assert said in found.reason


def test_an_array_of_rows_is_said_whatever_its_size(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"[" + b'{"text": "a"},' * (LONG_ROW // 14 + 1) + b"{}]")
    (source,) = find_sources([str(path)])
    spool = Spool(tmp_path, LONG_ROW)
    for found in (SourceReader(source, "text", spool=spool).rows(), SourceReader(source, "").lines(1000)):
        (row,) = found
        assert isinstance(row, Rejected)
        assert "as `jq -c '.[]' FILE` makes" in row.reason


def test_documents_of_long_lines_are_sampled(tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    for size in (300_000, LONG_ROW):
        path.write_bytes(b'{"text": "' + b"ab " * (size // 3) + b'"}\n')
        assert sample_texts(find_sources([str(path)]), "text") == [("ab " * 8192)[:8192]]


def test_good_rows_keep_text_and_bytes() -> None:
    pair = rb'{"text": "\ud83d\ude00 \u0000", "id": 1}'
    assert parse_row(1, pair + b"\r\n", "text") == Document(1, "😀 \0", pair)
    assert parse_row(1, b'{"body": "a"}', "body") == Document(1, "a", b'{"body": "a"}')
    assert parse_row(1, b'{"text": "  "}', "text") == Document(1, "  ", b'{"text": "  "}')  # as LLM Foundry's


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_rows_after_a_bad_one_are_read(kind: str, jsonl: Callable[..., Path]) -> None:
    source = find_sources([str(jsonl([{"text": "good"}, BAD_ROWS[kind][0], {"text": "good"}]))])[0]
    rows = list(SourceReader(source, "text").rows())
    assert [type(row) for row in rows] == [Document, Rejected, Document]
    assert rows[1].line == 2


def test_stop_names_the_place(prepare: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = jsonl([{"text": "good " * 100}, BAD_ROWS["no key"][0]])
    result = prepare(rows, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert f"{rows}:2: no key 'text'" in result.stderr
    assert "--on-error skip" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_skip_lists_and_counts(prepare: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> None:
    good = [{"text": "good " * 100}] * 20
    bad = [line for line, _ in BAD_ROWS.values()]
    rows = jsonl([*good, *bad, *good])
    refused = prepare(rows, "--out", tmp_path / "out", "--on-error", "skip")
    assert refused.returncode == 1
    assert "14 of 54 rows were rejected (25.93%)" in refused.stderr
    assert not (tmp_path / "out" / "train").exists()
    assert "Allow more to go on from what is finished" in refused.stderr
    listed = (tmp_path / "out" / ".rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in listed] == [f"{rows}:{number}" for number in range(21, 35)]

    result = prepare(rows, "--out", tmp_path / "out", "--on-error", "skip", "--max-rejected", "0.3")
    assert result.returncode == 0, result.stderr
    assert "14 rows rejected; 1 parts were finished before" in result.stdout
    written = tree(tmp_path / "out")
    assert sorted(written) == [
        f"train/{n}" for n in ("index.json", "manifest.json", "rejected.jsonl", "shard.00000.mds")
    ]
    assert len(written["train/rejected.jsonl"].splitlines()) == 14
    manifest = json.loads(written["train/manifest.json"])
    assert (manifest["documents"], manifest["rejected"]) == (40, 14)

    clean = prepare(jsonl(good + good, "clean.jsonl"), "--out", tmp_path / "clean")
    assert clean.returncode == 0
    assert tree(tmp_path / "clean")["train/shard.00000.mds"] == written["train/shard.00000.mds"]


def test_compressed_files_give_the_same_rows(corpus: Path, tmp_path: Path) -> None:
    plain = corpus.read_bytes()
    middle = plain.index(b"\n", len(plain) // 2) + 1
    compressed = pyarrow.Codec("zstd")
    files = {
        "one.jsonl.gz": gzip.compress(plain),
        "two-members.jsonl.gz": gzip.compress(plain[:middle]) + gzip.compress(plain[middle:]),
        "one.jsonl.zst": compressed.compress(plain, asbytes=True),
        "two-frames.jsonl.zst": compressed.compress(plain[:middle], asbytes=True)
        + compressed.compress(plain[middle:], asbytes=True),
        "no-last-newline.jsonl": plain[:-1],
    }
    expected = list(SourceReader(find_sources([str(corpus)])[0], "text").rows())
    assert len(expected) == 200
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        reader = SourceReader(find_sources([str(tmp_path / name)])[0], "text")
        assert list(reader.rows()) == expected, name
        assert reader.sha256 == sha256_of_file(tmp_path / name)
        assert reader.bytes_read == len(content)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_data_cut_short(suffix: str, corpus: Path, tmp_path: Path) -> None:
    plain = corpus.read_bytes()
    whole = gzip.compress(plain) if suffix == ".gz" else pyarrow.Codec("zstd").compress(plain, asbytes=True)
    path = tmp_path / f"cut.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(PrepError, match=r"cut.jsonl\.\w+:\d+: the compressed data is damaged or cut short"):
        list(SourceReader(find_sources([str(path)])[0], "text").rows())


def test_a_window_that_is_too_large_is_no_damage(tmp_path: Path) -> None:
    row = b'{"text": "a"}\n'
    block = (len(row) << 3 | 1).to_bytes(3, "little") + row  # the last one, not compressed
    for window_log, is_read in ((27, True), (28, False)):
        path = tmp_path / f"{window_log}.jsonl.zst"
        path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + block)
        reader = SourceReader(find_sources([str(path)])[0], "text")
        if is_read:
            assert len(list(reader.rows())) == 1
            continue
        with pytest.raises(
            PrepError, match=r"28\.jsonl\.zst: compressed with a window above 128 MB; decompress it \(zstd"
        ):
            list(reader.rows())


def test_a_source_that_grows_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "growing.jsonl"
    path.write_text('{"text": "a"}\n' * 3)
    rows = SourceReader(find_sources([str(path)])[0], "text").rows()
    next(rows)
    with open(path, "a") as file:
        file.write('{"text": "b"}\n')
    with pytest.raises(PrepError, match="changed while it was read"):
        list(rows)


def test_a_network_that_fails_is_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes keeps the parts that are finished; damage does not."""
    store = fsspec.filesystem("memory")
    store.pipe("/net/a.jsonl", b'{"text": "a"}\n' * 3)
    (source,) = find_sources(["memory://net/a.jsonl"])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no route")

    reader = SourceReader(source, "text")
    monkeypatch.setattr(type(store), "info", fail)
    with pytest.raises(OSError, match="RuntimeError: no route") as failed:
        list(reader.rows())
    assert failed.value.errno == errno.EIO
    monkeypatch.undo()
    monkeypatch.setattr(MemoryFile, "readinto", fail)
    with pytest.raises(OSError, match="RuntimeError: no route") as failed:
        list(SourceReader(source, "text").rows())
    assert failed.value.filename == "memory://net/a.jsonl"


@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n"])
def test_lines_that_are_too_long_are_refused_and_the_next_are_read(last: bytes, tmp_path: Path) -> None:
    lines = [b"a" * 9, b"b" * 10, b"c" * 11, b"", b"d" * 3_000_000, b"e" * 8]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + last)
    found = list(SourceReader(find_sources([str(path)])[0], "").lines(10))
    assert [row for row in found if isinstance(row, bytes)] == [b"a" * 9, b"", b"e" * 8]
    refused = {row.line: row.reason for row in found if isinstance(row, Rejected)}
    assert list(refused) == [2, 3, 5]
    assert refused[5].startswith("a row of 3.0 MB; at most --hold-mb 1e-05 of a row may be in memory")
