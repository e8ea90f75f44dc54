"""Which models an evaluation recipe means. Pure Python: the shorthands are spelled out before the recipe is checked.

    models:
      - run: runs/mpt-quickstart          # a run folder: its recipe's model and tokenizer, its latest checkpoint
      - folder: exports/mpt-7b            # a Hugging Face folder, such as `python -m recipes export` makes
      - model_name: other                 # LLM Foundry's form
        model: {name: mpt_causal_lm, …}
        tokenizer: {name: …}
        load_path: path/to/checkpoint.pt  # full, or the folder of a sharded one

A recipe may also have `model`, `tokenizer` and `load_path` at the top, as for training: that is one model.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.config.check import check
from recipes.config.file_names import is_remote
from recipes.config.keys import COMMAND_LINE, KeyPath, Place, Problem, RecipeError
from recipes.config.load import Recipe, load, merge
from recipes.config.sections import loaders, section
from recipes.run_files import CHECKPOINTS, RECIPE
from recipes.talking.loading import say_what_is_ignored
from recipes.training.checkpoints import newest_in
from recipes.weights.trained import HF_MODEL, LENGTHS, folder_config_of

# keys of `model:` with which a folder is another model
CHANGING = {"config_overrides", "peft_config", "pretrained_lora_id_or_path", "load_in_8bit"}


def spell_out_models(recipe: Recipe) -> Recipe:
    """The same recipe with every entry of `models` in LLM Foundry's form.

    Raises RecipeError where a run folder has no recipe or no whole checkpoint.
    """
    values: dict[str, Any] = dict(recipe.values)
    places: dict[KeyPath, Place] = dict(recipe.places)
    if "model" in values and "models" not in values:
        one: dict[str, Any] = {key: values.pop(key) for key in ("model", "tokenizer", "load_path") if key in values}
        name = one["model"].get("name", "model") if isinstance(one["model"], Mapping) else "model"
        one["model_name"] = values.pop("model_name", None) or name
        values["models"] = [one]
        for path, place in recipe.places.items():
            if path and path[0] in one:
                inside: KeyPath = ("models", 0, *path)
                places[inside] = place
    models = values.get("models")
    if isinstance(models, list):
        values["models"] = [
            _spelled_out(_one_source(model, places, index), recipe.place(("models", index)), ("models", index))
            if isinstance(model, Mapping)
            else model
            for index, model in enumerate(models)
        ]
        _refuse_equal_names(values["models"], recipe)
    return dataclasses.replace(recipe, values=values, places=places)


def runs_judged(recipe: Recipe) -> list[str | None]:
    """For each model of a recipe, as it is written, the run folder that it is of; None for what is no run's."""
    models = recipe.get("models")
    if not isinstance(models, list):  # one, at the top
        return [None]
    return [
        _one_source(model, recipe.places, index).get("run") if isinstance(model, Mapping) else None
        for index, model in enumerate(models)
    ]


def _refuse_equal_names(models: list[Any], recipe: Recipe) -> None:
    """Results and comparisons tell models apart by their names."""
    first: dict[str, int] = {}
    problems = []
    for index, model in enumerate(models):
        name = str(model.get("model_name")) if isinstance(model, Mapping) else f"models.{index}"
        if first.setdefault(name, index) != index:
            text = f"got {name}, which is the name of models.{first[name]}: give one of them another `model_name`"
            problems.append(Problem(recipe.place(("models", index)), ("models", index, "model_name"), text))
    if problems:
        raise RecipeError(problems)


def _one_source(entry: Mapping[str, Any], places: Mapping[KeyPath, Place], index: int) -> Mapping[str, Any]:
    """Of `run` and `folder` the one that the command line names, over the recipe's other one."""
    said = [name for name in ("run", "folder") if places.get(("models", index, name)) == COMMAND_LINE]
    if len(said) != 1:
        return entry
    return {key: value for key, value in entry.items() if key not in ("run", "folder") or key in said}


def _spelled_out(entry: Mapping[str, Any], place: Place, key: KeyPath) -> Mapping[str, Any]:
    if "run" in entry and "folder" in entry:
        raise RecipeError([Problem(place, key, "run and folder are both given: a model comes from one of them")])
    if "run" in entry:
        return _from_run(entry, place, key)
    return _from_folder(entry, place, key) if "folder" in entry else entry


