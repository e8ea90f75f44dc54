"""Recipe → Composer objects, through LLM Foundry's registries. Only here and in parts.py keys meet constructors."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from composer import Callback, DataSpec, Evaluator, Trainer
from composer.core import ensure_data_spec
from composer.profiler import JSONTraceHandler, Profiler, TraceHandler, cyclic_schedule
from composer.utils import dist
from llmfoundry.callbacks import HuggingFaceCheckpointer
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.utils import builders

from recipes import parts
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.divergence import DivergenceGuard
from recipes.callbacks.log_lines import LogLines
from recipes.callbacks.metrics_file import MetricsFile
from recipes.callbacks.stopping import Stopper, held_back, keep_workers, start_uploaders
from recipes.config.evaluation_rules import tasks_are_never_due
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.cost.architecture import MPT, OURS
from recipes.cost.hardware import gpu_from_device_name
from recipes.cost.rate import cost_section
from recipes.cost.setup import shards
from recipes.models.compiling import checkpoint_blocks, checkpoint_by_operation, compile_blocks
from recipes.reports.runs import run_folder, run_name
from recipes.run import Run
from recipes.run_files import LEDGER, METRICS
from recipes.training.batches import Batches, microbatch_with_room, plan_batches
from recipes.training.checkpoints import Found, as_composer_lists, latest_filename, resumes, save_filename
from recipes.training.loaders_lock import holding_loaders_lock
from recipes.training.lora import reset_lora
from recipes.training.packing import Packing
from recipes.training.preferences import PreferenceModel
from recipes.training.processes import as_all_find, log_from, parallelism, prepare_process
from recipes.training.resuming import how_it_starts, resume_point
from recipes.weights.folder_files import with_template
from recipes.weights.pretrained import load_pretrained

log = logging.getLogger("recipes")

# Arguments of the trainer that are keys of the recipe.
AS_WRITTEN = (
    "seed",
    "precision",
    "max_duration",
    "train_subset_num_batches",
    "eval_interval",
    "log_to_console",
    "console_log_interval",
    "save_folder",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "save_overwrite",
    "save_weights_only",
    "save_ignore_keys",
    "load_path",
    "load_weights_only",
    "load_strict_model_weights",
    "load_ignore_keys",
    "dist_timeout",
    "compile_config",
    "spin_dataloaders",
)


def build(recipe: Recipe) -> Run:
    """Build everything a training run needs, and load the checkpoint it goes on from.

    Raises RecipeError where a section cannot be built; the message carries the constructor's own words.
    """
    parts.register_components()
    log_from(recipe.get("python_log_level"))
    settings = _settings(recipe)
    name, folder = run_name(recipe), run_folder(recipe)
    parts.import_code(recipe)
    with parts.reporting(recipe, "seed"):
        prepare_process(settings)

    cost = _cost_monitor(recipe, settings, name, folder)
    fsdp = settings["fsdp_config"] if dist.get_world_size() > 1 else None
    tensor_parallel = settings["tp_config"] if dist.get_world_size() > 1 else None
    batches = plan_batches(recipe, dist.get_world_size())
    microbatch = _microbatch(recipe, batches, is_split=shards(fsdp) or tensor_parallel is not None)
    settings["device_eval_batch_size"] = _eval_batch(recipe, batches, microbatch)

    with parts.reporting(recipe, "tokenizer"):
        tokenizer = builders.build_tokenizer(settings["tokenizer"]["name"], settings["tokenizer"].get("kwargs") or {})
    with holding_loaders_lock():
        with parts.reporting(recipe, "train_loader"):
            loader = parts.complete_loader(settings["train_loader"], settings)
            train_loader = ensure_data_spec(build_dataloader(loader, tokenizer, batches.sequences_per_device))
            _refuse_empty(train_loader, f"{batches.sequences_per_step} {batches.items}")  # Composer would ask for ever
        evaluators = build_evaluators(recipe, settings, tokenizer)
        for evaluator in evaluators:
            with parts.reporting(recipe, "eval_loader"):
                size = int(settings["device_eval_batch_size"] * batches.devices)
                _refuse_empty(evaluator.dataloader, f"{size} {batches.items} for {evaluator.label}")
        packing = Packing(train_loader, [evaluator.dataloader for evaluator in evaluators])
        if recipe.get("model.name") in OURS and not recipe.get("dpo"):
            as_built = train_loader.batch_transforms
            train_loader.batch_transforms = lambda batch: without_needless_mask(as_built(batch))
    model = _model_to_train(recipe, settings, tokenizer, fsdp, tensor_parallel)
    with parts.reporting(recipe, "optimizer"):
        optimizer = builders.build_optimizer(model, settings["optimizer"].pop("name"), settings["optimizer"])
    with parts.reporting(recipe, "scheduler"):
        scheduler = builders.build_scheduler(settings["scheduler"].pop("name"), settings["scheduler"])
    if settings["eval_loader"] is not None:
        evaluators = builders.add_metrics_to_eval_loaders(evaluators, loss_metrics(model))

    stopper = Stopper(saves=bool(settings["save_folder"]))
    callbacks = [cost, *_callbacks(recipe, settings, batches), DivergenceGuard(), stopper]
    callbacks += [packing] if packing.is_needed else []
    callbacks += _tasks_in_the_loop(recipe, settings, tokenizer, folder, cost, stopper)
    for data in (train_loader, *(evaluator.dataloader for evaluator in evaluators)):
        keep_workers(data)
    algorithms = [builders.build_algorithm(n, kwargs or {}) for n, kwargs in (settings["algorithms"] or {}).items()]
    found = resume_point(recipe)
    loggers = [MetricsFile(str(folder / METRICS)), *parts.build_loggers(recipe, settings, folder)]
    on_terminal = sys.stderr.isatty()
    if settings["progress_bar"] and not on_terminal:
        loggers.append(LogLines())
    with parts.reporting(recipe, "trainer"), held_back():
        trainer = Trainer(
            run_name=name,
            **{key: settings[key] for key in AS_WRITTEN},
            model=model,
            train_dataloader=train_loader,
            eval_dataloader=evaluators,
            # of tasks alone too, which are not Composer's: without a loader it would refuse the key
            eval_subset_num_batches=settings["eval_subset_num_batches"] if evaluators else -1,
            optimizers=optimizer,
            schedulers=scheduler,
            progress_bar=settings["progress_bar"] and on_terminal,
            loggers=loggers,
            callbacks=callbacks,
            algorithms=algorithms,
            device_train_microbatch_size=microbatch,
            parallelism_config=parallelism(fsdp, tensor_parallel, model),
            save_filename=save_filename(recipe),
            save_latest_filename=latest_filename(recipe),
            autoresume=resumes(settings),
            python_log_level=settings["python_log_level"] if recipe.get("python_log_level") else None,
            profiler=_profiler(settings["profiler"], folder),
            # the loss of preferences is a mean over pairs, however long they are
            accumulate_train_batch_on_tokens=settings["accumulate_train_batch_on_tokens"] and not recipe.get("dpo"),
        )
        start_uploaders(trainer)
    _make_ready(trainer, recipe, settings, found)
    return Run(
        recipe, name, folder, trainer, cost, stopper, str(found) if found is not None else how_it_starts(settings)
    )


def agree(recipe: Recipe, code: int | None) -> int | None:
    """What all ranks make of what this one has come to: the exit code to end with, None where the run begins."""
    with parts.reporting(recipe, "seed"):
        prepare_process(_settings(recipe))
    return as_all_find(code)


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {**parts.DEFAULTS, **{k: v for k, v in copy.deepcopy(dict(recipe.values)).items() if v is not None}}


def _model_to_train(
    recipe: Recipe, settings: dict[str, Any], tokenizer: Any, fsdp: dict[str, Any] | None, tp: dict[str, Any] | None
) -> Any:
    """The model, with what is put around its blocks and its loss."""
    with parts.reporting(recipe, "model"):
        model = parts.build_model(settings["model"], tokenizer, fsdp, tp)
    if recipe.get("dpo"):
        with parts.reporting(recipe, "dpo"):
            model = PreferenceModel(model, **recipe["dpo"])
    if settings.get("selective_checkpointing"):
        checkpoint_by_operation(model)
    if settings.get("compile"):
        compile_blocks(model)
    if (settings["fsdp_config"] or {}).get("activation_checkpointing") and not shards(fsdp):
        checkpoint_blocks(model)  # Composer does it where it shards
    return model


def _make_ready(trainer: Trainer, recipe: Recipe, settings: Mapping[str, Any], found: Found | None) -> None:
    """What a trainer wants before its first step: weights from elsewhere, the checkpoints before, order, silence."""
    is_new = trainer.state.timestamp.batch == 0  # a run that goes on has its own weights
    if recipe.get("pretrained") and is_new:
        with parts.reporting(recipe, "pretrained"):
            load_pretrained(trainer.state.model, recipe["model"], Path(recipe["pretrained"]))
    has_own_adapters = recipe.get("model.name") == MPT and recipe.get("model.peft_config")
    if has_own_adapters and not settings["load_path"] and is_new:
        reset_lora(trainer.state.model, settings["seed"])
    if found is not None and trainer._checkpoint_saver is not None:
        # so that checkpoints from before the restart count for save_num_checkpoints_to_keep
        trainer._checkpoint_saver.saved_checkpoints = [as_composer_lists(path) for path in found.whole]
    # Composer's checkpoint is saved before the export of the same step, which may fail
    trainer.state.callbacks.sort(key=lambda callback: isinstance(callback, HuggingFaceCheckpointer))
    parts.say_the_recipe_once(trainer)
    if settings["log_config"]:
        flattened = (settings["metadata"] or {}) if settings["flatten_metadata"] else {}
        trainer.logger.log_hyperparameters({**flattened, **recipe.values})


def _refuse_empty(spec: DataSpec, batch: str) -> None:
    """Raises ValueError where a loader gives no batch. batch: what one is, in words."""
    try:
        batches = len(spec.dataloader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # known only once it is read
        return
    if batches == 0:
        raise ValueError(f"its data gives no batch of {batch}")


def _microbatch(recipe: Recipe, batches: Batches, is_split: bool) -> float | str:
    """The size of a micro-batch; `auto` where Composer searches for it, which it does not with FSDP2."""
    if batches.microbatch is not None:
        return batches.microbatch
    if not torch.cuda.is_available():
        return batches.sequences_per_device
    if not is_split:
        return "auto"
    size = _with_room(recipe, batches)
    log.info("micro-batch: auto → %s of %s, for which memory is counted to suffice", size, batches.sequences_per_device)
    return size


def _eval_batch(recipe: Recipe, batches: Batches, microbatch: float | str) -> float:
    """The recipe's, or that of training; where Composer still searches for that one, what memory is counted for."""
    if recipe.get("device_eval_batch_size") is not None:
        return recipe["device_eval_batch_size"]
    return _with_room(recipe, batches) if isinstance(microbatch, str) else microbatch


