"""Ends a run before its time, at the same step on every rank: at a limit of the budget guard's, at SIGTERM, or where it
has diverged (recipes/callbacks/divergence.py), which every rank knows by itself.

SIGTERM is how a machine is taken back: by Slurm and Kubernetes, or from a spot instance. It may reach any of the ranks,
and as often as it likes. The step that is going on is finished and Composer saves its usual last checkpoint; nothing
else is begun (no evaluation, no export), and an evaluation that is going on is broken off after the batch, or the task
(those of `harness_tasks` are one), that it is at. The same command goes on from there; an evaluation that was due at
that step is left out, but for the one at the end of the recipe, which is made up for.

The ranks agree by an all-reduce between CPUs that no step waits for (at most once a second while a limit is far): what
is said at a step is known at the one after it. So rank 0, which keeps the bill, stops when the next step will pass the
limit.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import torch
import torch.distributed
from composer import Trainer
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry.callbacks import HuggingFaceCheckpointer
from torch.distributed.distributed_c10d import _set_pg_timeout

from recipes.callbacks.budget import LIMITS, BudgetGuard
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.divergence import DivergenceGuard
from recipes.callbacks.readings import is_done
from recipes.callbacks.stop import BrokenOff, Diverged, Stop
from recipes.planning.budget import EXIT_BUDGET
from recipes.ranks import is_first_of_machine

log = logging.getLogger(__name__)

SIGTERM = "SIGTERM"
REASONS = ("", *LIMITS, SIGTERM)  # what the ranks tell each other, by index: the highest counts
SPEAK_AT_LEAST_EVERY_S = 1.0  # the ranks to each other
GROUP_WITHIN = datetime.timedelta(minutes=2)
PATIENCE = datetime.timedelta(days=1)  # with a rank that is late: whether it hangs is for the gradients' group to say
LEAVE_WITHIN = datetime.timedelta(seconds=20)
RECENT_CALLS = 20  # of which the longest is taken for a step


class Stopper(Callback):
    """Stops the trainer, on all ranks together. Comes after the divergence guard and the budget guard.

    saves: whether the run has checkpoints. Without, SIGTERM ends it at once, as there is nothing to finish.
    """

    def __init__(self, saves: bool) -> None:
        self.stopped: Stop | None = None  # the same on every rank
        self._saves = saves
        self._guard: BudgetGuard | None = None
        self._divergence: DivergenceGuard | None = None
        self._is_asked = False  # by a signal, to this rank
        self._is_first = True
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._quiet_calls = 0  # until the ranks speak again
        self._calls = deque([time.monotonic()], maxlen=RECENT_CALLS)
        self._training_data: tuple[Any, ...] | None = None  # what an evaluation puts back when it ends

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM asks for a stop; Ctrl-C ends the process as ever. Lasts until all is said of the run."""
        if not self._saves:
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.stopped else before)  # it ends as it was told to

    def _ask(self, *_: Any) -> None:
        if not self._is_asked and is_first_of_machine():
            os.write(2, b"\nSIGTERM: this step is finished and saved, then the run ends; Ctrl-C ends it at once\n")
        self._is_asked = True

    def init(self, state: State, logger: Logger) -> None:
        self._guard = next((c for c in state.callbacks if isinstance(c, BudgetGuard)), None)
        self._divergence = next((c for c in state.callbacks if isinstance(c, DivergenceGuard)), None)
        self._is_first = dist.get_global_rank() == 0
        if dist.get_world_size() > 1 and (self._saves or self._guard):
            self._group = self._cpu_group(state)

    def _cpu_group(self, state: State) -> Any:
        """A group that speaks from CPU to CPU, whatever the gradients use; None where the machines cannot.

        Raises RuntimeError, in words, where the budget guard needs it.
        """
        group, trouble = None, ""
        try:
            group = torch.distributed.new_group(backend="gloo", timeout=GROUP_WITHIN)
        except RuntimeError as error:  # a host name that means another interface, most often
            trouble = str(error).strip().split("\n")[0]
        has_it = state.device.tensor_to_device(torch.tensor(int(group is not None)))
        dist.all_reduce(has_it, "MIN")
        if has_it.item():
            _set_pg_timeout(PATIENCE, group)
            return group
        mend = "set GLOO_SOCKET_IFNAME to the network interface that the machines share, such as eth0"
        said = f"the processes cannot speak from CPU to CPU ({trouble or 'others cannot'}): {mend}"
        if self._guard is not None:
            raise RuntimeError(f"budget_guard: {said}")
        log.warning("%s; until then SIGTERM ends the run at once, without a checkpoint", said)
        self._saves = False
        return None

    def fit_start(self, state: State, logger: Logger) -> None:
        """A run that goes on at its limit stops before its first step."""
        self._read()
        self._begin_to_count()
        self._say()
        reason, _ = self._settle() if self._group is not None else (self._reason(), 0)
        self._stop_for(reason, state)

    def batch_end(self, state: State, logger: Logger) -> None:
        self._stop_for(self._agree(), state)

    def _stop_for(self, reason: str, state: State) -> None:
        diverged = self._divergence.found(state) if self._divergence else None
        if diverged is None and (not reason or is_done(state)):
            return
        self.stopped = diverged or self._stop(reason)
        if state.timestamp.batch == 0:
            raise BrokenOff(self.stopped.words)  # there is no step to end at
        state.stop_training()  # Composer saves its last checkpoint now
        _evaluate_and_export_no_more(state)

    def _stop(self, reason: str) -> Stop:
        if reason == SIGTERM:
            return Stop("SIGTERM came", os.EX_TEMPFAIL, "the same command")
        assert self._guard is not None
        return Stop(self._guard.words(reason), EXIT_BUDGET, "with a larger limit the same command")

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self._training_data = (state.dataloader, state.dataloader_label, state.dataloader_len)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self.break_off()

    def break_off(self) -> None:
        """Raises BrokenOff; all ranks call it, now and then, while an evaluation goes on."""
        self._read()
        reason = self._agree()
        if reason:
            self.stopped = self._stop(reason)
            raise BrokenOff(self.stopped.words)

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._training_data = None
        if self._group is not None:  # the evaluation may have been the one too many: the next step is the last
            agreed, _ = self._settle()
            self._begin_to_count()
            self._say(agreed)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._leave()
        diverged = self._divergence.found_at_end(state) if self._divergence else None
        if diverged is not None and not isinstance(self.stopped, Diverged):  # the last step is not one to end with
            self.stopped = diverged
            _evaluate_and_export_no_more(state)

    def save_broken_off(self, trainer: Trainer) -> None:
        """After BrokenOff: the checkpoint of the last finished step, as if the evaluation had not begun."""
        self._leave()
        state, saver = trainer.state, trainer._checkpoint_saver
        if self._training_data is not None:
            dataloader, label, length = self._training_data
            state.set_dataloader(dataloader, label)
            if length is not None:
                state.dataloader_len = length
        if self._divergence is not None and not self._divergence.may_save(state):
            return
        if saver is not None and state.timestamp.batch > 0 and saver.last_checkpoint_batch != state.timestamp.batch:
            for callback in state.callbacks:
                if isinstance(callback, CostMonitor):
                    callback.run_event(Event.BATCH_CHECKPOINT, state, trainer.logger)
            saver._save_checkpoint(state, trainer.logger)

    def _read(self) -> None:
        if self._guard is not None:
            self._guard.read()

    def _reason(self) -> str:
        """Why this rank wants to stop; several act on it a step later."""
        if self._is_asked:
            return SIGTERM
        if self._guard is None or not self._is_first:
            return ""
        return self._guard.reason(0.0 if self._group is None else self._step_s())

    def _agree(self) -> str:
        """The reason of now for a single process; for several that of the step before, the same on every rank.

        Speaking takes some tenths of a millisecond, so ranks with short steps do not do it at every one of them while
        the limit is far; rank 0 says how many they leave out.
        """
        if self._group is None:
            return self._reason()
        self._calls.append(time.monotonic())
        agreed, quiet_calls = self._settle()
        self._quiet_calls = max(self._quiet_calls - 1, quiet_calls, 0)
        if not agreed and self._quiet_calls == 0:
            self._say()
        return agreed

    def _say(self, agreed: str = "") -> None:
        """Begin to tell the others; agreed: a reason that they know already."""
        if self._group is None:
            return
        reason = max(REASONS.index(agreed), REASONS.index(self._reason()))
        said = torch.tensor([reason, self._calls_to_leave_out() if self._is_first else 0])
        work = torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, said)

    def _settle(self) -> tuple[str, int]:
        """What was said last: the reason, and the calls to leave out."""
        if self._pending is None:
            return "", 0
        work, said = self._pending
        self._pending = None
        work.wait()
        reason, quiet_calls = said.tolist()
        return REASONS[reason], quiet_calls

    def _leave(self) -> None:
        """Nobody acts on what was said last; a rank that had fewer batches to evaluate may not have said it."""
        if self._pending is not None:
            with contextlib.suppress(RuntimeError):
                self._pending[0].wait(LEAVE_WITHIN)
            self._pending = None

    def _begin_to_count(self) -> None:
        """Calls are of another kind from here on, and of another length."""
        self._quiet_calls = 0
        self._calls.clear()
        self._calls.append(time.monotonic())

    def _step_s(self) -> float:
        """Seconds that the next step will take: the median of the recent ones, 0 before there is one."""
        recent = [b - a for a, b in itertools.pairwise(self._calls)]
        return statistics.median(recent) if recent else 0.0

    def _calls_to_leave_out(self) -> int:
        """None for steps of a second; for shorter ones a second's worth, a quarter of the way to the limit at most."""
        longest_s = max((b - a for a, b in itertools.pairwise(self._calls)), default=SPEAK_AT_LEAST_EVERY_S)
        left_s = SPEAK_AT_LEAST_EVERY_S
        if self._guard is not None:
            left_s = min(left_s, self._guard.seconds_left() / 4)
        return max(0, int(left_s / max(longest_s, 1e-6)) - 1)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Inside, SIGTERM waits; processes that begin here, as the uploader's of checkpoints, never hear it."""
    resource_tracker.ensure_running()  # else the first of them begins it, which ends the wait
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_uploaders(trainer: Trainer) -> None:
    """Begin the processes that upload checkpoints, which Composer begins with the first one: to be called held back."""
    uploader = getattr(trainer._checkpoint_saver, "remote_uploader", None)
    if uploader is not None:
        for pool in (uploader.upload_executor, uploader.check_remote_files_exist_executor):
            pool.submit(int)


def keep_workers(loader: Any) -> None:
    """Let the worker processes of a loader outlive SIGTERM: sent to all processes, it would take the run's data away.

    loader: Composer's DataSpec, or what it would wrap into one.
    """
    loader = getattr(loader, "dataloader", loader)
    if getattr(loader, "num_workers", 0) and getattr(loader, "worker_init_fn", 0) is None:
        loader.worker_init_fn = _outlive_sigterm


def _outlive_sigterm(worker: int) -> None:
    """Let only the process that this worker works for end it, as torch does where a worker hangs and at the end."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in threads that begin after this one as well
    threading.Thread(target=_end_with_parent, name="sigterm", daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _evaluate_and_export_no_more(state: State) -> None:
    for evaluator in state.evaluators:
        evaluator.eval_interval = _never
    for callback in state.callbacks:
        if isinstance(callback, HuggingFaceCheckpointer):
            callback.check_interval = _never


def _never(state: State, event: Event) -> bool:
    return False
