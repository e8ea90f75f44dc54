"""One training at a time in a run folder: two would write one ledger and each other's checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from recipes.config.keys import RecipeError
from recipes.config.load import Recipe
from recipes.run_files import LOCK


def claim(folder: Path, recipe: Recipe) -> None:
    """Hold a recipe's run folder until this process ends.

    Raises RecipeError where another process does, or where it cannot be written to.
    """
    try:
        holder = hold(folder)
    except OSError as error:
        text = f"{folder} cannot be written to ({error.strerror}): choose another run_name"
        raise RecipeError(recipe.problem(("run_name",), text)) from None
    if holder:
        text = f"{folder} is in use by {holder}: wait for it or stop it, or choose another run_name"
        raise RecipeError(recipe.problem(("run_name",), text))


def hold(folder: Path) -> str | None:
    """Hold a run folder until this process ends, however it ends; if another does, who that is.

    A record lock: it is the process's own, so that workers which outlive a killed run for seconds do not keep it. Where
    the file system has no locks, nothing is held.

    Raises OSError where the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)  # open until the process ends
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets a system choose between the two
        return os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "another process"
    except OSError:
        return None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return None