def _with_room(recipe: Recipe, batches: Batches) -> int:
    """A micro-batch for which memory is counted to suffice on this process's GPU."""
    gpu, memory_gib = gpu_from_device_name(torch.cuda.get_device_name()), torch.cuda.mem_get_info()[1] / 2**30
    return microbatch_with_room(recipe, batches.devices, gpu, memory_gib)


def without_needless_mask(batch: Any) -> Any:
    """Leave out an attention mask that masks nothing, while it is on the CPU: to ask a GPU makes it catch up first."""
    if "attention_mask" in batch and bool(batch["attention_mask"].all()):
        del batch["attention_mask"]
    return batch


def build_evaluators(recipe: Recipe, settings: dict[str, Any], tokenizer: Any) -> list[Evaluator]:
    """Loaders of validation data; tasks are not theirs (eval/in_loop.py)."""
    for _, loader in loaders(settings, ["eval_loader"]):
        parts.complete_loader(loader, settings)
    if not settings["eval_loader"]:
        return []
    with parts.reporting(recipe, "eval_loader"):
        return builders.build_eval_loaders(settings["eval_loader"], tokenizer, settings["device_eval_batch_size"])


def _tasks_in_the_loop(
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


def loss_metrics(model: Any) -> list[str]:
    from llmfoundry.eval.metrics.nlp import InContextLearningMetric

    metrics = model.get_metrics(is_train=False)
    return [name for name, metric in metrics.items() if not isinstance(metric, InContextLearningMetric)]


def _cost_monitor(recipe: Recipe, settings: Mapping[str, Any], name: str, folder: Path) -> CostMonitor:
    """The meter, running: before anything is built, so that what dies in that time is billed too."""
    meter = {"ledger": str(folder / LEDGER), "started_at": psutil.Process().create_time()}
    with parts.reporting(recipe, "cost"):
        monitor = CostMonitor(**{**meter, **cost_section(settings)})
        monitor.open(name)
    return monitor


def _callbacks(recipe: Recipe, settings: Mapping[str, Any], batches: Batches) -> list[Callback]:
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


def _profiler(section: dict[str, Any] | None, folder: Path) -> Profiler | None:
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
