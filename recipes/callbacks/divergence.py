"""A run whose loss is not finite any more has nothing left to learn: it ends, and its checkpoints stay good.

The loss is the one that Composer logs. It has been summed over all ranks and read from the device by then, so asking it
costs no communication and no waiting, and all ranks find the same: what is not finite on one of them is so on each.
Weights are read only where a run begins, where a checkpoint is to be saved, and where the run ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry.callbacks import HuggingFaceCheckpointer
from torch.distributed.tensor import DTensor

from recipes.callbacks.stop import EXIT_DIVERGED, Diverged
from recipes.reports.runs import TRAIN_LOSS

log = logging.getLogger(__name__)

STEPS = 3  # in a row: a single one may be skipped, as by the scaling of losses in half precision


class DivergenceGuard(Callback):
    """Says when a run has diverged, on all ranks alike, and keeps what is not finite from being saved or exported.

    recipes/callbacks/stopping.py ends the run. Comes before the stopper. Steps are counted from 1.
    """

    def __init__(self) -> None:
        self._since: int | None = None  # the first of the last steps whose loss is not finite
        self._begun_after = 0
        self._is_bad_start = False
        self._weights: tuple[int, bool] | None = None  # the step after which they were read, and whether all are finite

    def init(self, state: State, logger: Logger) -> None:
        for callback in state.callbacks:
            if isinstance(callback, CheckpointSaver):
                callback.save_interval = self._where_finite(callback.save_interval)
            if isinstance(callback, HuggingFaceCheckpointer):
                callback.check_interval = self._where_finite(callback.check_interval)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._begun_after = int(state.timestamp.batch)
        self._is_bad_start = not self._has_finite_weights(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        loss = getattr(state, "total_loss_dict", {}).get(TRAIN_LOSS, 0.0)
        if math.isfinite(loss):
            self._since = None
        elif self._since is None:
            self._since = int(state.timestamp.batch)

    def found(self, state: State) -> Diverged | None:
        """That the run has diverged, where it has; all ranks may ask at any step."""
        enough = self._since is not None and int(state.timestamp.batch) - self._since + 1 >= STEPS
        return self._diverged(state) if enough or self._is_bad_start else None

    def found_at_end(self, state: State) -> Diverged | None:
        """The same after the last step, where one whose loss or weights are not finite is enough. All ranks ask."""
        return None if self.may_save(state) else self._diverged(state)

    def may_save(self, state: State) -> bool:
        """Whether the last step and its weights are worth keeping. All ranks ask."""
        return self._since is None and self._has_finite_weights(state)

    def _diverged(self, state: State) -> Diverged:
        if self._is_bad_start:
            what = "the weights that it begins with are not finite"
        elif self._since is None:
            what = f"weights are not finite after step {int(state.timestamp.batch):,}"
        else:
            what = f"the loss is not finite since step {self._since:,}"
        is_from_start = self._is_bad_start or (self._begun_after > 0 and self._since == self._begun_after + 1)
        return Diverged(f"{what}: the run has diverged", EXIT_DIVERGED, "the same command", is_from_start)

    def _where_finite(self, is_due: Callable[[State, Event], bool]) -> Callable[[State, Event], bool]:
        """What is due at a step that may not be saved waits for the next that may."""
        is_owed = False

        def is_due_and_good(state: State, event: Event) -> bool:
            nonlocal is_owed
            is_owed = is_due(state, event) or is_owed
            if not is_owed:
                return False
            if self.may_save(state):
                is_owed = False
                return True
            if dist.get_global_rank() == 0:
                log.warning("step %d is not saved: its loss or its weights are not finite", int(state.timestamp.batch))
            return False

        return is_due_and_good

    def _has_finite_weights(self, state: State) -> bool:
        step = int(state.timestamp.batch)
        if self._weights is None or self._weights[0] != step:
            self._weights = (step, weights_are_finite(state))
        return self._weights[1]


@torch.no_grad()
def weights_are_finite(state: Any) -> bool:
    """Whether no weight of the model is NaN or infinite, on any rank. All ranks ask; it waits for the device."""
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in state.model.parameters()]
    # the largest is NaN where one is, and to ask for it takes no memory
    largest = [torch.linalg.vector_norm(p, ord=math.inf).float() for p in parts if p.is_floating_point() and p.numel()]
    finite = torch.stack([value.to(largest[0].device) for value in largest]).isfinite().all() if largest else True
    said = state.device.tensor_to_device(torch.as_tensor(finite, dtype=torch.int64))
    dist.all_reduce(said, "MIN")
    return bool(said.item())
