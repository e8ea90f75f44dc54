"""Progress bars, on the first process's terminal: one a task, and lm-evaluation-harness's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

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


@contextlib.contextmanager
def harness_bars_on_terminals_alone() -> Iterator[None]:
    """Inside, lm-evaluation-harness draws no progress bars into a log, where each move of one is a line."""
    import tqdm
    from lm_eval.api import task

    class Bar(tqdm.tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "disable": None if is_first_rank() else True})

    known = tqdm.tqdm
    tqdm.tqdm = task.tqdm = Bar  # of the prompts; those of standard errors are imported when they are drawn
    try:
        yield
    finally:
        tqdm.tqdm = task.tqdm = known
