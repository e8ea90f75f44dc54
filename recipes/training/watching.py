"""What watches a run: its meter, the recipe's callbacks, tasks in the loop, the profiler."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from composer import Callback
from composer.profiler import JSONTraceHandler, Profiler, TraceHandler, cyclic_schedule
from llmfoundry.utils import builders

from recipes import parts
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.stopping import Stopper
from recipes.config.evaluation_rules import tasks_are_never_due
from recipes.config.load import Recipe
from recipes.cost.rate import cost_section
from recipes.run_files import LEDGER
from recipes.training.batches import Batches
from recipes.weights.folder_files import with_template


def open_meter(recipe: Recipe, settings: Mapping[str, Any], name: str, folder: Path) -> CostMonitor:
    """The meter, running: before anything is built, so that what dies in that time is billed too."""
    meter = {"ledger": str(folder / LEDGER), "started_at": psutil.Process().create_time()}
    with parts.reporting(recipe, "cost"):
        monitor = CostMonitor(**{**meter, **cost_section(settings)})
        monitor.open(name)
    return monitor


def build_callbacks(recipe: Recipe, settings: Mapping[str, Any], batches: Batches) -> list[Callback]:
    """Those that the recipe names, but for the meter."""
    # LLM Foundry gives callbacks the recipe with what a run makes of it
    train_config = {
        **recipe.values,
        "train_loader": parts.complete_loader(copy.deepcopy(recipe["train_loader"]), recipe.values),
        "n_gpus": batches.devices,
        "device_train_batch_size": batches.sequences_per_device,
        "device_train_microbatch_size": batches.microbatch or "auto",
        "device_train_grad_accum": batches.gradient_accumulation or "auto",
        "device_eval_batch_size": settings["device_eval_batch_size"],
    }
    wanted = {name: kwargs for name, kwargs in (settings["callbacks"] or {}).items() if name != "cost_monitor"}
    if settings.get("compile"):
        wanted.setdefault("recompile_counter", {})
    callbacks: list[Callback] = []
    for name, kwargs in wanted.items():
        with parts.reporting(recipe, "callbacks"):
            callbacks.append(builders.build_callback(name, kwargs or {}, train_config=copy.deepcopy(train_config)))
    return callbacks


def tasks_in_the_loop(
    recipe: Recipe, settings: Mapping[str, Any], tokenizer: Any, folder: Path, cost: CostMonitor, stopper: Stopper
) -> list[Callback]:
    """The evaluation of `icl_tasks` and `harness_tasks` while the run goes on, where there are any."""
    if not settings["icl_tasks"] and not recipe.get("harness_tasks"):
        return []
    if tasks_are_never_due(recipe.values):
        return []
    from eval.in_loop import TaskEvaluation
    from eval.suite import subsets

    tokenizer = with_template(tokenizer, settings["train_loader"])
    with parts.reporting(recipe, "icl_tasks" if settings["icl_tasks"] else "harness_tasks"):
        return [
            TaskEvaluation(
                tokenizer,
                cost,
                stopper,
                folder,
                interval=recipe.get("task_interval") or settings["eval_interval"],
                at_start=bool(settings.get("eval_first")),
                icl_tasks=settings["icl_tasks"],
                harness_tasks=recipe.get("harness_tasks"),
                gauntlet=settings["eval_gauntlet"],
                max_seq_len=min(settings.get("icl_seq_len") or settings["max_seq_len"], settings["max_seq_len"]),
                reads=settings["max_seq_len"],
                batch_size=max(1, int(settings["device_eval_batch_size"])),
                **subsets(settings, trains=True),
            )
        ]


def build_profiler(section: dict[str, Any] | None, folder: Path) -> Profiler | None:
    """LLM Foundry's `profiler:` section: a schedule, a JSON trace handler, and Composer's own arguments."""
    if not section:
        return None
    schedule = cyclic_schedule(**section.pop("schedule", {}))
    traces = section.pop("json_trace_handler", None)
    handlers: list[TraceHandler] = []
    if traces:
        handlers.append(JSONTraceHandler(**{"folder": str(folder / "traces"), "overwrite": True, **traces}))
    # a run that goes on writes into the folder that it began
    section = {"torch_prof_folder": str(folder / "torch_traces"), "torch_prof_overwrite": True, **section}
    return Profiler(schedule=schedule, trace_handlers=handlers, **section)
