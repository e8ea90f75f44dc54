"""Stops a run at a budget, a deadline, or where the next bit of validation loss costs too much.

    callbacks:
      budget_guard:
        budget_usd: 500                    # of all processes of the run together
        deadline: 10d                      # from the run's first start; or a date: 2027-01-31T08:00
        max_usd_per_hundredth_loss: 20     # dollars for the next 0.01 of validation loss

Rank 0 keeps the bill (the cost monitor's) and decides; the others learn it one step later, by a broadcast between CPUs
that no step waits for (at most once a second while the limit is far), so it decides when the next step will pass the
limit. At a stop Composer saves its usual last checkpoint, no evaluation is begun, and one that is going on is broken
off after the batch, or the task (those of `harness_tasks` are one), that it is at. So beyond its limit a run spends a
step or a task, and a checkpoint, at most. Started again with a larger limit it goes on where it stopped; an evaluation
that was due at that step is left out, but for the one at the end of the recipe, which is made up for. Whether the plan
exceeds the budget is judged before anything is built, by recipes/planning/budget.py.
"""

from __future__ import annotations

import itertools
import json
import logging
import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from composer import Trainer
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from recipes.callbacks.cost import CostMonitor
from recipes.cost.ledger import first_start_unix_s
from recipes.planning.budget import WARN_AT, check_limits, deadline_unix_s

log = logging.getLogger(__name__)

LOSS = "LanguageCrossEntropy"
REASONS = ("", "budget", "deadline", "marginal value")  # what the ranks tell each other, by index
DEAR_EVALUATIONS = 2  # in a row: one may be noise
SPEAK_AT_LEAST_EVERY_S = 1.0  # the ranks to each other
RECENT_CALLS = 20  # of which the longest is taken for a step


class BudgetReached(Exception):
    """Breaks off an evaluation at the limit; whoever started the trainer saves and ends the run."""


