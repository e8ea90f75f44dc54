"""Tasks while a training run goes on: `icl_tasks:` and `harness_tasks:` of its recipe, every `task_interval`.

The scores go to every logger, to the ledger with what they cost, and as a line to tasks.jsonl in the run folder, from
which the report draws them over the checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from composer import Callback, Event, Logger, State
from composer.core.precision import get_precision_context
from composer.utils import create_interval_scheduler, dist

from eval.backbone import Backbone
from eval.harness_chat import Asking, check_template
from eval.questions import ScoringError
from eval.suite import gauntlet_scores, logged, run_tasks, tasks_of
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.log_lines import say_scores
from recipes.callbacks.stopping import Stopper
from recipes.json_lines import append
from recipes.models.compiling import uncompiled
from recipes.reports.runs import metrics_by_step, read_tasks
from recipes.reports.scores import score_with_interval
from recipes.run_files import METRICS, TASKS
from recipes.training.processes import as_first_rank_sees

log = logging.getLogger("recipes")
SECONDS = "evaluation/seconds"  # a metric of every evaluation, also of one that failed


class TaskEvaluation(Callback):
    """Evaluates the model as it is at an interval, and at the end.

    tokenizer, max_seq_len: as the tasks are read with. reads: tokens that the model reads at most.
    cost: bills the time. stopper: breaks it off. folder: the run's.
    Raises ValueError, in words, for tasks that cannot be read: before the first step.
    """

    def __init__(
        self,
        tokenizer: Any,
        cost: CostMonitor,
        stopper: Stopper,
        folder: Path,
        *,
        interval: str | int,
        at_start: bool,
        icl_tasks: Any,
        harness_tasks: Mapping[str, Any] | None,
        gauntlet: Any,
        max_seq_len: int,
        reads: int,
        batch_size: int,
        subset_batches: int | None = None,
        subset_of_category: int | None = None,
    ) -> None:
        self.tokenizer, self.cost, self.stopper, self.folder = tokenizer, cost, stopper, folder
        self.max_seq_len, self.batch_size, self.gauntlet, self.at_start = max_seq_len, batch_size, gauntlet, at_start
        self.reads = reads  # a task's own max_seq_len may be longer than this run's for tasks
        scratch = folder / "tasks"
        self.tasks = []
        if icl_tasks:
            subset = (subset_batches, reads, subset_of_category)
            self.tasks = tasks_of(icl_tasks, tokenizer, max_seq_len, batch_size, scratch, *subset)
        # what is missing is said now, and not after the first interval
        self.harness = _load_harness(harness_tasks) if harness_tasks else None
        self.limit = (harness_tasks or {}).get("limit")
        self.asking = Asking.of(harness_tasks or {})
        if self.asking.apply_chat_template:
            check_template(tokenizer, "harness_tasks.apply_chat_template")
        self._is_due = create_interval_scheduler(interval)  # before the checkpoint of the same step is saved
        self._backbone: Backbone | None = None
        self._last_batch = -1

    def make_up_for(self, state: State, logger: Logger) -> None:
        """Evaluate at the step that a run has come to, where a stop kept it from that."""
        if as_first_rank_sees(dist.get_global_rank() == 0 and not self._has_judged(int(state.timestamp.batch))):
            self._evaluate(state, logger)

    def _has_judged(self, step: int) -> bool:
        """Whether this run has, and no other that was before it in this folder: tasks.jsonl has the records of both."""
        is_noted = any(record.get("step") == step for record in read_tasks(self.folder / TASKS))
        return is_noted and SECONDS in metrics_by_step(self.folder / METRICS).get(step, {})

    def fit_start(self, state: State, logger: Logger) -> None:
        if self.at_start and state.timestamp.batch == 0:
            self._evaluate(state, logger)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._is_due(state, Event.BATCH_CHECKPOINT) and not self.stopper.stopped:
            self._evaluate(state, logger)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        if self._is_due(state, Event.EPOCH_CHECKPOINT) and not self.stopper.stopped:
            self._evaluate(state, logger)

    def _evaluate(self, state: State, logger: Logger) -> None:
        step = int(state.timestamp.batch)
        if step == self._last_batch:
            return
        self._last_batch = step
        start = time.monotonic()
        with self.cost.spending("evaluation"):
            training = state.model.training
            try:
                with uncompiled(state.model):
                    results, numbers = self._scores(state)
                trouble = ""
            except ScoringError as error:  # no score is better than a wrong one, and than the end of the run
                results, numbers, trouble = [], {}, str(error)
                log.warning("tasks at step %d: %s", step, trouble)
            finally:
                state.model.train(training)
        seconds = time.monotonic() - start
        rate = self.cost.rate.usd_per_device_hour
        usd = None if rate is None else seconds / 3600 * rate * dist.get_world_size()
        spent = {SECONDS: seconds} | ({} if usd is None else {"evaluation/usd": usd})
        logger.log_metrics({**numbers, **spent})
        say_scores(state, {str(result["label"]): score_with_interval(result) for result in results})
        if dist.get_global_rank() == 0:
            kept = {"step": step, "tokens": int(state.timestamp.token), "seconds": round(seconds, 3), "usd": usd}
            scores = {r["label"]: r["score"] for r in results}
            self.cost.note("evaluation", step=step, evaluation_s=round(seconds, 3), evaluation_usd=usd, scores=scores)
            append(self.folder / TASKS, {**kept, "tasks": results, **({"error": trouble} if trouble else {})})

    def _scores(self, state: State) -> tuple[list[dict[str, Any]], dict[str, float]]:
        if self._backbone is None:
            # without fp8, whose products want whole multiples of rows: Composer evaluates so as well
            precision = partial(
                get_precision_context, state.precision, state.precision_config, fp8_autocast_enabled=False
            )
            self._backbone = Backbone(state.model, self.reads, precision)
        backbone = self._backbone
        backbone.whole.eval()
        judged = []
        for task in self.tasks:
            judged += run_tasks([task], lambda: backbone, self.tokenizer, self.reads, self.batch_size)
            self.stopper.break_off()
        results, numbers = [j.result for j in judged], logged(judged)
        if self.gauntlet is not None and judged:
            averages = gauntlet_scores(self.gauntlet, judged)
            numbers |= {f"icl/metrics/eval_gauntlet/{name}": value for name, value in averages.items()}
        if self.harness is not None:
            from eval import harness_results
            from eval.harness_lm import ScoringLM

            chats = self.asking.apply_chat_template
            lm = ScoringLM(lambda: backbone, self.tokenizer, self.reads, self.batch_size, chats=chats)
            found, _ = harness_results.evaluate(lm, self.harness, self.limit, self.asking)
            results += found
            numbers |= {f"metrics/{r['label']}/{name}": value for r in found for name, value in r["metrics"].items()}
        return results, numbers


def _load_harness(settings: Mapping[str, Any]) -> Any:
    from eval.harness_tasks import load_tasks

    include = [Path(folder) for folder in settings.get("include") or []]
    return load_tasks(settings["tasks"], include, settings.get("num_fewshot"))
