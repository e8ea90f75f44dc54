"""The limits of a run: a budget, a deadline, or where the next bit of validation loss costs too much.

    callbacks:
      budget_guard:
        budget_usd: 500                    # of all processes of the run together
        deadline: 10d                      # from the run's first start; or a date: 2027-01-31T08:00
        max_usd_per_hundredth_loss: 20     # dollars for the next 0.01 of validation loss

Rank 0 keeps the bill (the cost monitor's) and decides; recipes/callbacks/stopping.py stops the run, on all ranks. So
beyond its limit a run spends a step or a task, and a checkpoint, at most. Whether the plan exceeds the budget is judged
before anything is built, by recipes/planning/budget.py.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from recipes.callbacks.cost import CostMonitor
from recipes.cost.figures import usd
from recipes.cost.ledger import first_start_unix_s
from recipes.planning.budget import WARN_AT, check_limits, deadline_unix_s

log = logging.getLogger(__name__)

LOSSES = ("LanguageCrossEntropy", "PairLoss")  # of which a run has one: that of preferences with `dpo`
LIMITS = ("budget", "deadline", "marginal value")
DEAR_EVALUATIONS = 2  # in a row: one may be noise


class BudgetGuard(Callback):
    """Says when a limit has come. Needs the cost monitor, and for `budget_usd` a known rate.

    Args:
        budget_usd: dollars for the whole run, with every start and everything that crashes wasted.
        deadline: time from the run's first start (`36h`, `10d`), or a date and time of this machine's clock.
        max_usd_per_hundredth_loss: most dollars for the next 0.01 nats of validation loss (with `dpo` that of pairs),
            judged by the last two evaluations; two in a row above it stop the run.
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
        self._cost: CostMonitor  # found by init
        self._ranks, self._is_first = 1, True
        self._deadline_unix_s: float | None = None
        self._begun = (time.time(), time.monotonic())
        self._warned = 0.0
        self._evaluations: list[tuple[float, float]] = []  # (dollars, loss)
        self._losses: list[float] = []  # of the evaluation that goes on, a loader each
        self._usd = 0.0  # spent, at the last reading

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

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": json.dumps(self._evaluations)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._evaluations = [(usd, loss) for usd, loss in json.loads(state["evaluations"])]

    def batch_end(self, state: State, logger: Logger) -> None:
        self.read()
        if self._budget_usd is not None and self._is_first:
            used = self._usd / self._budget_usd
            logger.log_metrics({"budget/share_used": used})
            self._warn(used)

    def read(self) -> None:
        """Look at the bill, on rank 0, which decides."""
        if self._is_first:
            self._usd = self._cost.usd or 0.0

    def eval_end(self, state: State, logger: Logger) -> None:
        of_loader = state.eval_metrics.get(state.dataloader_label or "", {})
        self._losses += [float(state.eval_metric_values[name]) for name in LOSSES if name in of_loader]

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self.read()
        losses, self._losses = self._losses, []
        if losses and self._cost.rate.usd_per_device_hour is not None and self._is_first:
            self._judge(sum(losses) / len(losses), logger)  # of several loaders the mean, as in reports

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        """The evaluation before the first step, which Composer does not count among those of training."""
        self.eval_after_all(state, logger)

    def _judge(self, loss: float, logger: Logger) -> None:
        """Marginal value, with the evaluation that has just ended."""
        self._evaluations.append((self._usd, loss))
        price = usd_per_hundredth_loss(self._evaluations)
        if price is None:
            return
        if price < float("inf"):
            logger.log_metrics({"budget/usd_per_hundredth_loss": price})

    def reason(self, step_s: float = 0.0) -> str:
        """The limit that will have come in `step_s` seconds, as of the last reading; empty where none will have."""
        if self._budget_usd is not None:
            step_usd = step_s / 3600 * self._ranks * (self._cost.rate.usd_per_device_hour or 0.0)
            if self._usd + step_usd >= self._budget_usd:
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

    def seconds_left(self) -> float:
        """Until the budget is spent at this rate, or the deadline; infinite without either."""
        left = [float("inf")]
        if self._deadline_unix_s is not None:
            left.append(self._deadline_unix_s - self._now())
        rate = self._cost.rate.usd_per_device_hour
        if self._budget_usd is not None and rate:
            left.append((self._budget_usd - self._usd) / rate / self._ranks * 3600)
        return max(0.0, min(left))

    def words(self, reason: str) -> str:
        if reason == "budget":
            return f"the budget of {usd(self._budget_usd or 0.0)} is spent"
        if reason == "deadline":
            return f"the deadline {self._deadline} has come"
        return f"the next 0.01 of validation loss would cost more than {usd(self._most_usd or 0.0)}"

    def _warn(self, used: float) -> None:
        passed = max((share for share in WARN_AT if used >= share), default=0.0)
        if passed > self._warned:
            total = self._cost.usd_projected_total
            expected = "" if total is None else f"; at this pace the whole run takes {usd(total)}"
            log.warning("budget_guard: %.0f %% of %s is spent%s.", passed * 100, usd(self._budget_usd or 0.0), expected)
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
