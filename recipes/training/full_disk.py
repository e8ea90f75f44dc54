"""A disk that is full, found in what torch and Composer make of it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from recipes.config.keys import RecipeError
from recipes.config.load import Recipe


@contextlib.contextmanager
def full_disk_in_words(recipe: Recipe, folder: Path, goes_on: str) -> Iterator[None]:
    """What ends a run for want of room becomes a RecipeError; goes_on: what is to be done when there is some."""
    try:
        yield
    except BaseException as error:  # as torch's of a sharded checkpoint is
        full = full_disk(error)
        if full is None or os.environ.get("RECIPES_TRACEBACK"):
            raise
        text = f"{full.filename or folder} has no room on its disk ({full.strerror}): make some; {goes_on}"
        raise RecipeError(recipe.problem(("save_folder",), text)) from None


def full_disk(error: BaseException | None) -> OSError | None:
    """The operating system's word that no space is left, where that is behind an error; None where it is not.

    torch's writers fail anew as they are closed, and a sharded checkpoint collects the errors of its processes.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return one
        waiting += [one.__cause__, one.__context__]
        waiting += [inner for inner, _ in getattr(one, "failures", {}).values()]
    return None
