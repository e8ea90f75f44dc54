"""Counting what torch.compile compiles while a run trains: after the first steps it should be nothing.

A graph that is compiled again for a new shape or flag costs from seconds to minutes of every GPU, and says nothing of
its own accord.
"""

from __future__ import annotations

import logging

from composer.core import Callback, State
from composer.loggers import Logger

log = logging.getLogger(__name__)


class RecompileCounter(Callback):
    """Logs ``compile/graphs`` (compiled so far) and ``compile/late_graphs``, and warns of each late one.

    Args:
        warm_up: steps that may compile, from the first step of this process; so may what is between steps.
    """

    def __init__(self, warm_up: int = 3) -> None:
        self.warm_up = warm_up
        self.late = 0
        self._known = 0
        self._steps = 0

    def batch_start(self, state: State, logger: Logger) -> None:
        self._known = compiled_graphs()  # what is between steps, such as an evaluation, has its own shapes

    def batch_end(self, state: State, logger: Logger) -> None:
        graphs = compiled_graphs()
        self._steps += 1
        if self._steps > self.warm_up and graphs > self._known:
            self.late += graphs - self._known
            log.warning(
                "step %d compiled %d graphs again, %d since the first %d steps; TORCH_LOGS=recompiles says why",
                int(state.timestamp.batch),
                graphs - self._known,
                self.late,
                self.warm_up,
            )
        logger.log_metrics({"compile/graphs": float(graphs), "compile/late_graphs": float(self.late)})


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
