"""Starting from weights that are there, `pretrained: PATH`: a Hugging Face folder (MPT, LLaMA, RWKV), run, checkpoint.

Its architecture has to be the recipe's. A key that differs on purpose is listed in `pretrained_changes`, so that
nothing is resized or reinterpreted by accident; `vocab_size` there makes the embeddings longer (new rows are the mean
of the old ones, Hewitt 2021) or shorter. Weights are read row by row, each process its own rows of a sharded model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.keys import RecipeError
from recipes.models.sharded import local_rows
from recipes.weights.checkpoint_tensors import plain_name
from recipes.weights.hf_architecture import architecture, architecture_of_folder, computed_more
from recipes.weights.hf_names import Link, links
from recipes.weights.merged import BASE, merged
from recipes.weights.tensor_files import TensorFiles, safetensors_folder
from recipes.weights.trained import RECIPE, find_trained, folder_config_of, is_hf_folder, run_around, with_length

VOCABULARY = ("transformer.wte.weight", "lm_head.weight", "rwkv.embeddings.weight", "head.weight")


def problems(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, words) for everything that keeps a recipe from starting at its `pretrained`. Without torch for a folder."""
    path = Path(str(recipe["pretrained"]))
    changes = set(recipe.get("pretrained_changes") or ())
    if recipe.get("load_path"):
        yield "pretrained", "pretrained and load_path are both set: weights come from one place"
        return
    if not path.exists():
        text = f"{path} does not exist; expected a Hugging Face folder (config.json and safetensors) or a run folder"
        yield "pretrained", text
        return
    if not is_hf_folder(path) and run_around(path.resolve()) is None:
        yield "pretrained", f"{path} is neither a Hugging Face folder (no config.json) nor of a run (no {RECIPE})"
        return
    model = with_length(recipe["model"])
    try:
        for key, text in differences(model, path, changes):
            yield f"model.{key}", text
        with weights(path) as files:
            wanted = _pieces(model, files, path)
            unread = list(_without_place(files, wanted, changes)) if is_hf_folder(path) else []
            other = list(_of_another_size(files, model)) if is_hf_folder(path) else []
    except RecipeError as error:
        yield "pretrained", f"{path}: its recipe is damaged: {error.problems[0]}"
        return
    except ValueError as error:
        yield "pretrained", str(error) if str(path) in str(error) else f"{path} holds {error}"
        return
    missing = [name for name, pieces in wanted.items() if not pieces]
    if missing:
        yield "pretrained", f"{path} has no tensor for {missing[0]}, and {len(missing) - 1} more are missing"
    if other and "n_layers" not in changes:
        yield "pretrained", f"{path}: {other[0]}: its config.json is not of its weights, or the file is damaged"
    if unread:
        text = f"{path} has {unread[0]} and {len(unread) - 1} more tensors that this model has no place for"
        yield "pretrained", f"{text}: without them it is another model"


def differences(model: Mapping[str, Any], path: Path, changes: set[str]) -> Iterator[tuple[str, str]]:
    """(key of the model, words) for every key in which the model is not the folder's, unless it is in `changes`.

    Raises ValueError for a folder of another kind of model.
    """
    section: Mapping[str, Any] = folder_config_of(path) if is_hf_folder(path) else find_trained(path).model
    here = {**architecture(model), **computed_more(model)}
    there = architecture_of_folder(section) if is_hf_folder(path) else architecture(section)
    there |= computed_more(section)
    if here["family"] != there["family"]:  # their other keys say nothing of each other
        here, there = {"family": here["family"]}, {"family": there["family"]}
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) == there.get(key) or key in changes:
            continue
        text = f"the recipe has {here.get(key)}, the weights in {path} have {there.get(key)}"
        if key == "vocab_size":
            yield key, f"{text}: to resize the vocabulary on purpose, set pretrained_changes: [vocab_size]"
        elif key in (
            "family",
            "d_model",
            "n_heads",
            "n_layers",
            "ffn_config.ffn_hidden_size",
            "expansion_ratio",
            "head_dim",
        ):
            yield "name" if key == "family" else key, f"{text}: that is another model"
        else:
            yield key, f"{text}; if that is on purpose, add it to pretrained_changes"


