"""A model of an evaluation recipe, built and filled with its weights when something has to be computed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.backbone import Backbone
from eval.models import is_folder, longest
from recipes import parts
from recipes.config.load import Recipe
from recipes.ranks import is_first_of_machine
from recipes.talking.loading import model_of_folder
from recipes.weights.checkpoint_tensors import verify_file
from recipes.weights.trained import Trained


class LoadedModel:
    """backbone: what is scored. log: sends numbers to every logger of the recipe. close: when all is done."""

    def __init__(self, recipe: Recipe, settings: Mapping[str, Any], entry: Mapping[str, Any], tokenizer: Any) -> None:
        from composer import Trainer
        from composer.core.precision import Precision, get_precision_context
        from composer.utils import dist

        from recipes.training.processes import parallelism

        fsdp = settings["fsdp_config"] if dist.get_world_size() > 1 and not is_folder(entry) else None
        path = entry.get("load_path")
        by_hand = path is not None and fsdp is None and Path(str(path)).is_dir()
        with parts.reporting(recipe, "models"):
            if path is not None and Path(str(path)).is_file() and is_first_of_machine():
                verify_file(Path(str(path)))
            model = _build(entry, tokenizer, fsdp)
            if by_hand:
                _fill_from_shards(model, Path(str(path)), recipe)
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


def _fill_from_shards(model: Any, folder: Path, recipe: Recipe) -> None:
    """A sharded checkpoint into a model that is whole on this process."""
    with Trained(folder, recipe, None).tensors() as files:
        state = {f"model.{name}": files.rows(name) for name in files.shapes()}
    absent, unknown = model.load_state_dict(state, strict=False)
    if absent or unknown:
        raise ValueError(f"{folder} is of another model: {[*absent, *unknown][0]} does not fit")