def _from_folder(entry: Mapping[str, Any], place: Place, key: KeyPath) -> dict[str, Any]:
    folder = Path(str(entry["folder"]))
    if not os.path.isfile(folder / "config.json"):
        text = f"{folder} is no Hugging Face folder: it has no config.json; make one with `python -m recipes export`"
        raise RecipeError([Problem(place, (*key, "folder"), text)])
    try:
        config = folder_config_of(folder)
        for name in LENGTHS:
            if not isinstance(config.get(name) or 1, int) or (config.get(name) or 1) < 1:
                raise ValueError(f"{folder / 'config.json'}: {name}: got {config[name]!r}, expected a number of tokens")
    except ValueError as error:
        raise RecipeError([Problem(place, (*key, "folder"), str(error))]) from None
    its_own = {
        "model_name": folder.name,
        "model": {"name": HF_MODEL, "pretrained_model_name_or_path": str(folder)},
        "tokenizer": {"name": str(folder)},
    }
    return merge(its_own, {k: v for k, v in entry.items() if k != "folder"})


def is_folder(entry: Mapping[str, Any]) -> bool:
    """Whether a spelled-out entry is a Hugging Face folder on this machine, which transformers alone can load."""
    path = entry["model"].get("pretrained_model_name_or_path")
    is_local = entry["model"]["name"] == HF_MODEL and (Path(str(path)) / "config.json").is_file()
    its_own_weights = not entry.get("load_path") and entry["model"].get("pretrained", True)
    return is_local and its_own_weights and not any(entry["model"].get(key) for key in CHANGING)


def longest(entry: Mapping[str, Any], wanted: int) -> int:
    """Tokens that the model reads at most: what the recipe wants, or less where the model has less."""
    section: Any = entry["model"]
    folder = Path(str(section.get("pretrained_model_name_or_path")))
    if section["name"] == HF_MODEL and (folder / "config.json").is_file():
        section = {**folder_config_of(folder), **(section.get("config_overrides") or {})}
    has = next((section[name] for name in LENGTHS if section.get(name)), wanted)
    return min(wanted, int(has))


def long_loaders(recipe: Recipe) -> list[Problem]:
    """Validation data whose sequences are longer than what a model of the recipe reads."""
    found = []
    for entry in recipe["models"]:
        reads = longest(entry, sys.maxsize)
        for key, loader in loaders(recipe.values, ["eval_loader"]):
            length = section(loader, "dataset").get("max_seq_len") or recipe["max_seq_len"]
            if length > reads:
                where: KeyPath = (*key, "dataset", "max_seq_len")
                text = f"its sequences have {length} tokens, and {entry['model_name']} reads {reads}"
                found.append(Problem(recipe.place(where), where, f"{text}: set it to that or less"))
    return found


def _from_run(entry: Mapping[str, Any], place: Place, key: KeyPath) -> dict[str, Any]:
    folder = Path(str(entry["run"]))
    if not os.path.isfile(folder / RECIPE):
        mend = "train it first with `composer train.py RECIPE`"
        if os.path.isfile(folder / "config.json"):
            mend = f"it is a Hugging Face folder: write folder: {folder} in the place of run:"
        text = f"{folder} is not a run folder: it has no {RECIPE}; {mend}"
        raise RecipeError([Problem(place, (*key, "run"), text)])
    trained = load(folder / RECIPE)
    if check(trained):
        text = f"{folder}/{RECIPE} is not the recipe of a run: {check(trained)[0]}"
        raise RecipeError([Problem(place, (*key, "run"), text)])
    checkpoint = entry.get("load_path") or _latest(trained, folder)
    if checkpoint is None:
        raise RecipeError([Problem(place, (*key, "run"), f"{folder} has no whole checkpoint yet")])
    its_own = {"model_name": folder.name, "model": trained["model"], "tokenizer": trained["tokenizer"]}
    over = {k: v for k, v in entry.items() if k != "run"}
    return {**merge(its_own, over), "load_path": str(checkpoint)}


def _latest(trained: Recipe, folder: Path) -> Path | None:
    save_folder = trained.get("save_folder", CHECKPOINTS)
    if is_remote(save_folder):
        return None
    inside = folder / CHECKPOINTS if save_folder.rstrip("/").endswith(CHECKPOINTS) else folder
    newest = newest_in(inside, trained)
    if newest is not None:
        say_what_is_ignored(newest, trained)
    return newest
