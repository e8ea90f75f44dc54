"""Recipe → Composer's trainer. Its parts come from parts.py and recipes/training, by LLM Foundry's registries."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer import Trainer
from composer.utils import dist
from llmfoundry.callbacks import HuggingFaceCheckpointer
from llmfoundry.utils import builders

from recipes import parts
from recipes.callbacks.divergence import DivergenceGuard
from recipes.callbacks.log_lines import LogLines
from recipes.callbacks.metrics_file import MetricsFile
from recipes.callbacks.stopping import Stopper, held_back, start_uploaders
from recipes.config.load import Recipe
from recipes.cost.architecture import MPT
from recipes.cost.setup import shards
from recipes.models.compiling import checkpoint_blocks, checkpoint_by_operation, compile_blocks
from recipes.reports.runs import run_folder, run_name
from recipes.run import Run
from recipes.run_files import METRICS
from recipes.training.batches import plan_batches
from recipes.training.checkpoints import (
    Found,
    as_composer_lists,
    keep_rotating,
    latest_filename,
    resumes,
    save_filename,
)
from recipes.training.loaders import build_data
from recipes.training.lora import reset_lora
from recipes.training.microbatch import batch_of_evaluation, microbatch_of_training
from recipes.training.preferences import PreferenceModel
from recipes.training.processes import as_all_find, log_from, parallelism, prepare_process
from recipes.training.resuming import how_it_starts, resume_point
from recipes.training.watching import build_callbacks, build_profiler, open_meter, tasks_in_the_loop
from recipes.weights.pretrained import load_pretrained

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

    cost = open_meter(recipe, settings, name, folder)
    fsdp = settings["fsdp_config"] if dist.get_world_size() > 1 else None
    tensor_parallel = settings["tp_config"] if dist.get_world_size() > 1 else None
    batches = plan_batches(recipe, dist.get_world_size())
    microbatch = microbatch_of_training(recipe, batches, is_split=shards(fsdp) or tensor_parallel is not None)
    settings["device_eval_batch_size"] = batch_of_evaluation(recipe, batches, microbatch)

    with parts.reporting(recipe, "tokenizer"):
        tokenizer = builders.build_tokenizer(settings["tokenizer"]["name"], settings["tokenizer"].get("kwargs") or {})
    data = build_data(recipe, settings, tokenizer, batches)
    model = _model_to_train(recipe, settings, tokenizer, fsdp, tensor_parallel)
    with parts.reporting(recipe, "optimizer"):
        optimizer = builders.build_optimizer(model, settings["optimizer"].pop("name"), settings["optimizer"])
    with parts.reporting(recipe, "scheduler"):
        scheduler = builders.build_scheduler(settings["scheduler"].pop("name"), settings["scheduler"])
    evaluators = data.evaluators
    if evaluators:
        evaluators = builders.add_metrics_to_eval_loaders(evaluators, loss_metrics(model))

    stopper = Stopper(saves=bool(settings["save_folder"]))
    callbacks = [cost, *build_callbacks(recipe, settings, batches), DivergenceGuard(), stopper]
    callbacks += [data.packing] if data.packing else []
    callbacks += tasks_in_the_loop(recipe, settings, tokenizer, folder, cost, stopper)
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
            train_dataloader=data.training,
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
            profiler=build_profiler(settings["profiler"], folder),
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
    if trainer._checkpoint_saver is not None:
        keep_rotating(trainer._checkpoint_saver)
    if found is not None and trainer._checkpoint_saver is not None:
        # so that checkpoints from before the restart count for save_num_checkpoints_to_keep
        trainer._checkpoint_saver.saved_checkpoints = [as_composer_lists(path) for path in found.whole]
    # Composer's checkpoint is saved before the export of the same step, which may fail
    trainer.state.callbacks.sort(key=lambda callback: isinstance(callback, HuggingFaceCheckpointer))
    parts.say_the_recipe_once(trainer)
    if settings["log_config"]:
        flattened = (settings["metadata"] or {}) if settings["flatten_metadata"] else {}
        trainer.logger.log_hyperparameters({**flattened, **recipe.values})


def loss_metrics(model: Any) -> list[str]:
    from llmfoundry.eval.metrics.nlp import InContextLearningMetric

    metrics = model.get_metrics(is_train=False)
    return [name for name, metric in metrics.items() if not isinstance(metric, InContextLearningMetric)]
