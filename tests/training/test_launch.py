"""The launcher that does not import Composer: it is Composer's, and what stands in for its imports says the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from composer import __version__
from composer.cli import launcher
from composer.loggers import mosaicml_logger

from recipes import launch
from tests.conftest import ROOT, Command, losses, recipe_arguments


def test_stand_ins_say_what_composer_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ours = launch.composer_launcher()
    for name in launch.LOGGER_NAMES:
        assert getattr(ours, name) == getattr(launcher, name) == getattr(mosaicml_logger, name)
    assert ours.torch.cuda.device_count() == launcher.torch.cuda.device_count()
    assert ours.get_free_tcp_port() != ours.get_free_tcp_port()
    monkeypatch.setattr(sys, "argv", ["composer", "--version"])
    with pytest.raises(SystemExit):
        ours.main()
    assert capsys.readouterr().out == f"MosaicML Composer {__version__}\n"
    assert sys.modules["composer.utils"] is not ours.composer  # what stood in is gone


def test_it_imports_neither_composer_nor_torch(run_command: Command) -> None:
    code = "import sys; from recipes.launch import composer_launcher as load; load(); "
    code += "print({*sys.modules} & {'composer', 'torch'})"
    assert run_command("python", "-c", code).stdout == "set()\n"


@pytest.mark.parametrize("command", ["launch", "composer"])
def test_every_process_knows_its_place(run_command: Command, command: str) -> None:
    code = (
        'import os; print(*(os.environ[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR")))'
    )
    place = ["--world_size", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "7501"]
    result = run_command(command, "-n", "1", *place, "--command_mode", "python", "-c", code)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "1 0 2 1 10.0.0.1")


def test_a_process_that_fails_and_options_that_contradict_each_other(run_command: Command) -> None:
    failed = run_command("launch", "-n", "2", "--command_mode", "false")
    assert failed.returncode in (1, 143)  # 128 + SIGTERM: Composer takes rank 0's, which it may have ended already
    refused = run_command("launch", "-n", "2", "--world_size", "1", "train.py")
    assert (refused.returncode, refused.stderr) == (2, "error: world_size(1) cannot be less than nproc(2)\n")


def test_its_processes_end_with_it() -> None:
    command = [sys.executable, "-m", "recipes.launch", "-n", "2", "--command_mode", "sleep", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        started: list[psutil.Process] = []
        while [one.name() for one in started] != ["sleep", "sleep"]:  # and no longer what is to become it
            assert process.poll() is None
            time.sleep(0.05)
            started = psutil.Process(process.pid).children()
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(one.is_running() for one in started)


@pytest.mark.parametrize("launcher", ["launch", "composer"])
def test_training_ends_with_a_launcher_that_is_killed(shards: Path, tmp_path: Path, launcher: str) -> None:
    command = {
        "launch": [sys.executable, "-m", "recipes.launch"],
        "composer": [str(Path(sys.executable).with_name("composer"))],
    }[launcher]
    arguments = recipe_arguments(shards, tmp_path, "max_duration=100000ba", "scheduler.t_max=100000ba")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, "-n", "2", "train.py", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    ) as process:
        while len(losses(tmp_path)) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        started = psutil.Process(process.pid).children()
        process.kill()
    left = psutil.wait_procs(started, timeout=20)[1]
    for one in left:
        one.kill()
    assert (len(started), left) == (2, [])
    last = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "end"