class BudgetGuard(Callback):
    """Stops training at a limit. Needs the cost monitor, and for `budget_usd` a known rate.

    Args:
        budget_usd: dollars for the whole run, with every start and everything that crashes wasted.
        deadline: time from the run's first start (`36h`, `10d`), or a date and time of this machine's clock.
        max_usd_per_hundredth_loss: most dollars for the next 0.01 nats of validation loss, judged by the last two
            evaluations; two in a row above it stop the run.
        start_over_budget: start although the plan exceeds the budget or the deadline.

    Logged: `budget/share_used` and, after an evaluation, `budget/usd_per_hundredth_loss`. Warns at 50, 80 and 95 %.

    Raises:
        ValueError: no limit at all, one that is not above 0, or a deadline that is neither a length nor a date.
    """

    def __init__(
        self,
        *,
        budget_usd: float | None = None,
        deadline: str | None = None,
        max_usd_per_hundredth_loss: float | None = None,
        start_over_budget: bool = False,
    ) -> None:
        check_limits(budget_usd, deadline, max_usd_per_hundredth_loss)
        self._budget_usd, self._deadline, self._most_usd = budget_usd, deadline, max_usd_per_hundredth_loss
        self.stopped: str | None = None  # why, in words, on every rank
        self._cost: CostMonitor  # found by init
        self._ranks, self._is_first = 1, True
        self._deadline_unix_s: float | None = None
        self._begun = (time.time(), time.monotonic())
        self._warned = 0.0
        self._evaluations: list[tuple[float, float]] = []  # (dollars, loss)
        self._losses: list[float] = []  # of the evaluation that goes on, a loader each
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._quiet_calls = 0  # until the ranks speak again
        self._calls = deque([time.monotonic()], maxlen=RECENT_CALLS)
        self._training_data: tuple[Any, ...] | None = None  # what an evaluation puts back when it ends

    def init(self, state: State, logger: Logger) -> None:
        monitor = next((c for c in state.callbacks if isinstance(c, CostMonitor)), None)
        if monitor is None:
            raise ValueError("budget_guard: needs the cost_monitor callback, which keeps the bill.")
        self._cost = monitor
        counts_dollars = self._budget_usd is not None or self._most_usd is not None
        if counts_dollars and self._cost.rate.usd_per_device_hour is None:
            raise ValueError(f"budget_guard: cannot count dollars: {self._cost.rate.source}.")
        if self._deadline is not None:
            path = self._cost.ledger_path
            first = first_start_unix_s(path) if path else None
            self._deadline_unix_s = deadline_unix_s(self._deadline, self._begun[0] if first is None else first)
        self._ranks, self._is_first = dist.get_world_size(), dist.get_global_rank() == 0
        if self._ranks > 1:
            self._group = torch.distributed.new_group(backend="gloo")  # CPU to CPU, whatever the gradients use

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": json.dumps(self._evaluations)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._evaluations = [(usd, loss) for usd, loss in json.loads(state["evaluations"])]

    def fit_start(self, state: State, logger: Logger) -> None:
        """A run that goes on at its limit stops before its first step."""
        said = torch.tensor(REASONS.index(self._reason(self._usd)))
        if self._group is not None:
            torch.distributed.broadcast(said, src=0, group=self._group)
        self._stop_for(REASONS[int(said)], state)

    def batch_end(self, state: State, logger: Logger) -> None:
        usd = self._usd
        if self._budget_usd is not None and self._is_first:
            used = usd / self._budget_usd
            logger.log_metrics({"budget/share_used": used})
            self._warn(used)
        self._stop_for(self._agree(self._reason(usd), usd), state)

    def _stop_for(self, reason: str, state: State) -> None:
        done = state.max_duration is not None and state.timestamp >= state.max_duration
        if reason and not done:
            self.stopped = self._words(reason)
            state.stop_training()  # Composer saves its last checkpoint now
            for evaluator in state.evaluators:
                evaluator.eval_interval = _never

    @property
    def _usd(self) -> float:
        """Dollars so far, on rank 0, which decides."""
        return (self._cost.usd or 0.0) if self._is_first else 0.0

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self._training_data = (state.dataloader, state.dataloader_label, state.dataloader_len)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self.break_off()

    def break_off(self) -> None:
        """Raises BudgetReached at a limit; all ranks call it, now and then, while an evaluation goes on."""
        usd = self._usd
        reason = self._agree(self._reason(usd), usd)
        if reason:
            self.stopped = self._words(reason)
            raise BudgetReached(self.stopped)

    def eval_end(self, state: State, logger: Logger) -> None:
        if LOSS in state.eval_metrics.get(state.dataloader_label or "", {}):
            self._losses.append(float(state.eval_metric_values[LOSS]))

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._training_data = None
        losses, self._losses = self._losses, []
        usd = self._cost.usd
        if losses and usd is not None and self._is_first:
            self._judge(usd, sum(losses) / len(losses), logger)  # of several loaders the mean, as in reports
        if self._group is not None:  # the evaluation may have been the one too many: the next step is the last
            agreed, _ = self._settle()
            self._say(agreed or self._reason(usd or 0.0), usd or 0.0)

    def _judge(self, usd: float, loss: float, logger: Logger) -> None:
        """Marginal value, with the evaluation that has just ended at these dollars."""
        self._evaluations.append((usd, loss))
        price = usd_per_hundredth_loss(self._evaluations)
        if price is None:
            return
        if price < float("inf"):
            logger.log_metrics({"budget/usd_per_hundredth_loss": price})

    def fit_end(self, state: State, logger: Logger) -> None:
        self._settle()

    def save_broken_off(self, trainer: Trainer) -> None:
        """After BudgetReached: the checkpoint of the last finished step, as if the evaluation had not begun."""
        self._settle()
        state, saver = trainer.state, trainer._checkpoint_saver
        if self._training_data is not None:
            dataloader, label, length = self._training_data
            state.set_dataloader(dataloader, label)
            if length is not None:
                state.dataloader_len = length
        if saver is not None and state.timestamp.batch > 0 and saver.last_checkpoint_batch != state.timestamp.batch:
            self._cost.run_event(Event.BATCH_CHECKPOINT, state, trainer.logger)
            saver._save_checkpoint(state, trainer.logger)

    def _reason(self, usd: float) -> str:
        """Why to stop, on rank 0; empty elsewhere and where there is no reason. Several act on it a step later."""
        if not self._is_first:
            return ""
        step_s = 0.0 if self._group is None else self._step_s()
        if self._budget_usd is not None:
            step_usd = step_s / 3600 * self._ranks * (self._cost.rate.usd_per_device_hour or 0.0)
            if usd + step_usd >= self._budget_usd:
                return "budget"
        if self._deadline_unix_s is not None and self._now() + step_s >= self._deadline_unix_s:
            return "deadline"
        return "marginal value" if self._is_too_dear() else ""

    def _is_too_dear(self) -> bool:
        """Whether the last evaluations, each with the one before it, asked more than the limit of now."""
        if self._most_usd is None:
            return False
        ends = range(len(self._evaluations), len(self._evaluations) - DEAR_EVALUATIONS, -1)
        prices = [usd_per_hundredth_loss(self._evaluations[: max(end, 0)]) for end in ends]
        return all(price is not None and price > self._most_usd for price in prices)

    def _now(self) -> float:
        """Unix time that a clock set back during the run cannot stop."""
        wall, monotonic = self._begun
        return max(time.time(), wall + time.monotonic() - monotonic)

    def _agree(self, reason: str, usd: float) -> str:
        """Rank 0's reason of now for a single process; of the step before, the same on every rank, for several.

        Speaking takes some tenths of a millisecond, so ranks with short steps do not do it at every one of them while
        the limit is far; rank 0 says how many they leave out.
        """
        if self._group is None:
            return reason
        self._calls.append(time.monotonic())
        agreed, quiet_calls = self._settle()
        self._quiet_calls = max(self._quiet_calls - 1, quiet_calls, 0)
        if not agreed and self._quiet_calls == 0:
            self._say(reason, usd)
        return agreed

    def _say(self, reason: str, usd: float) -> None:
        said = torch.tensor([REASONS.index(reason), self._calls_to_leave_out(usd)])
        self._pending = (torch.distributed.broadcast(said, src=0, group=self._group, async_op=True), said)

    def _step_s(self) -> float:
        """Seconds that the next step will take: the median of the recent ones, 0 before there is one."""
        recent = [b - a for a, b in itertools.pairwise(self._calls)]
        return statistics.median(recent) if recent else 0.0

    def _settle(self) -> tuple[str, int]:
        """What rank 0 said last: its reason, and the calls to leave out."""
        if self._pending is None:
            return "", 0
        work, said = self._pending
        self._pending = None
        work.wait()
        reason, quiet_calls = said.tolist()
        return REASONS[reason], quiet_calls

    def _calls_to_leave_out(self, usd: float) -> int:
        """None for steps of a second; for shorter ones a second's worth, a quarter of the way to the limit at most."""
        longest_s = max((b - a for a, b in itertools.pairwise(self._calls)), default=SPEAK_AT_LEAST_EVERY_S)
        left_s = min(SPEAK_AT_LEAST_EVERY_S, self._seconds_left(usd) / 4)
        return max(0, int(left_s / max(longest_s, 1e-6)) - 1)

    def _seconds_left(self, usd: float) -> float:
        left = [float("inf")]
        if self._deadline_unix_s is not None:
            left.append(self._deadline_unix_s - self._now())
        rate = self._cost.rate.usd_per_device_hour
        if self._budget_usd is not None and rate:
            left.append((self._budget_usd - usd) / rate / self._ranks * 3600)
        return max(0.0, min(left))

    def _words(self, reason: str) -> str:
        if reason == "budget":
            return f"the budget of ${self._budget_usd:g} is spent"
        if reason == "deadline":
            return f"the deadline {self._deadline} has come"
        return f"the next 0.01 of validation loss would cost more than ${self._most_usd:g}"

    def _warn(self, used: float) -> None:
        passed = max((share for share in WARN_AT if used >= share), default=0.0)
        if passed > self._warned:
            total = self._cost.usd_projected_total
            expected = "" if total is None else f"; at this pace the whole run takes ${total:.4g}"
            log.warning("budget_guard: %.0f %% of $%g is spent%s.", passed * 100, self._budget_usd, expected)
            self._warned = passed


def usd_per_hundredth_loss(evaluations: list[tuple[float, float]]) -> float | None:
    """Dollars that the next 0.01 of loss will take at the pace between the last two evaluations.

    0.01 * (dollars between them) / (loss gained between them); infinite where nothing was gained, None before there
    are two. Loss flattens, so the true price is a little higher.
    """
    if len(evaluations) < 2:
        return None
    (usd_before, loss_before), (usd, loss) = evaluations[-2:]
    gained = loss_before - loss
    return 0.01 * (usd - usd_before) / gained if gained > 0 else float("inf")


def _never(state: State, event: Event) -> bool:
    return False
