"""How a run gets on, in lines for a log: what the progress bar shows on a terminal, without a line for each step."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from composer.core import State, Time
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from tqdm import tqdm

from recipes.callbacks.readings import progress
from recipes.cost.duration import in_words
from recipes.cost.figures import usd
from recipes.reports.runs import TRAIN_LOSS, validation_scores

INTERVAL_S = 30.0


class LogLines(LoggerDestination):
    """A line on stderr after the first step, the last, each evaluation, and else every 30 s; from rank 0 only."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._due_s = 0.0
        self._said = -1  # the step that the last line was about
        self._metrics: dict[str, Any] = {}
        self._max_duration: Time[int] | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._metrics.update(metrics)

    def batch_end(self, state: State, logger: Logger) -> None:
        if time.monotonic() >= self._due_s:
            self._say(state)

    def fit_end(self, state: State, logger: Logger) -> None:
        if self._said != state.timestamp.batch.value:
            self._say(state)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._max_duration = state.max_duration  # which a run that is stopped cuts down

    def eval_before_all(self, state: State, logger: Logger) -> None:
        self._metrics = {name: value for name, value in self._metrics.items() if not name.startswith("metrics/eval/")}

    eval_standalone_start = eval_before_all

    def eval_after_all(self, state: State, logger: Logger) -> None:
        say_scores(state, {name: f"{value:.4f}" for name, value in validation_scores(self._metrics).items()})

    eval_standalone_end = eval_after_all

    def _say(self, state: State) -> None:
        self._said = state.timestamp.batch.value
        self._due_s = time.monotonic() + self._interval_s
        _write(f"step {self._said:,}" + _share(state, self._max_duration) + ": " + ", ".join(_shown(self._metrics)))


def _share(state: State, max_duration: Time[int] | None) -> str:
    done = progress(state, max_duration)
    return "" if done is None else f" ({done:.0%})"


def _shown(metrics: dict[str, Any]) -> list[str]:
    """What there is of the loss, the rate, the money and the time left."""
    shown = []
    if TRAIN_LOSS in metrics:
        shown.append(f"loss {float(metrics[TRAIN_LOSS]):.4f}")
    if "throughput/tokens_per_s" in metrics:
        shown.append(f"{metrics['throughput/tokens_per_s']:,.0f} tokens/s")
    if "cost/usd" in metrics:
        total = metrics.get("cost/usd_projected_total")
        shown.append(usd(metrics["cost/usd"]) + ("" if total is None else f" of about {usd(total)}"))
    if "cost/hours_left" in metrics:
        shown.append(f"{in_words(metrics['cost/hours_left'] * 3600)} left")
    for name, key in (("MFU", "throughput/mfu"), ("goodput", "cost/goodput")):
        if key in metrics:
            shown.append(f"{name} {metrics[key]:.0%}")
    return shown


def say_scores(state: State, scores: Mapping[str, str]) -> None:
    """A line of what an evaluation at this step found, by name, where it found something; from rank 0 only."""
    if scores:
        found = ", ".join(f"{name} {score}" for name, score in scores.items())
        _write(f"step {int(state.timestamp.batch):,}: {found}")


def _write(line: str) -> None:
    """On a line of its own above a progress bar, too."""
    if dist.get_global_rank() == 0:
        tqdm.write(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)
        sys.stderr.flush()
