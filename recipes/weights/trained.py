"""A trained model by the path that a user has: a run folder, a checkpoint file, a sharded checkpoint's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.check import check
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe, load
from recipes.cost.architecture import MODEL_DEFAULTS
from recipes.run_files import CHECKPOINTS, RECIPE
from recipes.training.checkpoints import FILENAME, newest_in
from recipes.weights.checkpoint_tensors import ShardedCheckpoint, checkpoint_file, verify_file
from recipes.weights.tensor_files import TensorFiles

LENGTHS = ("max_seq_len", "max_position_embeddings", "n_positions", "context_length")  # of a model or config.json
RWKV_LENGTH = 1024  # tokens, where an RWKV folder has no context_length: transformers' default
HF_MODEL = "hf_causal_lm"  # LLM Foundry's name for any causal model of transformers
NEEDED = ("model", "tokenizer", "max_seq_len")  # of a recipe, to know what its checkpoint is


@dataclass(frozen=True)
class Trained:
    """A checkpoint with the recipe that made it. `run` is the run folder, where there is one."""

    checkpoint: Path
    recipe: Recipe
    run: Path | None

    @property
    def model(self) -> Mapping[str, Any]:
        """The recipe's `model:` section."""
        return with_length(self.recipe["model"])

    def tensors(self) -> TensorFiles:
        """The model's tensors; adapters (LoRA) under names of their own. Raises ValueError for what is not whole."""
        if self.checkpoint.is_dir():
            return ShardedCheckpoint(self.checkpoint)
        return checkpoint_file(self.checkpoint)

    def verify(self) -> None:
        """Compare a full checkpoint's tensors with the checksums in it; a sharded one has none.

        Raises:
            ValueError: they are others; says of which tensor.
        """
        if self.checkpoint.is_file():
            verify_file(self.checkpoint)


def with_length(model: Mapping[str, Any]) -> dict[str, Any]:
    """A `model:` section with the tokens that the model reads at most, which it may leave to LLM Foundry's default."""
    return {**model, "max_seq_len": model.get("max_seq_len") or MODEL_DEFAULTS["max_seq_len"]}


def is_hf_folder(path: Path) -> bool:
    return (path / "config.json").is_file()


def folder_config_of(path: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder, as transformers 4 has it. Raises ValueError where it is no JSON object."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path / 'config.json'}: got {type(config).__name__}, expected a JSON object")
    try:
        return _with_plain_rope(config)
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'}: {error}") from None


def _with_plain_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json in which RoPE is `rope_theta` and `rope_scaling`: transformers 5 writes both as `rope_parameters`.

    transformers 4 passes over that key and computes with theta 10000, without a word.

    Raises:
        ValueError: parameters for each kind of layer, which transformers 4 cannot be told.
    """
    plain = {key: value for key, value in config.items() if key != "rope_parameters"}
    parameters = config.get("rope_parameters")
    if parameters is None:
        return plain
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        raise ValueError(f"rope_parameters: got {parameters!r}, expected one rope_theta and rope_type for all layers")
    scaling = dict(parameters)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in scaling:
            plain[name] = scaling.pop(name)
    if scaling.get("rope_type", "default") != "default":
        plain["rope_scaling"] = scaling
    return plain


def find_trained(path: Path, recipe: Path | None = None) -> Trained:
    """The checkpoint that a path means, and its recipe: beside it as the run left it, or the one given.

    Raises:
        ValueError: there is no checkpoint at the path, or no recipe of it.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected a run folder or a checkpoint, full or sharded")
    if path.is_dir() and not (path / ".metadata").is_file():
        if recipe is None and not (run_around(path.resolve()) or any(path.iterdir())):
            raise ValueError(f"{path} holds nothing of a run: no {RECIPE}, no checkpoint")
        if is_hf_folder(path):
            raise ValueError(f"{path} is a Hugging Face folder already: it has a config.json")
        if (path / "adapter_config.json").is_file():
            raise ValueError(f"{path} holds an adapter alone: give the run that it was exported from")
        return _newest_of_run(path, recipe)
    checkpoint = path.resolve()  # latest-rank0.pt is a link
    run = run_around(checkpoint)
    return Trained(checkpoint, _recipe_of(path, run, recipe), run)


def run_around(path: Path) -> Path | None:
    """The run folder that a path is or lies in; `save_filename` may name a folder of its own for each checkpoint."""
    return next((p for p in (path, *path.parents[:3]) if (p / RECIPE).is_file()), None)


def _newest_of_run(folder: Path, recipe: Path | None) -> Trained:
    run = folder.parent if folder.name == CHECKPOINTS and (folder.parent / RECIPE).is_file() else folder
    trained = _recipe_of(folder, run if (run / RECIPE).is_file() else None, recipe)
    inside = run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else folder
    newest = newest_in(inside, trained)
    if newest is None:
        filename = trained.get("save_filename", FILENAME)
        raise ValueError(f"{folder} holds no whole checkpoint (looked for {filename} in {inside})")
    return Trained(newest, trained, run)


def _recipe_of(path: Path, run: Path | None, given: Path | None) -> Recipe:
    file = given or (run / RECIPE if run else None)
    if file is None:
        raise ValueError(f"{path} has no {RECIPE} in its run folder: say which recipe trained it with --recipe FILE")
    recipe = load(file)
    problems = [problem for problem in check(recipe) if problem.key and problem.key[0] in NEEDED]
    if problems:
        raise RecipeError(problems)
    return recipe
