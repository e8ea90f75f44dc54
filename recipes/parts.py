"""What a run and an evaluation build alike: registered names, the user's own code, models, loaders, loggers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.loggers import ConsoleLogger, LoggerDestination
from composer.loggers.progress_bar_logger import ProgressBarLogger
from llmfoundry import registry
from llmfoundry.utils import builders
from llmfoundry.utils.config_utils import EvalConfig, TrainConfig, process_init_device
from llmfoundry.utils.registry_utils import import_file

from recipes.callbacks.budget import BudgetGuard
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.metrics_file import MetricsFile
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe
from recipes.cost.architecture import MODEL_DEFAULTS, MPT, OURS, RWKV
from recipes.cost.setup import shards
from recipes.run_files import TENSORBOARD
from recipes.training.lora import add_lora
from recipes.training.preferences import build_preference_loader
from recipes.training.startup import spare_questions

DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
EVAL_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(EvalConfig)}
EVAL_DEFAULTS |= {name: DEFAULTS[name] for name in ("expandable_segments", "max_split_size_mb", "cuda_load_lazy")}
DEFAULTS["autoresume"] = None  # LLM Foundry's off becomes: on wherever there is something to resume from


@functools.cache
def register_components() -> None:
    """Put this project's models, callbacks and loggers into LLM Foundry's registries."""
    spare_questions()
    find_backbones()
    from recipes.callbacks.recompiles import RecompileCounter
    from recipes.models.mpt import ComposerMPTCausalLM
    from recipes.models.rwkv import ComposerRwkvCausalLM
    from recipes.training.optimizers import FusedAdamW

    registry.models.register(MPT, func=ComposerMPTCausalLM)  # in the place of LLM Foundry's
    registry.models.register(RWKV, func=ComposerRwkvCausalLM)
    registry.optimizers.register("fused_adamw", func=FusedAdamW)
    registry.dataloaders.register("preferences", func=build_preference_loader)
    registry.callbacks.register("cost_monitor", func=CostMonitor)
    registry.callbacks.register("budget_guard", func=BudgetGuard)
    registry.callbacks.register("recompile_counter", func=RecompileCounter)
    registry.loggers.register("metrics_file", func=MetricsFile)


def find_backbones() -> None:
    """Let LLM Foundry find the blocks of GPT-2, GPT-NeoX, BLOOM and others among transformers' models.

    It asks a model for its decoder; where a class has named none, transformers 4.57 answers with the model itself.
    """
    from llmfoundry.models.hf import hf_fsdp

    attributes = ("transformer", "model.decoder", "gpt_neox")  # as LLM Foundry has them for models that cannot be asked

    def backbone(model: Any) -> Any:
        named = model.get_decoder() if hasattr(model, "get_decoder") else model
        return named if named is not model else hf_fsdp.findattr(model, attributes) or model

    hf_fsdp.hf_get_causal_base_model = backbone


def import_code(recipe: Recipe) -> None:
    """`code_paths`: the user's own code registers what the recipe names.

    Raises RecipeError: a file that cannot be imported, or that would change the recipe after it was judged.
    """
    known = set(registry.config_transforms.get_all())
    for path in recipe.get("code_paths") or []:
        with reporting(recipe, "code_paths"):
            import_file(path)
    own = sorted(set(registry.config_transforms.get_all()) - known)
    if own:
        text = f"registers the config transform {', '.join(own)}: recipes are not changed after they are checked; write"
        raise RecipeError(recipe.problem(("code_paths",), f"{text} into the recipe what it sets"))


@contextlib.contextmanager
def reporting(recipe: Recipe, key: str) -> Iterator[None]:
    """Turn what a constructor says into a problem at the section's place in the recipe."""
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:
        if os.environ.get("RECIPES_TRACEBACK"):
            raise
        text = str(error).strip() or type(error).__name__
        hint = " (RECIPES_TRACEBACK=1 shows where)"
        where = (key,) if key in recipe.values else ()  # the trainer takes what many sections say
        said = f"{'' if where else f'the {key} '}cannot be built: {text}{hint}"
        raise RecipeError(recipe.problem(where, said)) from error


def complete_loader(loader: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the recipe says elsewhere, and what torch's DataLoader wants when it has no workers."""
    dataset = loader.setdefault("dataset", {})
    dataset.setdefault("max_seq_len", settings["max_seq_len"])
    if loader["name"] == "finetuning":
        dataset.setdefault("decoder_only_format", settings["model"]["name"] != "hf_t5")
    if loader.get("num_workers") == 0:
        loader["prefetch_factor"] = None
        loader["persistent_workers"] = False
    if not torch.cuda.is_available():
        loader.setdefault("pin_memory", False)
    return loader


def build_model(config: dict[str, Any], tokenizer: Any, fsdp: dict[str, Any] | None, tp: dict[str, Any] | None) -> Any:
    if not shards(fsdp) and config.get("init_device") in ("meta", "mixed"):
        config["init_device"] = "cpu"  # nothing would fill in the weights later
    init_context = process_init_device(config, fsdp, tp)
    name = config.pop("name")
    lora = config.pop("peft_config", None) if name == MPT else None
    size, ids = config.get("vocab_size") or MODEL_DEFAULTS["vocab_size"], 0 if tokenizer is None else len(tokenizer)
    if name in OURS and ids > size:  # Composer would make more, and nothing that reads the recipe could use the model
        raise ValueError(f"its tokenizer has {ids} tokens, and vocab_size is {size}: set it to at least {ids}")
    model = builders.build_composer_model(
        name=name,
        tokenizer=tokenizer,
        init_context=init_context,
        master_weights_dtype=config.pop("master_weights_dtype", None),
        cfg=config,
    )
    if lora:
        add_lora(model.model, lora)
    return model


def build_loggers(recipe: Recipe, settings: Mapping[str, Any], folder: Path | None = None) -> list[LoggerDestination]:
    """The loggers that the recipe names. folder: of the run, where they write unless they are told otherwise."""
    loggers: list[LoggerDestination] = []
    for name, kwargs in (settings["loggers"] or {}).items():
        more = {} if folder is None else _inside(folder, name, kwargs or {})
        with reporting(recipe, "loggers"):
            loggers.append(builders.build_logger(name, {**(kwargs or {}), **more}))
    return loggers


def _inside(folder: Path, name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What keeps a logger's files in the run folder; theirs would be the working directory, whatever the run.

    Not of MLflow, whose store is one for all runs.
    """
    if name == "tensorboard" and not kwargs.get("log_dir"):
        return {"log_dir": str(folder / TENSORBOARD)}
    if name == "wandb" and not os.environ.get("WANDB_DIR"):
        return {"init_kwargs": {"dir": str(folder), **(kwargs.get("init_kwargs") or {})}}
    return {}


def say_the_recipe_once(trainer: Trainer) -> None:
    """Keep Composer from printing the hyper-parameters: the resolved recipe is on the screen already."""
    for destination in trainer.logger.destinations:
        if isinstance(destination, (ConsoleLogger, ProgressBarLogger)):
            destination.hparams_already_logged_to_console = True
