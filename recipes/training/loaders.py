"""The data of a run: loaders of training and of validation, and what is done to their batches before they are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from composer import DataSpec, Evaluator
from composer.core import ensure_data_spec
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.utils import builders

from recipes import parts
from recipes.callbacks.stopping import keep_workers
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.cost.architecture import OURS
from recipes.training.batches import Batches
from recipes.training.loaders_lock import holding_loaders_lock
from recipes.training.packing import Packing, pack_whole


@dataclass(frozen=True)
class Data:
    """training: batches of a device. evaluators: one for each `eval_loader`. packing: None where nothing is packed."""

    training: DataSpec
    evaluators: list[Evaluator]
    packing: Packing | None


def build_data(recipe: Recipe, settings: dict[str, Any], tokenizer: Any, batches: Batches) -> Data:
    """Raises RecipeError where a loader cannot be built, or gives no batch, for which Composer would ask for ever."""
    with holding_loaders_lock():
        with parts.reporting(recipe, "train_loader"):
            loader = parts.complete_loader(settings["train_loader"], settings)
            training = ensure_data_spec(build_dataloader(loader, tokenizer, batches.sequences_per_device))
            refuse_empty(training, f"{batches.sequences_per_step} {batches.items}")
        evaluators = build_evaluators(recipe, settings, tokenizer)
        for evaluator in evaluators:
            pack_whole(evaluator)
            with parts.reporting(recipe, "eval_loader"):
                size = int(settings["device_eval_batch_size"] * batches.devices)
                refuse_empty(evaluator.dataloader, f"{size} {batches.items} for {evaluator.label}")
        packing = Packing(training)
        if recipe.get("model.name") in OURS and not recipe.get("dpo"):
            as_built = training.batch_transforms
            training.batch_transforms = lambda batch: without_needless_mask(as_built(batch))
    for data in (training, *(evaluator.dataloader for evaluator in evaluators)):
        keep_workers(data)
    return Data(training, evaluators, packing if packing.is_needed else None)


def build_evaluators(recipe: Recipe, settings: dict[str, Any], tokenizer: Any) -> list[Evaluator]:
    """Loaders of validation data; tasks are not theirs (eval/in_loop.py)."""
    for _, loader in loaders(settings, ["eval_loader"]):
        parts.complete_loader(loader, settings)
    if not settings["eval_loader"]:
        return []
    with parts.reporting(recipe, "eval_loader"):
        return builders.build_eval_loaders(settings["eval_loader"], tokenizer, settings["device_eval_batch_size"])


def refuse_empty(spec: DataSpec, batch: str) -> None:
    """Raises ValueError where a loader gives no batch. batch: what one is, in words."""
    try:
        batches = len(spec.dataloader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # known only once it is read
        return
    if batches == 0:
        raise ValueError(f"its data gives no batch of {batch}")


def without_needless_mask(batch: Any) -> Any:
    """Leave out an attention mask that masks nothing, while it is on the CPU: to ask a GPU makes it catch up first."""
    if "attention_mask" in batch and bool(batch["attention_mask"].all()):
        del batch["attention_mask"]
    return batch
