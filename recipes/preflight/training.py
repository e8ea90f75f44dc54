"""Everything that a sound training recipe would stop at on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath, Problem, RecipeError, walk
from recipes.config.load import Recipe, load
from recipes.config.sections import loaders
from recipes.preflight.data import data_problems
from recipes.preflight.evaluation import task_file_problems
from recipes.preflight.machine import device_problems, disk_problems, memory_problems
from recipes.preflight.packages import package_problems
from recipes.preflight.weights import pretrained_problems, tokenizer_problems, vocabulary_problems, weight_problems
from recipes.reports.runs import run_folder
from recipes.reports.summary import COSMETIC
from recipes.run_files import RECIPE
from recipes.training.batches import plan_batches, too_little_data
from recipes.training.checkpoints import in_save_folder, of_the_other_kind, step_of, to_go_on_from


def preflight(recipe: Recipe) -> list[Problem]:
    """Everything that a run of this recipe would stop at on this machine. Each says how to get what is missing."""
    found: list[tuple[KeyPath, str]] = []
    for key, loader in loaders(recipe.values):
        found += data_problems(key, loader, recipe)
    if too_little := too_little_data(recipe, plan_batches(recipe)):
        found.append((("train_loader",), too_little))
    found += tokenizer_problems(recipe.get("tokenizer", {}), bool(recipe.get("code_paths")))
    found += vocabulary_problems(recipe.values)
    found += weight_problems(recipe.values)
    found += pretrained_problems(recipe)
    found += device_problems(recipe)
    found += memory_problems(recipe)
    found += disk_problems(recipe)
    found += resume_problems(recipe)
    found += task_file_problems(recipe)
    found += package_problems(recipe)
    return [recipe.problem(key, text) for key, text in found]


# Keys of `model:` that say how to compute, not what: a checkpoint fits whatever they are.
NOT_THE_MODEL = {"use_train_metrics", "additional_train_metrics", "loss_fn", "init_device", "master_weights_dtype"}
NOT_THE_MODEL |= {"z_loss", "label_smoothing", "resid_pdrop", "emb_pdrop", "attn_config.attn_pdrop"}
NOT_THE_MODEL |= {"attn_config.attn_impl"}


# Keys whose values a checkpoint restores, with what they are where nothing is said: LLM Foundry's and Streaming's own.
OF_THE_ORDER = {"seed": 17, "train_loader.dataset.shuffle_seed": 9176}


def resume_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """A run that would go on from the checkpoints of another model, or with another optimizer in name alone."""
    folder, found = run_folder(recipe), to_go_on_from(recipe)
    if other := of_the_other_kind(recipe):
        kinds = ("a full", "a sharded") if other.is_dir() else ("a sharded", "a full")
        text = f"{other} is {kinds[1]} checkpoint, and on these devices this recipe looks for {kinds[0]} one"
        yield ("save_folder",), f"{text}: start it as before (state_dict_type, devices), or choose another run_name"
    is_here = bool(recipe.get("save_folder")) and not is_remote(recipe["save_folder"])
    if found is None and is_here and not recipe.get("save_overwrite"):
        left = [path for sharded in (False, True) if (path := in_save_folder(recipe, sharded).newest)]
        if left:
            mend = "choose another run_name, set save_overwrite: true, or let it go on (autoresume: true)"
            yield ("save_folder",), f"{left[0]} is there, and this run does not go on from it: {mend}"
    if found is None or found.newest is None or not (folder / RECIPE).is_file():
        return
    kept = found.newest.parent
    try:
        before = load(folder / RECIPE)
    except RecipeError:
        return
    what = _changes(_architecture(before.get("model", {})), _architecture(recipe["model"]))
    if what:
        text = f"the checkpoints in {kept} are of another model ({what})"
        yield ("model",), f"{text}: choose another run_name or save_folder, or delete {folder}"
    step, steps = step_of(recipe, found.newest), plan_batches(recipe).steps
    what = _changes(_deciding(before), _deciding(recipe))
    if step and steps and step >= steps and what:
        text = (
            f"the run in {folder} is at step {step:,}, and this recipe has {steps:,}: it would train nothing ({what})"
        )
        yield ("max_duration",), f"{text}; give it more, or choose another run_name"
    what = _changes(_flat(before.get("optimizer", {})), _flat(recipe.get("optimizer", {})))
    if what:
        text = f"the checkpoints in {kept} bring the numbers of their optimizer, so that {what} would change nothing"
        mend = "put it back, or choose another run_name, with load_path and load_weights_only: true for these weights"
        yield ("optimizer",), f"{text}: {mend}"
    for name, usual in OF_THE_ORDER.items():
        what = _changes({name: before.get(name, usual)}, {name: recipe.get(name, usual)})
        if what:
            text = f"the checkpoints in {kept} bring their random numbers and the order of the data, so that {what}"
            yield tuple(name.split(".")), f"{text} would change nothing: put it back, or choose another run_name"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in changed)


# Beside COSMETIC, keys that do not say what is trained: a run at its end may be called with others.
OF_THE_END = ("only_hf_checkpoint", "only_composer_checkpoint", "callbacks.budget_guard", "callbacks.hf_checkpointer")


def _deciding(recipe: Recipe) -> dict[str, Any]:
    flat = {key: value for key, value in _flat(recipe.values).items() if key.split(".")[0] not in COSMETIC}
    return {key: value for key, value in flat.items() if not key.startswith(OF_THE_END)}


def _architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in _flat(model).items() if k not in NOT_THE_MODEL}


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(map(str, key)): value for key, value in walk(section) if not isinstance(value, (dict, list))}
