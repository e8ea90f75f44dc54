"""Which of the processes of a run this one is, by what the launcher put into the environment."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from recipes.config.keys import Place, Problem, RecipeError

LAUNCHER = "RECIPES_LAUNCHER"  # the process number of recipes.launch, to those that it starts
GRACE = "RECIPES_GRACE_S"  # seconds between SIGTERM and SIGKILL, in the environment
GRACE_S, MOST_GRACE_S = 30.0, 86_400.0  # as Composer's launcher has it


def world_size() -> int:
    """Number of processes the launcher started; 1 without a launcher. Raises RecipeError for what no launcher sets."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) < 1:
        where = Place("environment")
        raise RecipeError(Problem(where, ("WORLD_SIZE",), f"got {text!r}, expected the number of processes"))
    return int(text)


def local_world_size() -> int:
    """How many of them are on this machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1


def spans_machines() -> bool:
    """Whether the run has processes on other machines, which may not see the files of this one."""
    return world_size() > local_world_size()


def is_first_rank() -> bool:
    """Whether this process is the one that speaks for the run."""
    rank = os.environ.get("RANK", "")
    return not rank.isdigit() or int(rank) == 0


def is_first_of_machine() -> bool:
    """Whether this process is the one of its machine that does what is to be done there once."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def grace_s() -> float:
    """Seconds that a process has to end after SIGTERM. Raises RecipeError for what is no such number."""
    text = os.environ.get(GRACE) or str(GRACE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < MOST_GRACE_S:
        words = f"got {text!r}, expected seconds above 0, such as 120"
        raise RecipeError(Problem(Place("environment"), (GRACE,), words))
    return seconds


def end_with_launcher() -> None:
    """Where a launcher started this process, end it when that ends: killed, it can tell nobody.

    Raises RecipeError for a RECIPES_GRACE_S that is no number.
    """
    grace = grace_s()
    if os.environ.get("LOCAL_WORLD_SIZE") and _is_launcher(os.getppid()):
        threading.Thread(target=_watch, args=(os.getppid(), grace), name="launcher-watch", daemon=True).start()


def _is_launcher(pid: int) -> bool:
    """Not a shell, in which somebody set the variables by hand, and which may end before its `nohup` command."""
    if os.environ.get(LAUNCHER) == str(pid):
        return True
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # no Linux, or it has ended already
        return False
    return bool({Path(word).name for word in words} & {"composer", "torchrun", "torch.distributed.run"})


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # the step is saved, what is open, as the ledger, is ended
    time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)  # it waits for another process
