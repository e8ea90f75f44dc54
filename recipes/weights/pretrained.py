"""Starting from weights that are there, `pretrained: PATH`: a Hugging Face folder (MPT, LLaMA, RWKV), run, checkpoint.

Its architecture has to be the recipe's. A key that differs on purpose is listed in `pretrained_changes`, so that
nothing is resized or reinterpreted by accident; `vocab_size` there makes the embeddings longer (new rows are the mean
of the old ones, Hewitt 2021) or shorter. Weights are read row by row, each process its own rows of a sharded model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.keys import RecipeError
from recipes.models.sharded import local_rows
from recipes.run_files import RECIPE
from recipes.weights.checkpoint_tensors import plain_name
from recipes.weights.hf_architecture import OFF, architecture, architecture_of_folder, computed_more
from recipes.weights.hf_names import Link, is_listed, links, own_shapes
from recipes.weights.merged import BASE, merged
from recipes.weights.tensor_files import TensorFiles, safetensors_folder
from recipes.weights.trained import find_trained, folder_config_of, is_hf_folder, run_around, with_length

VOCABULARY = ("transformer.wte.weight", "lm_head.weight", "rwkv.embeddings.weight", "head.weight")
ANOTHER_MODEL = (
    *("family", "d_model", "n_heads", "n_layers", "head_dim", "expansion_ratio"),
    *("ffn_config.ffn_hidden_size", "ffn_config.ffn_type"),
)
OTHER_TENSORS = {*ANOTHER_MODEL, "attn_config.fused_qkv", "max_seq_len"}  # where they differ, names say no more
LEFT_OUT: Mapping[str, str] = {  # by a key of pretrained_changes, the tensors that may be without a place for it
    "n_layers": r"\.(blocks|layers)\.\d+\.",
    "no_bias": r"\.bias$",
    "norm_type": r"norm\w*\.bias$",
    "attention_bias": r"attn\.\w+\.bias$",
    "attn_config.qk_ln": r"\.[qk]_ln\.",
    "attn_config.qk_gn": r"\.[qk]_ln\.",
    "tie_word_embeddings": r"^lm_head\.weight$",
    **dict.fromkeys(("learned_pos_emb", "attn_config.alibi", "attn_config.rope"), r"\.wpe\."),
}


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
        here, there = _architectures(model, path)
        different = _differences(here, there, path, changes)
        for key, text in different.items():
            yield f"model.{'name' if key == 'family' else key}", text
        if different.keys() & OTHER_TENSORS:
            return
        if is_hf_folder(path) and there.get("tie_word_embeddings"):
            changes.add("tie_word_embeddings")  # some write the shared matrix twice
        with weights(path) as files:
            for text in _misfits(files.shapes(), _wanted(model, path, files), there, changes):
                yield "pretrained", f"{path} {text}"
    except RecipeError as error:
        yield "pretrained", f"{path}: its recipe is damaged: {error.problems[0]}"
    except ValueError as error:
        yield "pretrained", str(error) if str(path) in str(error) else f"{path} holds {error}"


def _architectures(model: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides the numbers of the recipe's model and of that at a path. Raises ValueError for an unknown kind."""
    section: Mapping[str, Any] = folder_config_of(path) if is_hf_folder(path) else find_trained(path).model
    there = architecture_of_folder(section) if is_hf_folder(path) else architecture(section)
    off = dict.fromkeys(OFF)
    return {**architecture(model), **off, **computed_more(model)}, {**there, **off, **computed_more(section)}


def _differences(here: Mapping[str, Any], there: Mapping[str, Any], path: Path, changes: set[str]) -> dict[str, str]:
    """By key of the model, words for every difference that is not in `changes`.

    A key that only one of them has belongs to another that differs, as alibi_bias_max to alibi.
    """
    if here["family"] != there["family"]:  # their other keys say nothing of each other
        here, there = {"family": here["family"]}, {"family": there["family"]}
    found = {}
    for key in sorted(here.keys() & there.keys() - changes):
        if here[key] == there[key]:
            continue
        text = f"the recipe has {here[key]}, the weights in {path} have {there[key]}"
        if key == "vocab_size":
            found[key] = f"{text}: to resize the vocabulary on purpose, set pretrained_changes: [vocab_size]"
        elif key == "attn_config.fused_qkv":
            found[key] = f"{text}, in tensors of other names: set it as there, or start from an export of those weights"
        elif key in ANOTHER_MODEL or (key == "max_seq_len" and here["learned_pos_emb"]):
            found[key] = f"{text}: that is another model"
        else:
            found[key] = f"{text}; if that is on purpose, add it to pretrained_changes"
    return found


