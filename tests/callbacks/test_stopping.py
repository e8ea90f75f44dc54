"""SIGTERM: the step is finished and saved, on every rank, and the same command goes on as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from composer import Trainer
from composer.core import Callback, State, Time, Timestamp
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.utils import dist
from torch.utils.data import DataLoader

from recipes.callbacks.budget import BudgetGuard
from recipes.callbacks.readings import is_done
from recipes.callbacks.stop import BrokenOff, Stop
from recipes.callbacks.stopping import Stopper, held_back, start_uploaders
from tests.callbacks.test_cost import BATCH, Tiny, Tokens
from tests.conftest import ROOT, STEPS, Command, losses, recipe_arguments

SEVERAL = ["-m", "recipes.launch", "-n", "2"]
# nothing is saved but by the stop, and steps take their time
SAVED_BY_THE_STOP = ["save_interval=1000ba", "eval_first=false", "callbacks.slow={}"]
SLOW = """
import time
from composer import Callback
from llmfoundry.registry import callbacks

class Slow(Callback):
    def batch_start(self, state, logger):
        time.sleep(0.2)

callbacks.register("slow", func=Slow)
"""


def run_and_signal(
    words: list[str], run: Path, tell: Callable[[psutil.Process], None], cwd: Path = ROOT
) -> tuple[subprocess.Popen[str], str]:
    """Start a run, tell its processes to stop once it has taken three steps, and wait for its end; what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, *words], cwd=cwd, env=environment, start_new_session=True, **pipes
    ) as process:
        while len(losses(run)) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        tell(psutil.Process(process.pid))
        said = process.communicate(timeout=100)[1]
    return process, said


def to_all(process: psutil.Process) -> None:
    """As Slurm does: to the workers of the data loaders too."""
    assert len(process.children(recursive=True)) >= 2
    os.killpg(process.pid, signal.SIGTERM)


def to_the_last_rank(process: psutil.Process) -> None:
    """As where one of several machines is taken back."""
    ranks = [child for child in process.children() if child.environ().get("RANK") == "1"]
    ranks[0].send_signal(signal.SIGTERM)


def to_the_launcher(process: psutil.Process) -> None:
    """As Kubernetes does."""
    process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("launcher", "more", "tell"),
    [
        ([], ["train_loader.num_workers=8", "train_loader.persistent_workers=true"], to_all),
        (SEVERAL, [], to_all),
        (SEVERAL, [], to_the_last_rank),
        (SEVERAL, ["fsdp_config=null"], to_the_launcher),
    ],
)
def test_the_step_is_saved_and_nothing_is_done_twice(
    launcher: list[str],
    more: list[str],
    tell: Callable[[psutil.Process], None],
    whole: Path,
    shards: Path,
    tmp_path: Path,
    run_command: Command,
) -> None:
    export = f"callbacks.hf_checkpointer.save_folder={tmp_path}/hf"
    (tmp_path / "slow.py").write_text(SLOW)
    more = [*SAVED_BY_THE_STOP, f"code_paths=[{tmp_path}/slow.py]", *more]
    arguments = recipe_arguments(shards, tmp_path, *more)
    exporting = [*arguments, export, "callbacks.hf_checkpointer.save_interval=1000ba"]
    process, said = run_and_signal([*launcher, "train.py", *exporting], tmp_path, tell)
    assert process.returncode == 75, said
    assert said.count("stopped early: SIGTERM came; the same command goes on from here") == 1, said
    assert "Traceback" not in said
    step = max(losses(tmp_path)) + 1
    assert step < STEPS
    (saved,) = (tmp_path / "checkpoints").glob("ep*-ba*")
    assert f"-ba{step}" in saved.name
    assert not (tmp_path / "hf").exists()  # which would take the time that is left
    assert json.loads((tmp_path / "summary.json").read_text())["stopped"] == "SIGTERM came"
    went_on = run_command(*(["launch", *launcher[2:]] if launcher else ["python"]), "train.py", *arguments)
    assert went_on.returncode == 0, went_on.stderr
    assert "DataLoader worker" not in went_on.stderr  # which are ended by SIGTERM at the end, too
    assert losses(tmp_path) == (pytest.approx(losses(whole), rel=2e-5) if launcher else losses(whole))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss/train/total"' in line for line in lines) == STEPS
    assert json.loads((tmp_path / "summary.json").read_text())["lost_s"] == 0


