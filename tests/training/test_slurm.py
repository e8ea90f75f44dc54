"""The batch script for Slurm, with what stands in for Slurm's commands: two nodes that are one machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, can_unshare, losses, recipe_arguments

# Runs what it is given on both nodes, each with shared memory of its own; its code is the highest of theirs.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do
  SLURM_NODEID=$node unshare --mount bash -c 'mount -t tmpfs tmpfs /dev/shm; exec "$@"' node "$@" & started+=($!)
done
highest=0
while wait -n -p one "${started[@]}"; code=$?; [[ -n ${one:-} ]]; do
  ((code > highest)) && highest=$code
  left=()
  for other in "${started[@]}"; do [[ $other == "$one" ]] || left+=("$other"); done
  started=("${left[@]}")
  ((code)) && ((${#started[@]})) && pkill -TERM -P "$(IFS=,; echo "${started[*]}")"  # --kill-on-bad-exit
  ((${#started[@]})) || break
done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then printf '127.0.0.1\\nother\\n'; else echo "$@" > "$ASKED"; fi
"""


def submit(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run the script as Slurm would."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[0-1]", "SLURM_NNODES": "2", "SLURM_JOB_ID": str(os.getpid()), "PROCESSES": "1"}
    environment = {**os.environ, **job, "PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(folder / "asked")}
    command = ["bash", "recipes/slurm.sbatch", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a mount namespace")
def test_a_job_that_loses_its_nodes_queues_again_and_goes_on(shards: Path, tmp_path: Path) -> None:
    # so that it is not at its end when it is told
    length = ["max_duration=4000ba", "save_interval=4000ba", "eval_interval=4000ba", "eval_first=false"]
    arguments = recipe_arguments(shards, tmp_path, *length)
    job = submit(tmp_path, *arguments)
    while len(losses(tmp_path)) < 3:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    (srun,) = [child for child in psutil.Process(job.pid).children() if child.name() == "srun"]
    for process in srun.children(recursive=True):
        process.terminate()
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 75, said
    assert "DeprecationWarning" not in said
    assert "not waiting longer" not in said  # for the other node's loaders
    assert (tmp_path / "asked").read_text() == f"requeue {os.getpid()}\n"
    step = max(losses(tmp_path)) + 1
    assert len(list((tmp_path / "checkpoints").glob(f"ep*-ba{step}"))) == 1

    (tmp_path / "asked").unlink()
    job = submit(tmp_path, *arguments, f"max_duration={step + 2}ba", "scheduler.t_max=4000ba")
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert not (tmp_path / "asked").exists()
    # streaming deals the data out by node, so the losses are not one machine's; they fall all the same
    curve = losses(tmp_path)
    assert list(curve) == list(range(step + 2))
    assert curve[step + 1] < curve[0]
    assert json.loads((tmp_path / "summary.json").read_text())["devices"] == 2


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a mount namespace")
def test_a_job_that_cannot_run_does_not_queue_again(shards: Path, tmp_path: Path) -> None:
    job = submit(tmp_path, *recipe_arguments(shards, tmp_path, "train_loader.dataset.local=/nonexistent"))
    said = job.communicate(timeout=120)[0]
    assert "no data: /nonexistent/train does not exist" in said
    assert job.returncode not in (0, 75)
    assert not (tmp_path / "asked").exists()
