"""Parts: cut anywhere and done by any number of workers, they hold every row once and make the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.parts import Segment, cut_into_parts
from data_prep.readers import open_reader
from data_prep.rows import Document
from data_prep.sources import Source, find_sources
from tests.data_prep.conftest import tree


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 7, 50, 1000])
@pytest.mark.parametrize("last_newline", [True, False])
def test_every_row_is_in_one_part(part_bytes: int, last_newline: bool, tmp_path: Path) -> None:
    rng = random.Random(part_bytes)
    rows = [json.dumps({"text": "x" * rng.choice((1, 5, 40))}).encode() for _ in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(rows) + b"\n" * last_newline)
    sources = find_sources([str(path)])
    parts = cut_into_parts(sources, part_bytes)
    found = []
    for part in parts:
        for segment in part.segments:
            read = list(open_reader(sources[0], "text", segment.start, segment.end).rows())
            assert [row.line for row in read] == list(range(1, len(read) + 1))
            found += [row.row for row in read if isinstance(row, Document)]
    assert found == rows


def test_small_files_share_a_part_and_compressed_ones_are_not_cut() -> None:
    names = [("a.jsonl", 10), ("b.jsonl", 20), ("c.jsonl.gz", 500), ("d.jsonl", 250), ("e.jsonl", 5)]
    sources = [Source(name, size, 0) for name, size in names]
    parts = cut_into_parts(sources, 100)
    assert [part.segments for part in parts] == [
        (Segment(0, 0, 10), Segment(1, 0, 20)),
        (Segment(2, 0, 500),),
        (Segment(3, 0, 100),),
        (Segment(3, 100, 200),),
        (Segment(3, 200, 250), Segment(4, 0, 5)),
    ]
    assert [part.number for part in parts] == list(range(5))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """3 MB in two files, with bad rows here and there."""
    folder = tmp_path_factory.mktemp("large")
    rows = corpus.read_bytes().splitlines(keepends=True)
    for name, count in (("a.jsonl", 9), ("b.jsonl", 5)):
        copies = [row.replace(b'"id": ', b'"id": %d' % n) for n in range(1, count + 1) for row in rows]
        copies[700] = b'{"none": 1}\n'
        copies[-1] = b"\n"
        (folder / name).write_bytes(b"".join(copies))
    return folder


def test_same_bytes_from_any_number_of_workers(large: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    options = ("--holdout", "0.1", "--on-error", "skip", "--dtype", "int32")
    for workers, part_mb in (("1", "1000"), ("1", "1"), ("2", "1"), ("3", "1")):
        out = tmp_path / f"{workers}-{part_mb}"
        result = prepare(large, "--out", out, *options, "--workers", workers, "--part-mb", part_mb)
        assert (result.returncode, result.stderr) == (0, "")
        assert tree(out) == tree(tmp_path / "1-1000")
    listed = [json.loads(row)["place"] for row in (out / "train" / "rejected.jsonl").read_text().splitlines()]
    assert listed == [f"{large}/a.jsonl:701", f"{large}/a.jsonl:1800", f"{large}/b.jsonl:701", f"{large}/b.jsonl:1000"]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_first_bad_row_is_named_by_all(
    workers: str, large: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    result = prepare(large, "--out", tmp_path / "out", "--workers", workers, "--part-mb", "1")
    assert result.returncode == 1
    assert f"{large}/a.jsonl:701: no key 'text'" in result.stderr
    assert not (tmp_path / "out").exists()
