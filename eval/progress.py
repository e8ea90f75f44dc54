"""A progress bar a task, on the first process's screen."""

from __future__ import annotations

from collections.abc import Callable

from recipes.ranks import is_first_rank


def bar(label: str, total: int) -> Callable[[int], None] | None:
    """A function that is told how many more of `total` requests are answered; None on other processes."""
    if not is_first_rank():
        return None
    from tqdm import tqdm

    shown = tqdm(total=total, desc=label, unit="request", disable=None)  # none where it is no terminal

    def told(done: int) -> None:
        shown.update(min(done, total - shown.n))
        if shown.n >= total:
            shown.close()

    return told
