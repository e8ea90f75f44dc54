"""Parquet and text files, and files behind URLs, give the shards of the same documents in JSONL."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.errors import PrepError
from data_prep.readers import open_reader
from data_prep.rows import Document, Rejected
from data_prep.sources import find_sources
from tests.data_prep.conftest import tree


@pytest.fixture
def parquet(tmp_path: Path, texts: list[str]) -> Path:
    """The documents in 20 row groups."""
    path = tmp_path / "documents.parquet"
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, path, row_group_size=10)
    return path


def shards(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(out).items() if not name.endswith("manifest.json")}


def test_same_shards_from_every_format(
    corpus: Path, parquet: Path, texts: list[str], prepare: Callable[..., Any], tmp_path: Path
) -> None:
    as_text = tmp_path / "texts"
    as_text.mkdir()
    for number, text in enumerate(texts):
        (as_text / f"{number:03}.txt").write_bytes(text.encode())
    inputs = {
        "jsonl": corpus,
        "parquet": parquet,
        "txt": as_text,
        "url": f"file://{corpus}",
        "urls": f"file://{as_text}",
    }
    for name, source in inputs.items():
        result = prepare(source, "--out", tmp_path / name)
        assert (result.returncode, result.stderr) == (0, "")
        assert shards(tmp_path / name) == shards(tmp_path / "jsonl"), name
        assert "already done" in prepare(source, "--out", tmp_path / name).stdout


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_every_row_group_is_in_one_part(pieces: int, parquet: Path, texts: list[str]) -> None:
    source = find_sources([str(parquet)])[0]
    step = -(-source.bytes // pieces)
    found: list[str] = []
    for start in range(0, source.bytes, step):
        rows = list(open_reader(source, "text", start, min(start + step, source.bytes)).rows())
        found += [row.text for row in rows if isinstance(row, Document)]
    assert found == texts


def test_rows_have_all_columns_where_asked(parquet: Path) -> None:
    source = find_sources([str(parquet)])[0]
    row = next(open_reader(source, "text", all_fields=True).rows())
    assert isinstance(row, Document)
    assert row.fields() == {"id": 0, "text": row.text}


def test_a_filter_is_asked_about_the_values_themselves(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    times = pyarrow.array([1], pyarrow.timestamp("s"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "score": [math.nan], "time": times}), path)
    row = next(open_reader(find_sources([str(path)])[0], "text", all_fields=True).rows())
    assert isinstance(row, Document)
    fields = row.fields()
    assert not fields["score"] > 0.5
    assert fields["time"] == datetime.datetime(1970, 1, 1, 0, 0, 1)
    assert json.loads(row.row) == {"text": "a", "score": None, "time": "1970-01-01T00:00:01"}


def test_bad_parquet_rows_and_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    texts = [b"good", None, b"", b"\xff"]
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.binary())}), path)
    rows = list(open_reader(find_sources([str(path)])[0], "text").rows())
    assert [row.reason for row in rows if isinstance(row, Rejected)] == [
        "'text' is null, expected a string",
        "'text' is empty",
        "'text' is not UTF-8 (invalid start byte)",
    ]
    broken = pyarrow.array([b"a", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    times = pyarrow.array([1, 2], pyarrow.timestamp("s"))
    far = pyarrow.array([1, 3 * 10**11], pyarrow.timestamp("s"))  # beyond the year 9999
    odd = tmp_path / "odd.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": broken, "time": times, "far": far}), odd)
    for text_key, all_fields, reason in (
        ("text", False, "'text' is not UTF-8 (invalid start byte)"),
        ("text", True, "'text' is not UTF-8 (invalid start byte)"),
        ("time", False, "'time' is of type datetime, expected a string"),
        ("far", False, "'far' cannot be read (OverflowError: "),
    ):
        last = list(open_reader(find_sources([str(odd)])[0], text_key, all_fields=all_fields).rows())[-1]
        assert isinstance(last, Rejected)
        assert last.line == 2
        assert last.reason.startswith(reason)
    with pytest.raises(PrepError, match=r"no column 'body' \(--text-key\); its columns: text"):
        list(open_reader(find_sources([str(path)])[0], "body").rows())
    damaged = bytearray(odd.read_bytes())
    damaged[4:12] = b"\xff" * 8  # the header of the first page
    odd.write_bytes(damaged)
    with pytest.raises(PrepError, match=r"odd\.parquet: not a parquet file that can be read"):
        list(open_reader(find_sources([str(odd)])[0], "text").rows())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PrepError, match=r"bad\.parquet: not a parquet file that can be read"):
        list(open_reader(find_sources([str(path)])[0], "text").rows())


def test_text_files(tmp_path: Path) -> None:
    for content, expected in (
        ("ä\n\nb".encode(), "ä\n\nb"),
        (b"a\xff", "byte 0xff at byte 2"),
        (b"", "is empty"),
        (b"\xef\xbb\xbfa", "starts with a UTF-8 byte order mark"),
    ):
        path = tmp_path / "one.txt"
        path.write_bytes(content)
        reader = open_reader(find_sources([str(path)])[0], "text")
        (row,) = reader.rows()
        if isinstance(row, Document):
            assert row.text == expected
            assert json.loads(row.row) == {"text": expected}
        else:
            assert expected in row.reason
