"""A run that would go on from checkpoints: what keeps it from that, and what changes for it there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath, RecipeError, walk
from recipes.config.load import Recipe, load
from recipes.reports.runs import run_folder
from recipes.reports.summary import COSMETIC
from recipes.run_files import RECIPE
from recipes.training.batches import plan_batches
from recipes.training.checkpoints import in_save_folder, of_the_other_kind, resumes, step_of, to_go_on_from
from recipes.training.learning_rate import learning_rate

# Keys of `model:` that say how to compute, not what: a checkpoint fits whatever they are.
NOT_THE_MODEL = {"use_train_metrics", "additional_train_metrics", "loss_fn", "init_device", "master_weights_dtype"}
NOT_THE_MODEL |= {"z_loss", "label_smoothing", "resid_pdrop", "emb_pdrop", "attn_config.attn_pdrop"}
NOT_THE_MODEL |= {"attn_config.attn_impl"}

# Keys whose values a checkpoint restores, with what they are where nothing is said: LLM Foundry's and Streaming's own.
OF_THE_ORDER = {"seed": 17, "train_loader.dataset.shuffle_seed": 9176}


def resume_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """A run that would go on from the checkpoints of another model, or with another optimizer in name alone."""
    folder, found = run_folder(recipe), to_go_on_from(recipe)
    has_own = found is not None and found.newest is not None
    goes_on_elsewhere = resumes(recipe.values) and is_remote(recipe["save_folder"])
    if recipe.get("only_hf_checkpoint") and not (
        has_own or goes_on_elsewhere or recipe.get("load_path") or recipe.get("pretrained")
    ):
        text = "writes the model as it is at the start, and this start finds no checkpoint: name one with load_path"
        yield ("only_hf_checkpoint",), text
    if other := of_the_other_kind(recipe):
        kinds = ("a full", "a sharded") if other.is_dir() else ("a sharded", "a full")
        text = f"{other} is {kinds[1]} checkpoint, and on these devices this recipe looks for {kinds[0]} one"
        mend = "start it as before (state_dict_type, devices), or choose another run_name"
        yield ("save_folder",), f"{text}: {mend}, where pretrained={other} starts from its weights"
    is_here = bool(recipe.get("save_folder")) and not is_remote(recipe["save_folder"])
    if found is None and is_here and not recipe.get("save_overwrite") and not recipe.get("only_hf_checkpoint"):
        left = [path for sharded in (False, True) if (path := in_save_folder(recipe, sharded).newest)]
        if left:
            mend = "choose another run_name, set save_overwrite: true, or let it go on (autoresume: true)"
            yield ("save_folder",), f"{left[0]} is there, and this run does not go on from it: {mend}"
    if found is None or found.newest is None or not (folder / RECIPE).is_file():
        return
    kept, before = found.newest.parent, _before(folder)
    if before is None:
        return
    what = _changes(_architecture(before.get("model", {})), _architecture(recipe["model"]))
    if what:
        text = f"the checkpoints in {kept} are of another model ({what})"
        yield ("model",), f"{text}: choose another run_name or save_folder, or delete {folder}"
    step, steps = step_of(recipe, found.newest), plan_batches(recipe).steps
    what = _changes(_deciding(before), _deciding(recipe))
    if step and steps and step >= steps and what and not recipe.get("only_hf_checkpoint"):
        text = (
            f"the run in {folder} is at step {step:,}, and this recipe has {steps:,}: it would train nothing ({what})"
        )
        yield ("max_duration",), f"{text}; give it more, or choose another run_name"
    was, now = (_flat({"optimizer": r.get("optimizer", {})}) for r in (before, recipe))
    for name in _changed(was, now):
        what = f"{was.get(name)} → {now.get(name)}"
        text = f"the checkpoints in {kept} bring the numbers of their optimizer, so that {what} would change nothing"
        mend = "put it back, or choose another run_name, with load_path and load_weights_only: true for these weights"
        yield _key(name), f"{text}: {mend}"
    for name, usual in OF_THE_ORDER.items():
        what = _changes({name: before.get(name, usual)}, {name: recipe.get(name, usual)})
        if what:
            text = f"the checkpoints in {kept} bring their random numbers and the order of the data, so that {what}"
            yield _key(name), f"{text} would change nothing: put it back, or choose another run_name"


def resume_notes(recipe: Recipe) -> Iterator[str]:
    """What a run that goes on does otherwise than it began, where it may: its length and its batch, in words."""
    found, before = to_go_on_from(recipe), _before(run_folder(recipe))
    if found is None or found.newest is None or before is None:
        return
    step = step_of(recipe, found.newest)
    at = "" if step is None else f" at step {step:,}"
    batch, length = "global_train_batch_size", "max_duration"
    other_batch = _changes(_part(before, batch), _part(recipe, batch))
    if other_batch:
        yield f"{other_batch}{at} of this run: the learning rate does not follow the sequences of a step"
    other_length = _changes(_part(before, length), _part(recipe, length))
    if not other_length:
        return
    was, now = (None if step is None or other_batch else learning_rate(r, step) for r in (before, recipe))
    if was is None or now is None:
        yield f"{other_length}{at} of this run: a scheduler that counts in parts of the run stretches with it"
    elif was != now:
        stretched = f"the {recipe['scheduler']['name']} is stretched with it"
        yield f"{other_length}{at} of this run: {stretched}, and the learning rate goes from {was:.3g} to {now:.3g}"


def _before(folder: Path) -> Recipe | None:
    """The recipe that a run last started with."""
    try:
        return load(folder / RECIPE) if (folder / RECIPE).is_file() else None
    except RecipeError:
        return None


def _part(recipe: Recipe, key: str) -> dict[str, Any]:
    return {key: recipe.get(key)}


def _key(name: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in _changed(before, now))


# Beside COSMETIC, keys that do not say what is trained: a run at its end may be called with others.
OF_THE_END = ("only_hf_checkpoint", "only_composer_checkpoint", "callbacks.budget_guard", "callbacks.hf_checkpointer")


def _deciding(recipe: Recipe) -> dict[str, Any]:
    flat = {key: value for key, value in _flat(recipe.values).items() if key.split(".")[0] not in COSMETIC}
    return {key: value for key, value in flat.items() if not key.startswith(OF_THE_END)}


def _architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in _flat(model).items() if k not in NOT_THE_MODEL}


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(map(str, key)): value for key, value in walk(section) if not isinstance(value, (dict, list))}
