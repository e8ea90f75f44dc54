"""A model of an evaluation recipe, built and filled with its weights when something has to be computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.backbone import Backbone
from eval.models import is_folder, longest
from recipes import parts
from recipes.config.load import Recipe
from recipes.cost.architecture import OURS
from recipes.models.sharded import local_rows
from recipes.ranks import is_first_of_machine
from recipes.talking.loading import model_of_folder
from recipes.weights.checkpoint_tensors import plain_name, verify_file
from recipes.weights.trained import Trained

OF_FP8 = "_extra_state"  # Transformer Engine's factors, which no evaluation computes with


class LoadedModel:
    """backbone: what is scored. log: sends numbers to every logger of the recipe. close: when all is done."""

    def __init__(self, recipe: Recipe, settings: Mapping[str, Any], entry: Mapping[str, Any], tokenizer: Any) -> None:
        from composer import Trainer
        from composer.core.precision import Precision, get_precision_context
        from composer.utils import dist

        from recipes.training.processes import parallelism

        fsdp = settings["fsdp_config"] if dist.get_world_size() > 1 and not is_folder(entry) else None
        path = entry.get("load_path")
        is_full = path is not None and Path(str(path)).is_file()
        # of a full checkpoint Composer would read all of it in every process, the optimizer's state too
        # and of adapters alone, which peft's models save and Composer's loading finds to be no whole model
        has_adapter = any(entry["model"].get(key) for key in ("peft_config", "pretrained_lora_id_or_path"))
        by_hand = is_full and (entry["model"]["name"] in OURS or has_adapter)
        by_hand = by_hand or (path is not None and fsdp is None and Path(str(path)).is_dir())
        with parts.reporting(recipe, "models"):
            if is_full and is_first_of_machine():
                verify_file(Path(str(path)))
            model = _build(entry, tokenizer, fsdp)
            self.trainer = Trainer(
                run_name=settings["run_name"] or recipe.path.stem,
                seed=settings["seed"],
                model=model,
                loggers=parts.build_loggers(recipe, dict(settings)),
                precision=settings["precision"],
                parallelism_config=parallelism(fsdp, None, model),
                load_path=None if by_hand else path,
                load_weights_only=True,
                progress_bar=False,
                dist_timeout=settings["dist_timeout"],
            )
            if by_hand:
                _fill(self.trainer.state.model, Path(str(path)), recipe)
        parts.say_the_recipe_once(self.trainer)
        self.model = self.trainer.state.model
        precision = partial(get_precision_context, Precision(settings["precision"]), fp8_autocast_enabled=False)
        limit = longest(entry, settings["max_seq_len"])
        self.backbone = Backbone(self.model, limit, precision)

    def log(self, numbers: Mapping[str, float]) -> None:
        self.trainer.logger.log_metrics(dict(numbers))

    def close(self) -> None:
        self.trainer.close()


def _build(entry: Mapping[str, Any], tokenizer: Any, fsdp: dict[str, Any] | None) -> Any:
    if not is_folder(entry):
        return parts.build_model(copy.deepcopy(dict(entry["model"])), tokenizer, fsdp, None)
    from composer.models import HuggingFaceModel

    folder = Path(entry["model"]["pretrained_model_name_or_path"])
    return HuggingFaceModel(model_of_folder(folder), tokenizer, shift_labels=True)


def _fill(model: Any, path: Path, recipe: Recipe) -> None:
    """A checkpoint, full or sharded, into a model, tensor by tensor; where it is sharded, of each the rows here."""
    places = {plain_name(n): tensor for n, tensor in model.state_dict().items() if not n.endswith(OF_FP8)}
    with Trained(path, recipe, None).tensors() as files, torch.no_grad():
        shapes = {n: shape for n, shape in files.shapes().items() if not n.endswith(OF_FP8)}
        wrong = [n for n in {**places, **shapes} if n not in places or shapes.get(n) != tuple(places[n].shape)]
        if wrong:
            raise ValueError(f"{path} is of another model: {wrong[0]} does not fit")
        for name, tensor in places.items():
            here, first = local_rows(tensor)
            here.copy_(files.rows(name, first, len(here)) if here.dim() else files.rows(name))