def weights(path: Path) -> TensorFiles:
    """The tensors at a path, in the names of their own file; a LoRA checkpoint with its adapters merged."""
    if is_hf_folder(path):
        return safetensors_folder(path)
    trained = find_trained(path)
    return merged(trained.tensors(), trained.model)


def _pieces(model: Mapping[str, Any], files: TensorFiles, path: Path) -> dict[str, list[Link]]:
    """For every tensor of ours, the rows of theirs that it is made of; `theirs` is in the names of the file."""
    there = files.shapes()
    if not is_hf_folder(path):  # a checkpoint of ours: the names are the model's
        return {name: [Link(name, name, shape)] for name, shape in there.items()}
    found: dict[str, list[Link]] = {}
    for link in links(model):
        pieces = found.setdefault(link.ours, [])
        shape = there.get(link.theirs)
        if shape is None or shape[1:] != link.shape[1:]:
            continue
        rows = min(link.shape[0], shape[0] - link.theirs_at)  # fewer where the vocabulary grows
        pieces.append(Link(link.ours, link.theirs, (rows, *link.shape[1:]), link.ours_at, link.theirs_at))
    return found


def _of_another_size(files: TensorFiles, model: Mapping[str, Any]) -> Iterator[str]:
    """Tensors with more or fewer rows than the model has; of the vocabulary there may be others, on purpose."""
    rows: dict[str, int] = {}
    for link in links(model):
        if link.ours not in VOCABULARY:
            rows[link.theirs] = max(rows.get(link.theirs, 0), link.theirs_at + link.shape[0])
    for name, shape in files.shapes().items():
        if name in rows and shape[0] != rows[name]:
            yield f"{name} has {shape[0]:,} rows, the model {rows[name]:,}"


def _without_place(files: TensorFiles, wanted: Mapping[str, list[Link]], changes: set[str]) -> Iterator[str]:
    """Tensors of a folder that no tensor of the model is made of, but for those that go on purpose."""
    read = {piece.theirs for pieces in wanted.values() for piece in pieces}
    for name in files.shapes():
        written_twice = name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")  # tied; computed from theta
        on_purpose = "n_layers" in changes or ("no_bias" in changes and name.endswith(".bias"))
        if name not in read and not written_twice and not on_purpose:
            yield name


def load_pretrained(module: Any, model: Mapping[str, Any], path: Path) -> int:
    """Copy the weights at `path` into a built model, sharded or not; the number of tensors filled.

    module: the Composer model, or the language model in it; `model`: its section of the recipe.
    """
    import torch

    filled = 0
    with weights(path) as files, torch.no_grad():
        wanted = _pieces(model, files, path)
        for name, parameter in module.named_parameters():
            plain = plain_name(name).replace(f".{BASE}.", ".")
            if ".lora_" in plain:
                continue
            if not wanted.get(plain):
                raise ValueError(f"{path} has no tensor for {plain}")
            rows = sum(piece.shape[0] for piece in wanted[plain])
            if plain not in VOCABULARY and rows != parameter.shape[0]:
                raise ValueError(f"{plain} has {rows} rows in {path} and {parameter.shape[0]} in the model")
            _fill(parameter, wanted[plain], files)
            filled += 1
    return filled


def _fill(parameter: Any, pieces: list[Link], files: TensorFiles) -> None:
    local, first = local_rows(parameter)
    last = first + local.shape[0]
    covered = 0
    for piece in pieces:
        covered = max(covered, piece.ours_at + piece.shape[0])
        start, stop = max(first, piece.ours_at), min(last, piece.ours_at + piece.shape[0])
        if start < stop:
            rows = files.rows(piece.theirs, piece.theirs_at + start - piece.ours_at, stop - start)
            local[start - first : stop - first].copy_(rows)
    if covered < last and pieces[0].ours in VOCABULARY:
        mean = files.rows(pieces[0].theirs).float().mean(dim=0)
        local[max(covered - first, 0) :] = mean.to(local.dtype)