def weights(path: Path) -> TensorFiles:
    """The tensors at a path, in the names of their own file; a LoRA checkpoint with its adapters merged."""
    if is_hf_folder(path):
        return safetensors_folder(path)
    trained = find_trained(path)
    return merged(trained.tensors(), trained.model)


def _wanted(model: Mapping[str, Any], path: Path, files: TensorFiles) -> list[Link]:
    """Every tensor of ours, row by row, with the names that it has at the path: in a checkpoint, those of the model."""
    if is_hf_folder(path):
        return links(model)
    shapes = own_shapes(model) if is_listed(model) else files.shapes()
    return [Link(name, name, shape) for name, shape in shapes.items()]


def _pieces(wanted: Iterable[Link], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Link]]:
    """For every tensor of ours, the rows of theirs that there are for it; fewer where the vocabulary grows."""
    found: dict[str, list[Link]] = {}
    for link in wanted:
        pieces = found.setdefault(link.ours, [])
        shape = shapes.get(link.theirs)
        if shape is not None and shape[1:] == link.shape[1:]:
            rows = min(link.shape[0], shape[0] - link.theirs_at)
            pieces.append(Link(link.ours, link.theirs, (rows, *link.shape[1:]), link.ours_at, link.theirs_at))
    return found


def _misfits(
    shapes: Mapping[str, tuple[int, ...]], wanted: Iterable[Link], there: Mapping[str, Any], changes: set[str]
) -> Iterator[str]:
    """What their tensors lack, have in another size, or have more than the model, but for what goes on purpose.

    there: their architecture, whose vocabulary their embeddings have to be of, whatever the recipe makes of them.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for link in wanted:
        rows = max(expected.get(link.theirs, (0,))[0], link.theirs_at + link.shape[0])
        expected[link.theirs] = (there["vocab_size"] if link.ours in VOCABULARY else rows, *link.shape[1:])
    missing = [name for name in expected if name not in shapes]
    if missing:
        yield f"has no tensor {missing[0]}, and {len(missing) - 1} more are missing"
    other = [name for name, shape in expected.items() if shapes.get(name, shape) != shape]
    if other:
        text = f"has {other[0]} of the shape {shapes[other[0]]}, the model {expected[other[0]]}"
        yield f"{text}: the file is damaged, or its config.json or recipe is another's"
    on_purpose = [pattern for key, pattern in LEFT_OUT.items() if key in changes]
    on_purpose.append(r"rotary_emb\.inv_freq$")  # computed from theta
    more = [n for n in shapes if n not in expected and not any(re.search(pattern, n) for pattern in on_purpose)]
    if more:
        text = f"has {more[0]} and {len(more) - 1} more tensors that this model has no place for"
        yield f"{text}: without them it is another model"


def load_pretrained(module: Any, model: Mapping[str, Any], path: Path) -> int:
    """Copy the weights at `path` into a built model, sharded or not; the number of tensors filled.

    module: the Composer model, or the language model in it; `model`: its section of the recipe.
    """
    import torch

    filled = 0
    with weights(path) as files, torch.no_grad():
        found = _pieces(_wanted(with_length(model), path, files), files.shapes())
        for name, parameter in module.named_parameters():
            plain = plain_name(name).replace(f".{BASE}.", ".")
            if ".lora_" in plain:
                continue
            pieces = found.get(plain)
            if not pieces:
                raise ValueError(f"{path} has no tensor for {plain}")
            rows = sum(piece.shape[0] for piece in pieces)
            got, expected = (rows, *pieces[0].shape[1:]), tuple(parameter.shape)
            if got[1:] != expected[1:] or (plain not in VOCABULARY and rows != expected[0]):
                raise ValueError(f"{plain} is of the shape {got} in {path}, of {expected} in the model")
            _fill(parameter, pieces, files)
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
