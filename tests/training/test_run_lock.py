"""Two trainings in one run folder: the second is refused, and a killed one is in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.training.run_lock import LOCK, hold

from ..conftest import ROOT, Command, recipe_arguments

HOLDER = """
import os, sys, time
from pathlib import Path
from recipes.training.run_lock import hold
assert hold(Path(sys.argv[1])) is None
child = os.fork()  # as a data loader's worker, which lives on for a while
print(child or "", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder `run`."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(next(line for line in process.stdout if line.strip()))
    yield process
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_a_folder_is_held_until_its_process_ends(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    said = hold(tmp_path / "run")
    assert said is not None
    assert said.startswith(f"process {holder.pid} on ")
    holder.kill()
    holder.wait()
    assert hold(tmp_path / "run") is None
    assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_second_training_is_refused(
    holder: subprocess.Popen[str], shards: Path, run_command: Command, tmp_path: Path
) -> None:
    result = run_command("python", "train.py", *recipe_arguments(shards, tmp_path / "run"))
    assert result.returncode == 1
    assert f"run is in use by process {holder.pid} on" in result.stderr
    assert "choose another run_name" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_run_folder_that_cannot_be_made_is_said(shards: Path, run_command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = run_command("python", "train.py", *recipe_arguments(shards, tmp_path / "file" / "run"))
    assert result.returncode == 1
    assert f"{tmp_path}/file" in result.stderr
    assert "Traceback" not in result.stderr
