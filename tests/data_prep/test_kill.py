"""kill -9 at any moment, then the same command again: the same bytes as a run that was left alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import Interrupted
from data_prep.tasks import HashTask
from data_prep.workers import WorkerProcesses
from tests.conftest import ROOT, Command
from tests.data_prep.conftest import tree


@pytest.mark.parametrize("over_an_older_one", [False, True])
def test_killed_at_every_step(
    over_an_older_one: bool, corpus: Path, tokenizer: Path, tmp_path: Path, run_command: Command
) -> None:
    """Each rename and each fsync of a run is killed once; also where the run replaces the output of another."""

    def words(out: Path, seq_len: int, *more: str) -> list[str | Path]:
        common = ["--tokenizer", tokenizer, "--seq-len", str(seq_len), "--holdout", "0.1"]
        return [corpus, "--out", out, *common, *more]

    def prepare(out: Path, seq_len: int) -> None:
        result = run_command("python", "-m", "data_prep.pretrain", *words(out, seq_len))
        assert result.returncode == 0, result.stderr

    before, reference, out = tmp_path / "before", tmp_path / "reference", tmp_path / "out"
    prepare(reference, 64)
    if over_an_older_one:
        prepare(before, 32)
    arguments = words(out, 64, *(["--overwrite"] if over_an_older_one else []))
    result = run_command("python", Path(__file__).with_name("crash.py"), out, reference, before, "--", *arguments)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= (15 if over_an_older_one else 13)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """6 MB, so that there are six parts of 1 MB."""
    path = tmp_path_factory.mktemp("large") / "large.jsonl"
    path.write_bytes(b"".join(corpus.read_bytes().replace(b'"id": ', b'"id": %d' % n) for n in range(1, 33)))
    return path


@pytest.fixture
def command(large: Path, tokenizer: Path) -> Callable[..., list[str]]:
    """The words of a run in parts of 1 MB."""

    def words(out: Path, *more: str) -> list[str]:
        options = ["--tokenizer", str(tokenizer), "--seq-len", "64", "--holdout", "0.1", "--part-mb", "1", *more]
        return [sys.executable, "-m", "data_prep.pretrain", str(large), "--out", str(out), *options]

    return words


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


def killed_when(words: list[str], is_time: Callable[[], bool]) -> int:
    """Start a run, kill it as soon as it is time, or let it end before; its return code."""
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not is_time():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    return process.returncode


def test_killed_at_random_moments(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Real processes, killed wherever they are, with one worker and with two; each time the next run goes on."""
    start = time.monotonic()
    assert run(command(tmp_path / "once")).returncode == 0
    seconds = time.monotonic() - start
    expected = tree(tmp_path / "once")

    rng = random.Random(os.getpid())
    out = tmp_path / "out"
    killed = finished = 0
    while killed < 12:
        workers = rng.choice(("1", "2"))
        end = time.monotonic() + rng.uniform(0.2, 1.2 if workers == "1" else 2.0) * seconds
        words = command(out, "--encoder", "gigatoken", "--workers", workers)
        status = killed_when(words, lambda end=end: time.monotonic() > end)  # type: ignore[misc]
        killed += status == -signal.SIGKILL
        if status == 0 or rng.random() < 0.1:
            assert run(words).returncode == 0
            assert tree(out) == expected
            shutil.rmtree(out)
            finished += 1
    result = run(command(out))
    assert result.returncode == 0, result.stderr
    assert tree(out) == expected


def test_goes_on_from_finished_parts(command: Callable[..., list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = out / ".preparing" / "parts"
    slow = ("--encoder", "tokenizers", "--workers", "1")
    assert killed_when(command(out, *slow), lambda: len(list(parts.glob("0*"))) >= 2) == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in parts.glob("0*")}

    for more, said in (
        (["--dtype", "int32"], "--dtype: 'uint16' -> 'int32'"),
        (["--dedup"], "--dedup: off -> on"),
        (["--part-mb", "2"], "--part-mb: 1 -> 2"),
    ):
        refused = run(command(out, *more))
        assert refused.returncode == 1
        assert f"{out} holds the finished parts of a run that was cut off:\n  {said}" in refused.stderr
        assert "--overwrite to throw them away" in refused.stderr
    assert {path.name: path.stat().st_mtime_ns for path in parts.glob("0*")} == finished

    damaged = parts / "000001" / "main.ids"
    damaged.write_bytes(damaged.read_bytes()[:-2])  # as after a loss of power: this part is made again
    result = run(command(out, "--workers", "2"))
    assert result.returncode == 0, result.stderr
    assert f"{len(finished) - 1} parts were finished before" in result.stdout
    assert run(command(tmp_path / "once")).returncode == 0
    assert tree(out) == tree(tmp_path / "once")


def test_a_worker_that_dies_and_a_source_that_vanishes(
    command: Callable[..., list[str]], large: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    parts = out / ".preparing" / "parts"
    words = command(out, "--encoder", "tokenizers", "--workers", "2")
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(parts.glob("0*")):
            time.sleep(0.01)
            assert process.poll() is None
        writing = next(path.name for path in parts.glob(".0*"))
        os.kill(int(writing.split("-")[1]), signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 1
    assert "a worker process was killed by signal SIGKILL; if memory ran out, take fewer --workers" in said

    moved = large.rename(tmp_path / "away.jsonl")
    vanished = run(words)
    assert vanished.returncode == 1
    assert "large.jsonl: no such file or folder" in vanished.stderr
    assert list(parts.glob("0*"))
    moved.rename(large)
    result = run(words)
    assert result.returncode == 0, result.stderr
    assert "parts were finished before" in result.stdout
    assert run(command(tmp_path / "once")).returncode == 0
    assert tree(out) == tree(tmp_path / "once")


def test_a_worker_that_died_while_it_waited_is_told(tmp_path: Path) -> None:
    workers = WorkerProcesses(1, None, tmp_path, lambda progress: None)  # type: ignore[arg-type]
    try:
        for process in workers._processes.values():
            process.kill()
            process.join()
        with pytest.raises(Interrupted, match="a worker process was killed by signal SIGKILL"):
            workers.run([HashTask(0)])
    finally:
        workers.close()


def test_full_disk_keeps_finished_parts(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """With a limit on the size of files, which the operating system refuses as it does on a full disk."""
    out = tmp_path / "out"
    words = " ".join(command(out, "--workers", "1"))
    full = subprocess.run(["bash", "-c", f"ulimit -f 1000; {words}"], cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert not (out / "train").exists()
    assert len(list((out / ".preparing" / "parts").glob("0*"))) == 7  # only a shard is larger
    assert "7 parts were finished before" in run(command(out)).stdout
    assert run(command(tmp_path / "once")).returncode == 0
    assert tree(out) == tree(tmp_path / "once")
