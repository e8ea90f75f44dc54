"""What stands in an output folder already: what others wrote, what runs that were cut off left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.curation import DocumentFilter, FilterSettings, load_predicate
from data_prep.durable import flush, write_durably, write_whole
from data_prep.errors import Interrupted, PrepError
from data_prep.manifest import MadeFrom, SourceRecord, differences
from data_prep.part_files import PartFacts, finish_part, load_part, new_folder
from data_prep.publishing import exclusive, publish
from data_prep.rows import Document
from data_prep.sources import find_sources, sha256_of_file
from data_prep.staging import PLAN, refuse_unfinished, remove_leftovers, resumable_staging
from data_prep.tasks import PARTS, RECORDS, UNFINISHED, source_digests, write_record
from data_prep.tokenising import choose_dtype, load_tokenizer
from tests.conftest import Command
from tests.data_prep.conftest import tree


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


def test_a_run_that_was_cut_off_is_known_from_another_folder_and_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"abc")

    def run_until(cause: Exception, now: MadeFrom) -> bool:
        """Finish a part and fail; whether it was finished before."""
        with contextlib.suppress(type(cause)), resumable_staging(tmp_path / "out", now, 1, False) as staging:
            was_finished = load_part(staging / PARTS, 0) is not None
            facts = PartFacts(sha256={"0": sha256_of_file(source)})
            finish_part(staging / PARTS, 0, new_folder(staging / PARTS, 0), facts)
            raise cause
        return was_finished

    (tmp_path / "out").mkdir()
    assert not run_until(Interrupted(), made_from("a.jsonl", 1, max_rejected=0.01))
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    for path, mtime_ns, share in (("../a.jsonl", 1, 0.01), ("../a.jsonl", 2, 0.01), ("../a.jsonl", 1, 0.5)):
        assert run_until(Interrupted(), made_from(path, mtime_ns, max_rejected=share))
    source.write_bytes(b"abd")
    with pytest.raises(PrepError, match=r"input: .*/a\.jsonl \(3 bytes\) -> \.\./a\.jsonl \(3 bytes\), other content"):
        run_until(Interrupted(), made_from("../a.jsonl", 2))
    source.write_bytes(b"abc")
    assert run_until(PrepError(), made_from("../a.jsonl", 1))
    assert not run_until(PrepError(), made_from("../a.jsonl", 1))  # what does not pass took the parts away


def test_source_digests_come_from_parts_and_tasks(tmp_path: Path) -> None:
    for folder in (RECORDS, UNFINISHED):
        (tmp_path / folder).mkdir()
    write_record(tmp_path, "source.1", {"sha256": "b"})
    write_record(tmp_path, "source.0.shard.00000.mds", {"sha256": "c"})  # of a split that is named so
    parts = [PartFacts(), PartFacts(sha256={"0": "a", "12": "d"})]
    assert source_digests(tmp_path, parts, 13) == {0: "a", 1: "b", 12: "d"}


def test_a_filter_is_known_by_its_function_and_its_content() -> None:
    def changes(before: str, after: str, digest: str = "1") -> list[str]:
        old = made_from("a.jsonl", 1, filter=before, filter_sha256="1")
        return differences(old, made_from("a.jsonl", 1, filter=after, filter_sha256=digest))

    assert changes("mine.py:good", "../x/mine.py:good") == []
    assert changes("mine.py:good", "mine.py:bad") == ["--filter: 'mine.py:good' -> 'mine.py:bad'"]
    assert changes("mine.py:good", "mine.py:good", "2") == ["--filter-sha256: '1' -> '2'"]


def test_a_filter_that_changed_meanwhile_or_exits_is_words(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import sys\n\n\ndef leave(row):\n    sys.exit()\n")
    name, digest = f"{path}:leave", sha256_of_file(path)
    one = DocumentFilter(FilterSettings(predicate=name, predicate_sha256=digest))
    with pytest.raises(PrepError, match=r"mine\.py:leave failed on 'a': SystemExit"):
        one.by_predicate(Document(1, "a", b"{}"))
    path.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(Interrupted, match=f"--filter {path} changed while the run went on"):
        load_predicate(name, digest)
    with pytest.raises(PrepError, match=r"mine\.py cannot be loaded: SystemExit: 0"):
        load_predicate(name, sha256_of_file(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):  # which keeps the finished parts
        load_predicate(name, digest)


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
    assert load_predicate(f"{path}:good", sha256_of_file(path))({})


def test_a_tokenizer_that_transformers_would_change_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_prefix_space": True}))
    with pytest.raises(PrepError, match="add_prefix_space is True in"):
        load_tokenizer(str(folder))


def test_a_tokenizer_that_was_edited_is_replaced_with_overwrite_alone(
    corpus: Path, tokenizer: Path, run_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, folder)
    words = ("python", "-m", "data_prep.tokenizer", corpus, "--out", folder, "--vocab-size", "512")
    (folder / "notes.md").write_text("mine")
    assert "already done" in run_command(*words).stdout
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").unlink()
    before = tree(folder)
    refused = run_command(*words)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"error: {folder} is not as it was written: special_tokens_map.json is missing, tokenizer_config.json was "
        "changed; give another --out, or --overwrite, which also removes notes.md.\n",
    )
    assert tree(folder) == before
    assert run_command(*words, "--overwrite").returncode == 0
    assert tree(folder) == tree(tokenizer)


def test_a_split_under_another_name_stays(corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    assert prepare(corpus, "--out", tmp_path, "--holdout", "0.1").returncode == 0
    for name in ("train", "val"):
        (tmp_path / name).rename(tmp_path / f"{name}-v1")
    before = tree(tmp_path)
    assert prepare(corpus, "--out", tmp_path, "--dtype", "int32").returncode == 0
    shutil.copytree(tmp_path / "train", tmp_path / "val")  # nor is it taken for a held-out split
    refused = prepare(corpus, "--out", tmp_path, "--holdout", "0.1", "--overwrite")
    assert f"{tmp_path}/val belongs to {tmp_path}/train, as its split 'train'" in refused.stderr
    assert prepare(corpus, "--out", tmp_path, "--overwrite").returncode == 0
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    assert (tmp_path / "val").is_dir()


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


def test_ids_of_16_bits_hold_65536_words_and_no_more() -> None:
    assert [choose_dtype("auto", size) for size in (1 << 16, (1 << 16) + 1)] == ["uint16", "int32"]
    assert choose_dtype("int32", 100) == "int32"
    with pytest.raises(PrepError, match="--dtype uint16 holds ids below 65,536"):
        choose_dtype("uint16", (1 << 16) + 1)


def test_what_is_written_is_on_the_disk_when_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    write_durably(tmp_path / "a", b"new")
    flush(tmp_path)
    assert synced == [str(tmp_path / "a"), str(tmp_path)]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def no_room(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", no_room)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


def test_the_main_split_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("val", "train"):
        (tmp_path / split).mkdir()
        (tmp_path / "staging" / split).mkdir(parents=True)
    renamed: list[str] = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: renamed.append(f"{a.name} → {b.name}") or rename(a, b))
    publish(tmp_path, tmp_path / "staging", ["val", "train"], ["val", "train"])
    assert renamed == ["train → .old-train", "val → .old-val", "val → val", "train → train"]


def test_the_lock_of_a_file_that_its_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, tries, flock = tmp_path / ".lock", [], fcntl.flock

    def after_its_holder(handle: int, how: int) -> None:
        flock(handle, how)
        tries.append(handle)
        if len(tries) == 1:
            lock.unlink()

    monkeypatch.setattr(fcntl, "flock", after_its_holder)
    with exclusive(tmp_path):
        assert lock.exists()
        assert len(tries) == 2
