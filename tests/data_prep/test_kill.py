"""kill -9 at any moment, then the same command again: the same bytes as a run that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def test_killed_at_random_moments(corpus: Path, tokenizer: Path, tmp_path: Path, run_command: Command) -> None:
    """Real processes, killed wherever they are; the last one is left alone."""
    large = tmp_path / "large.jsonl"
    large.write_bytes(b"".join(corpus.read_bytes().replace(b'"id": ', b'"id": %d' % n) for n in range(1, 9)))
    words: list[str | Path] = ["--tokenizer", tokenizer, "--seq-len", "64", "--holdout", "0.1"]

    start = time.monotonic()
    assert run_command("python", "-m", "data_prep.pretrain", large, "--out", tmp_path / "once", *words).returncode == 0
    seconds = time.monotonic() - start

    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep.pretrain", *map(str, [large, "--out", out, *words])]
    rng = random.Random(os.getpid())
    killed = 0
    for _ in range(5):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.1, 1.0) * seconds)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed
    result = run_command("python", "-m", "data_prep.pretrain", large, "--out", out, *words)
    assert result.returncode == 0, result.stderr
    assert tree(out) == tree(tmp_path / "once")
