"""The command: what it writes, when it refuses, and what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.holdout import is_held_out
from data_prep.manifest import load_manifest
from data_prep.sources import sha256_of_file
from tests.conftest import ROOT
from tests.data_prep.conftest import tree

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]


def test_manifest_says_what_is_there(finished: Path, corpus: Path, texts: list[str], tokenizer: Path) -> None:
    train, val = load_manifest(finished / "train"), load_manifest(finished / "val")
    assert train is not None
    assert val is not None
    held_out = [text for text in texts if is_held_out(text, 0.1)]
    assert val.documents == len(held_out) > 5
    assert train.documents == len(texts) - len(held_out)
    assert val.text_bytes == sum(len(text.encode()) for text in held_out)
    for split in (train, val):
        assert (split.splits, split.main_split) == (["val", "train"], "train")
        assert (split.seq_len, split.dtype, split.rejected) == (64, "uint16", 0)
        assert split.tokens == 64 * split.sequences == 64 * sum(shard.samples or 0 for shard in split.shards)
        assert 0 <= split.dropped_tokens < 64
        assert split.tokenizer.sha256 == sha256_of_file(tokenizer / "tokenizer.json")
        assert (split.tokenizer.vocab_size, split.tokenizer.eos_id, split.tokenizer.pad_id) == (512, 0, 1)
        assert split.separators == {"before": [], "after": [0]}
        assert split.sources[0].sha256 == sha256_of_file(corpus)
        for record in (*split.shards, *split.files):
            assert record.sha256 == sha256_of_file(finished / split.split / record.name)
    assert (train.role, val.role) == ("main", "held-out")
    assert [record.name for record in val.files] == ["documents.jsonl", "index.json"]
    assert sorted(path.name for path in finished.iterdir()) == ["train", "val"]  # nothing hidden is left


def test_held_out_documents_are_the_rows_of_the_source(finished: Path, corpus: Path) -> None:
    rows = (finished / "val" / "documents.jsonl").read_bytes().splitlines()
    source = corpus.read_bytes().splitlines()
    assert rows == [row for row in source if is_held_out(json.loads(row)["text"], 0.1)]


def test_held_out_part_does_not_depend_on_order_or_files(
    finished: Path, corpus: Path, prepare: Prepare, tmp_path: Path
) -> None:
    rows = corpus.read_bytes().splitlines(keepends=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1.jsonl").write_bytes(b"".join(rows[120:][::-1]))
    (parts / "2.jsonl").write_bytes(b"".join(rows[:120]))
    assert prepare(parts, "--out", tmp_path / "out", "--holdout", "0.1").returncode == 0
    expected = sorted((finished / "val" / "documents.jsonl").read_bytes().splitlines())
    assert sorted((tmp_path / "out" / "val" / "documents.jsonl").read_bytes().splitlines()) == expected


def test_same_command_again_is_done_at_once(finished: Path, corpus: Path, prepare: Prepare, tmp_path: Path) -> None:
    before = tree(finished)
    start = time.monotonic()
    result = prepare(corpus, "--out", finished, "--holdout", "0.1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "already done" in result.stdout
    assert time.monotonic() - start < 5  # s; about 0.3 on a machine with nothing else to do
    assert tree(finished) == before

    moved = Path(shutil.copy(corpus, tmp_path / "moved.jsonl"))  # other path and time, same content
    os.utime(moved, ns=(1, 1))
    assert "already done" in prepare(moved, "--out", finished, "--holdout", "0.1").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--holdout", "0.2"], "--holdout: 0.1 -> 0.2"),
        ([], "--holdout: 0.1 -> 0.0"),
        (["--holdout", "0.1", "--seq-len", "32"], "--seq-len: 64 -> 32"),
        (["--holdout", "0.1", "--dtype", "int32"], "--dtype: 'uint16' -> 'int32'"),
        (["--holdout", "0.1", "--eos-text", "<|padding|>"], "--eos-text: not given -> '<|padding|>'"),
        (["--holdout", "0.1", "--allow-special"], "--allow-special: off -> on"),
        (["--holdout", "0.1", "--near-dedup", "0.8"], "--near-dedup: not given -> 0.8"),
        (["--holdout", "0.1", "--split", "val", "--holdout-split", "test"], "val is held out from 'train'"),
    ],
)
def test_other_options_are_refused(
    options: list[str], said: str, finished: Path, corpus: Path, tokenizer: Path, run_command: Any
) -> None:
    before = tree(finished)
    words = ("--out", finished, "--tokenizer", tokenizer, "--seq-len", "64", *options)
    result = run_command("python", "-m", "data_prep.pretrain", corpus, *words)
    assert result.returncode == 1
    assert said in result.stderr
    assert tree(finished) == before


def test_other_input_or_tokenizer_is_refused_and_overwritten(
    finished: Path, corpus: Path, tokenizer: Path, prepare: Prepare, tmp_path: Path, run_command: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    changed = tmp_path / corpus.name
    changed.write_bytes(corpus.read_bytes().replace(b"the", b"THE", 1))
    result = prepare(changed, "--out", out, "--holdout", "0.1")
    assert result.returncode == 1
    assert f"input: {corpus}" in result.stderr
    assert ", other content" in result.stderr
    assert "--overwrite" in result.stderr

    other = tmp_path / "tokenizer"
    shutil.copytree(tokenizer, other)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|padding|>"}))
    words = ("--out", out, "--tokenizer", other, "--seq-len", "64", "--holdout", "0.1")
    result = run_command("python", "-m", "data_prep.pretrain", corpus, *words)
    assert "ids around each document: [] before, [0] behind -> [] before, [1] behind" in result.stderr

    assert prepare(changed, "--out", out, "--overwrite").returncode == 0  # and without a held-out part
    assert sorted(path.name for path in out.iterdir()) == ["train"]
    assert prepare(changed, "--out", tmp_path / "fresh").returncode == 0
    assert tree(out) == tree(tmp_path / "fresh")


def test_damage_is_noticed_before_done_is_said(finished: Path, corpus: Path, prepare: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "val" / "shard.00000.mds").unlink()
    result = prepare(corpus, "--out", out, "--holdout", "0.1")
    assert result.returncode == 1
    assert f"missing or truncated shard {out}/val/shard.00000.mds" in result.stderr
    assert prepare(corpus, "--out", out, "--holdout", "0.1", "--overwrite").returncode == 0
    assert tree(out) == tree(finished)


def test_what_others_wrote_is_left_alone(corpus: Path, prepare: Prepare, tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "train"
    theirs.mkdir(parents=True)
    (theirs / "index.json").write_text("{}")
    for options in ([], ["--overwrite"]):
        result = prepare(corpus, "--out", tmp_path / "out", *options)
        assert result.returncode == 1
        assert "was not written by this command (no manifest.json in it)" in result.stderr
    assert tree(tmp_path / "out") == {"train/index.json": b"{}"}
    assert prepare(corpus, "--out", tmp_path / "out", "--split", "other").returncode == 0
    (tmp_path / "file" / "val").parent.mkdir()
    (tmp_path / "file" / "val").touch()
    result = prepare(corpus, "--out", tmp_path / "file", "--holdout", "0.1")
    assert result.returncode == 1
    assert f"{tmp_path}/file/val is no folder of a split" in result.stderr
    assert tree(tmp_path / "file") == {"val": b""}


def test_names_that_are_not_utf8_are_words(corpus: Path, prepare: Prepare, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.jsonl")
    shutil.copy(corpus, tmp_path / odd)
    for words in ((tmp_path / odd,), (tmp_path,), (corpus, "--split", odd), (corpus, "--out", tmp_path / odd)):
        result = prepare("--out", tmp_path / "out", *words)
        assert result.returncode == 1
        assert "this is not UTF-8" in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_special_tokens_in_text_stay_text(jsonl: Any, prepare: Prepare, tmp_path: Path) -> None:
    rows = jsonl([{"text": "a<|endoftext|>b<|padding|>c " * 30}] * 10)
    counts = {}
    for name, options in (("text", []), ("special", ["--allow-special"])):
        assert prepare(rows, "--out", tmp_path / name, *options).returncode == 0
        shard = (tmp_path / name / "train" / "shard.00000.mds").read_bytes()
        samples = json.loads((tmp_path / name / "train" / "manifest.json").read_text())["sequences"]
        ends = [int.from_bytes(shard[4 + 4 * n : 8 + 4 * n], "little") for n in range(samples + 1)]
        ids = [int.from_bytes(shard[at : at + 2], "little") for end in ends[1:] for at in range(end - 128, end, 2)]
        counts[name] = (ids.count(0), ids.count(1))
    assert counts["text"][1] == 0
    assert counts["text"][0] <= 10  # one a document, less what is in the tail
    assert counts["special"][0] > 200
    assert counts["special"][1] > 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.jsonl", "--out", "out"], "none.jsonl: no such file or folder"),
        (["*.jsonl", "--out", "out"], "*.jsonl: matches no .jsonl"),
        (["{corpus}", "--out", "/proc/none/out"], "--out /proc/none/out cannot be created"),
        (["{corpus}", "--out", ""], "--out '': expected a path to write to"),
        (["{corpus}", "--out", "{corpus}"], "expected a folder to write to, and it is a file"),
        (["{corpus}", "--out", "out", "--tokenizer", "nobody/none"], "--tokenizer nobody/none: no such folder here"),
        (["{corpus}", "--out", "out", "--tokenizer", "./none"], "--tokenizer ./none: no such file or folder"),
        (["{corpus}", "--out", "out", "--tokenizer", "{corpus}"], "not a tokenizer.json of the tokenizers library"),
        (["{corpus}", "--out", "out", "--tokenizer", "."], "a folder without tokenizer.json"),
        (["{corpus}", "--out", "out", "--seq-len", "0"], "--seq-len 0: expected the tokens a sequence"),
        (["{corpus}", "--out", "out", "--seq-len", "99999999"], "cannot hold"),
        (["{corpus}", "--out", "out", "--seq-len", "999999"], "fewer than one sequence of 999,999"),
        (["{corpus}", "--out", "out", "--holdout", "1e-9"], "split 'val': 0 documents with 0 tokens"),
        (["{corpus}", "--out", "out", "--split", "../x"], "--split '../x': expected the name of a folder"),
        (["{corpus}", "--out", "out", "--split", "x" * 256], "expected a name of at most 200 bytes"),
        (["{corpus}", "--out", "x" * 256], "File name too long; file systems take 255 bytes a name"),
        (["x" * 256, "--out", "out"], "x: no such file or folder"),
        (["{corpus}", "--out", "out", "--part-mb", "inf"], "--part-mb inf: expected megabytes"),
        (["{corpus}", "--out", "out", "--usd-per-hour", "nan"], "--usd-per-hour nan: expected dollars"),
        (["{corpus}", "--out", "out", "--max-rejected", "5"], "--max-rejected 5: expected a share"),
        (["{corpus}", "--out", "out", "--split", "parts"], "--split 'parts': expected another name"),
        (["{corpus}", "--out", "~nobody-of-this-name/x", "--holdout", "1"], "--holdout 1: expected a fraction"),
        (["{corpus}", "--out", "out", "--eos-text", ""], "nothing would separate one document from the next"),
        (["{corpus}", "--out", "out", "--text-key", "body"], "documents.jsonl:1: no key 'body'"),
    ],
)
def test_refusals_are_words(
    words: list[str], said: str, corpus: Path, tokenizer: Path, tmp_path: Path, run_command: Any
) -> None:
    common = ["--tokenizer", str(tokenizer), "--seq-len", "64"]
    given = [word.format(corpus=corpus) for word in [words[0], *common, *words[1:]]]  # the last of an option counts
    result = run_command("python", "-m", "data_prep.pretrain", *given, cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_full_disk_is_words(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    """With a limit on the size of files, which the operating system refuses as it does on a full disk."""
    words = [sys.executable, "-m", "data_prep.pretrain", str(corpus), "--out", str(tmp_path / "out")]
    command = " ".join([*words, "--tokenizer", str(tokenizer), "--seq-len", "64"])
    result = subprocess.run(["bash", "-c", f"ulimit -f 8; {command}"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        1,
        "error: File too large; a limit on the size of files (ulimit -f) was reached.\n",
    )
    assert not (tmp_path / "out").exists()


def test_second_run_is_refused(corpus: Path, prepare: Prepare, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = prepare(corpus, "--out", out)
    assert result.returncode == 1
    assert f"{out}: another run is writing there" in result.stderr
    assert prepare(corpus, "--out", out).returncode == 0  # a lock file that nobody holds is no obstacle
    assert [path.name for path in out.iterdir()] == ["train"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(number: signal.Signals, status: int, workers: str, tokenizer: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    row = b'{"text": "' + b"Peace and good will to all. " * 400 + b'"}\n'
    large.write_bytes(row * 4000)  # 45 MB, two parts: seconds
    out = tmp_path / "out"
    words = ["--out", str(out), "--tokenizer", str(tokenizer), "--seq-len", "64", "--encoder", "tokenizers"]
    command = [sys.executable, "-m", "data_prep.pretrain", str(large), *words, "--workers", workers]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list((out / ".preparing" / "parts").glob(".*")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "nothing unfinished stands under its final name" in said
    assert "Traceback" not in said
    assert not out.exists()


def test_numpy_starts_no_threads(
    prepare: Prepare, corpus: Path, tmp_path: Path, run_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    seen = tmp_path / "seen"
    write = f"open({str(seen)!r}, 'w').write(os.environ['OPENBLAS_NUM_THREADS'])"
    (tmp_path / "mine.py").write_text(f"import os\n\n\ndef note(row):\n    {write}\n    return True\n")
    result = prepare(corpus, "--out", tmp_path / "out", "--filter", f"{tmp_path / 'mine.py'}:note")
    assert result.returncode == 0, result.stderr
    assert seen.read_text() == "1"
    importer = run_command("python", "-c", "import os, data_prep; print(os.environ.get('OPENBLAS_NUM_THREADS'))")
    assert importer.stdout == "None\n"
