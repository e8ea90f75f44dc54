"""Which of the processes of a run this one is, by what the launcher put into the environment."""

from __future__ import annotations

import os

from recipes.config.keys import Place, Problem, RecipeError


def world_size() -> int:
    """Number of processes the launcher started; 1 without a launcher. Raises RecipeError for what no launcher sets."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) < 1:
        where = Place("environment")
        raise RecipeError([Problem(where, ("WORLD_SIZE",), f"got {text!r}, expected the number of processes")])
    return int(text)


def local_world_size() -> int:
    """How many of them are on this machine."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(text) if text.isdigit() else 1


def is_first_rank() -> bool:
    """Whether this process is the one that speaks for the run."""
    rank = os.environ.get("RANK", "")
    return not rank.isdigit() or int(rank) == 0


def is_first_of_machine() -> bool:
    """Whether this process is the one of its machine that does what is to be done there once."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
