"""The corpus that comes with the repository, and the script that made it."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from data_prep.reading import SourceReader
from data_prep.rows import Document
from data_prep.sotu import questions
from data_prep.sources import find_sources, sha256_of_file
from tests.conftest import Command
from tests.data_prep.conftest import CORPUS


def test_corpus_is_what_its_readme_says() -> None:
    readme = CORPUS.with_name("README.md").read_text()
    assert f"`{sha256_of_file(CORPUS)}`" in readme
    rows = list(SourceReader(find_sources([str(CORPUS)])[0], "text").rows())
    assert len(rows) == 110
    assert all(isinstance(row, Document) for row in rows)
    values = [json.loads(row.row) for row in rows if isinstance(row, Document)]
    assert [set(value) for value in values] == [{"president", "year", "party", "text"}] * 110
    assert [value["year"] for value in values] == sorted(value["year"] for value in values)
    assert (values[0]["year"], values[-1]["year"]) == (1913, 2021)
    assert 3e6 < CORPUS.stat().st_size < 5e6


def test_make(tmp_path: Path, run_command: Command) -> None:
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    addresses = [("b", 1913, "Two \u2014"), ("a", 1913, "One\n"), ("c", 2000, "Three"), ("d", 1912, "Early")]
    for name, year, text in addresses:
        row = {"year": year, "name": name, "party": "none", "text": text}
        (data / f"{year}_{name}_n.json").write_text(json.dumps(row))
    out = tmp_path / "made.jsonl"
    command = ("python", "-m", "data_prep.sotu.make")
    result = run_command(*command, tmp_path / "package", "--out", out)
    assert result.returncode == 0, result.stderr
    assert out.read_text(encoding="utf-8").splitlines() == [
        '{"president": "a", "year": 1913, "party": "none", "text": "One\\n"}',
        '{"president": "b", "year": 1913, "party": "none", "text": "Two —"}',
        '{"president": "c", "year": 2000, "party": "none", "text": "Three"}',
    ]
    refused = run_command(*command, tmp_path)
    assert refused.returncode == 1
    assert "expected the unpacked npm package" in refused.stderr
    bad = data / "2000_c_n.json"
    bad.write_text('{"name": "c"}')
    refused = run_command(*command, tmp_path / "package", "--out", out)
    assert refused.returncode == 1
    assert f"error: {bad}: KeyError('year'); expected an address with name, year, party and text." in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.jsonl", "package"]


def test_a_full_disk_leaves_the_questions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sys, "argv", ["questions"])
    path = tmp_path / "questions.jsonl"
    monkeypatch.setattr(questions, "QUESTIONS", path)
    path.write_text("old")
    assert questions.main() == 1
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {path.name: "old"}