class AtTheLast(Callback):
    """Asks for a stop in the last step of an epoch."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.epoch == self._epoch and state.timestamp.batch_in_epoch + 1 == state.dataloader_len:
            (stopper,) = [c for c in state.callbacks if isinstance(c, Stopper)]
            stopper._is_asked = True


def test_the_last_step_of_the_last_epoch_is_the_end(tmp_path: Path) -> None:
    def trainer(*more: Callback) -> tuple[Trainer, Stopper]:
        torch.manual_seed(1)
        model, stopper = Tiny(), Stopper(saves=True)
        data = DataLoader(Tokens(), batch_size=BATCH)
        return Trainer(
            model=model,
            optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
            train_dataloader=data,
            callbacks=[stopper, *more],
            device="cpu",
            progress_bar=False,
            max_duration="2ep",
            run_name="epochs",
            save_folder=str(tmp_path),
            save_interval=f"{len(data)}ba",  # as the epoch ends
            autoresume=True,
        ), stopper

    first, stopper = trainer(AtTheLast(epoch=0))
    first.fit()
    first.close()
    assert stopper.stopped is not None
    second, stopper = trainer(AtTheLast(epoch=1))
    assert not is_done(second.state)
    second.fit()
    second.close()
    assert stopper.stopped is None
    steps = int(second.state.timestamp.batch)
    assert (tmp_path / f"ep1-ba{steps}-rank0.pt").is_file()  # saved before the epoch turns
    third, _ = trainer()
    third.close()
    assert is_done(third.state)


class Signals(Callback):
    """Sends this process SIGTERM at an event."""

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_evaluation_is_broken_off(tmp_path: Path) -> None:
    model, stopper = Tiny(), Stopper(saves=True)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=DataLoader(Tokens(), batch_size=BATCH),
        eval_dataloader=DataLoader(Tokens(), batch_size=1),
        eval_interval="2ba",
        callbacks=[Signals(), stopper],
        max_duration="10ba",
        save_folder=str(tmp_path),
        save_interval="10ba",
        save_filename="ba{batch}.pt",
        device="cpu",
        progress_bar=False,
    )
    before = signal.getsignal(signal.SIGTERM)
    with stopper.listening(), pytest.raises(BrokenOff):
        trainer.fit()
    stopper.save_broken_off(trainer)
    trainer.close()
    assert (tmp_path / "ba2.pt").is_file()
    assert int(trainer.state.eval_timestamp.batch) == 1
    assert signal.signal(signal.SIGTERM, before) == signal.SIG_IGN  # said again, nothing comes of it


def test_a_run_that_saves_nothing_ends_at_once(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mpt-quickstart"  # without a save_folder, below the folder that it is started in
    arguments = [*recipe_arguments(shards, run, "max_duration=100000ba"), "save_folder=null"]
    words = [str(ROOT / "train.py"), *arguments]
    process, said = run_and_signal(words, run, lambda p: p.send_signal(signal.SIGTERM), cwd=tmp_path)
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("stopped; the same command")


def test_uploaders_outlive_a_signal_to_all() -> None:
    pools = [ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) for _ in range(2)]
    uploader = SimpleNamespace(upload_executor=pools[0], check_remote_files_exist_executor=pools[1])
    trainer: Any = SimpleNamespace(_checkpoint_saver=SimpleNamespace(remote_uploader=uploader))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with held_back():
        start_uploaders(trainer)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    for pool in pools:
        process = pool.submit(os.getpid).result(timeout=60)
        os.kill(process, signal.SIGTERM)
        assert pool.submit(os.getpid).result(timeout=60) == process
        pool.shutdown()


LATE = """
import datetime, time
from types import SimpleNamespace
from composer.devices import DeviceCPU
from composer.utils import dist
from recipes.callbacks import stopping

stopping.GROUP_WITHIN = datetime.timedelta(seconds=2)
dist.initialize_dist("cpu")
stopper = stopping.Stopper(saves=True)
stopper.init(SimpleNamespace(callbacks=[], device=DeviceCPU()), None)
if dist.get_global_rank() == 1:
    time.sleep(4)
    stopper._ask()
stopper._say()
print(*stopper._settle(), flush=True)
dist.barrier()  # neither leaves while the other hears
"""


def test_a_rank_may_be_late(run_command: Command) -> None:
    result = run_command("launch", "-n", "2", "--command_mode", "python", "-c", LATE)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "SIGTERM 0"), result.stderr


@pytest.mark.parametrize("guard", [None, BudgetGuard(deadline="1h")])
def test_machines_that_cannot_speak_to_each_other(
    guard: BudgetGuard | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(**_: Any) -> None:
        raise RuntimeError("connectFullMesh failed with no route to host\nand more")

    monkeypatch.setattr(torch.distributed, "new_group", fails)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda *_: None)
    state: Any = SimpleNamespace(callbacks=[guard], device=DeviceCPU())
    stopper = Stopper(saves=True)
    if guard is not None:
        with pytest.raises(RuntimeError, match="budget_guard: the processes cannot speak from CPU to CPU"):
            stopper.init(state, None)  # type: ignore[arg-type]
        return
    with caplog.at_level("WARNING"):
        stopper.init(state, None)  # type: ignore[arg-type]
    assert "no route to host): set GLOO_SOCKET_IFNAME" in caplog.text
    before = signal.getsignal(signal.SIGTERM)
    with stopper.listening():
        assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("command", ["launch", "python"])
def test_a_time_of_grace_that_is_none(command: str, run_command: Command) -> None:
    result = run_command(command, "train.py", "yamls/pretrain/mpt-125m.yaml", env={"RECIPES_GRACE_S": "2min"})
    assert result.returncode in (1, 2)
    assert "RECIPES_GRACE_S: got '2min', expected seconds above 0, such as 120" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_is_done_was_not_ended_early() -> None:
    stopper = Stopper(saves=True)
    state: Any = SimpleNamespace(max_duration=Time(5, "ba"), timestamp=Timestamp(batch=5))
    stopper._stop_for("SIGTERM", state)
    assert stopper.stopped is None


def test_where_no_step_is_saved_nothing_is_gone_on_from() -> None:
    stop = Stop("SIGTERM came", 75, "the same command")
    assert stop.ahead(None) == "no step is saved: the same command begins anew"
    assert stop.ahead("ba4.pt") == "the same command goes on from here"
