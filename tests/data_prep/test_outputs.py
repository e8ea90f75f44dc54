"""What stands in an output folder already: what others wrote, what runs that were cut off left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.curation import load_predicate
from data_prep.errors import PrepError
from data_prep.manifest import MadeFrom, SourceRecord, differences
from data_prep.sources import find_sources
from data_prep.staging import PLAN, refuse_unfinished, remove_leftovers
from data_prep.tokenising import load_tokenizer
from tests.conftest import Command


def made_from(path: str, mtime_ns: int, sha256: str = "", **options: Any) -> MadeFrom:
    return MadeFrom(options, "t", {"before": [], "after": [0]}, [SourceRecord(path, 3, mtime_ns, sha256)])


def test_a_file_whose_time_is_unknown_is_compared_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"abc")
    here = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's example
    now = made_from(str(path), 0)
    assert differences(made_from(str(path), 0, here), now) == []
    assert "other content" in differences(made_from(str(path), 0, "0" * 64), now)[0]
    assert "is not known" in differences(made_from(str(path), 0), now)[0]


def test_leftovers_of_another_run_stay(tmp_path: Path) -> None:
    part = tmp_path / ".preparing" / "parts" / "000000"
    part.mkdir(parents=True)
    plan = {"made_from": made_from("a.jsonl", 1, split="b").to_json(), "part_bytes": 1}
    (tmp_path / ".preparing" / PLAN).write_text(json.dumps(plan))
    remove_leftovers(tmp_path, made_from("a.jsonl", 1, split="a"))
    assert part.is_dir()
    with pytest.raises(PrepError, match="finished parts"):
        refuse_unfinished(tmp_path, overwrite=False)
    refuse_unfinished(tmp_path, overwrite=True)
    remove_leftovers(tmp_path, made_from("a.jsonl", 1, split="b"))
    assert not part.exists()


def test_an_input_named_rejected_jsonl_stays(corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    given = tmp_path / "rejected.jsonl"
    shutil.copy(corpus, given)
    result = prepare(given, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert given.read_bytes() == corpus.read_bytes()


def test_a_split_in_the_work_folder_is_not_replaced(corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert prepare(corpus, "--out", work).returncode == 0
    words = ("--out", f"file://{tmp_path}/remote", "--work", work, "--dtype", "int32", "--overwrite")
    result = prepare(corpus, *words)
    assert (result.returncode, "was not made to be copied" in result.stderr) == (1, True)
    assert (work / "train" / "manifest.json").is_file()


@pytest.mark.parametrize("word", ["--eos-text", "--bos-text", "--filter"])
def test_text_that_is_not_utf8_is_words(word: str, corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    result = prepare(corpus, "--out", tmp_path / "out", word, "\udcff")
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert f"{word} '\\udcff': this is not UTF-8" in result.stderr


def test_one_file_by_two_names(corpus: Path, tmp_path: Path) -> None:
    for other in (f"file://{corpus}", tmp_path / "link.jsonl"):
        if isinstance(other, Path):
            other.hardlink_to(corpus)
        with pytest.raises(PrepError, match="given twice"):
            find_sources([str(corpus), str(other)])


def test_a_filter_may_be_a_module_with_dataclasses(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    lines = ["from __future__ import annotations", "from dataclasses import dataclass", "", "@dataclass"]
    path.write_text("\n".join([*lines, "class A:", "    a: int", "", "def good(row):", "    return True", ""]))
    assert load_predicate(f"{path}:good")({})


def test_a_tokenizer_that_transformers_would_change_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_prefix_space": True}))
    with pytest.raises(PrepError, match="add_prefix_space is True in"):
        load_tokenizer(str(folder))


def test_a_tokenizer_whose_files_are_damaged_is_made_anew(
    corpus: Path, tokenizer: Path, run_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, folder)
    words = ("python", "-m", "data_prep.tokenizer", corpus, "--out", folder, "--vocab-size", "512")
    assert "already done" in run_command(*words).stdout
    (folder / "tokenizer.json").write_bytes(b"{")
    assert "already done" not in run_command(*words).stdout
    assert (folder / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


def test_damaged_samples_are_words(
    corpus: Path, prepare: Callable[..., Any], run_command: Command, tmp_path: Path
) -> None:
    assert prepare(corpus, "--out", tmp_path, "--dtype", "int32").returncode == 0
    shard = tmp_path / "train" / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    content[-1] |= 0x80  # the last id of the last sample is negative
    shard.write_bytes(content)
    result = run_command("python", "-m", "data_prep.inspect", tmp_path, "--samples", "100000")
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)
    assert "a sample is damaged" in result.stderr
