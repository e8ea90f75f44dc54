"""The tokenizer and the weights that a recipe names."""

from __future__ import annotations

import functools
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath
from recipes.config.load import Recipe
from recipes.cost.architecture import MODEL_DEFAULTS, OURS
from recipes.preflight.hub import in_hub_cache, not_from_hub, tokenizer_folder
from recipes.preflight.packages import missing_package, scheme_problems
from recipes.training.checkpoints import writes_sharded


def tokenizer_problems(tokenizer: Mapping[str, Any], own_code: bool = False) -> Iterator[tuple[KeyPath, str]]:
    """own_code: the recipe has code_paths, which may register tokenizers by a name."""
    name = str(tokenizer.get("name"))
    if name == "tiktoken":
        yield from missing_package(("tokenizer", "name"), "tiktoken")
        return
    folder = Path(name)
    if folder.is_file():
        yield ("tokenizer", "name"), f"{folder} is a file: give the folder that it is in, {folder.parent}"
    elif folder.is_dir():
        for file in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / file).is_file() and read_mapping(folder / file) is None:
                yield ("tokenizer", "name"), f"{folder / file} cannot be read: expected a mapping in JSON"
        if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
            yield ("tokenizer", "name"), f"{folder} holds no tokenizer: no tokenizer.json, no tokenizer_config.json"
    elif name.startswith((".", "/")) or name.count("/") > 1:
        command = f"python -m data_prep.tokenizer YOUR.jsonl --out {name} --vocab-size N"
        yield ("tokenizer", "name"), f"no tokenizer: {name} does not exist; train one with `{command}`"
    elif not own_code and not in_hub_cache("models", name):
        yield from not_from_hub(("tokenizer", "name"), f"tokenizer {name}", "models", name)


def weight_problems(settings: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    name = settings["model"].get("pretrained_model_name_or_path")
    if name and not Path(str(name)).exists() and not in_hub_cache("models", str(name)):
        yield from not_from_hub(("model", "pretrained_model_name_or_path"), f"model {name}", "models", str(name))
    path = settings.get("load_path")
    if path and is_remote(path):
        yield from scheme_problems(("load_path",), path)
    elif path and "{" not in path:  # a name with a placeholder is another one on each process
        yield from _checkpoint_problems(Path(path))


def _checkpoint_problems(path: Path) -> Iterator[tuple[KeyPath, str]]:
    if path.is_file() and not zipfile.is_zipfile(path):
        yield ("load_path",), f"{path} is no checkpoint, or not a whole one"
    elif path.is_dir() and not (path / ".metadata").is_file():
        yield ("load_path",), f"{path} is a folder, and no sharded checkpoint (no .metadata in it): name a file in it"
    elif not path.exists():
        yield ("load_path",), f"no checkpoint: {path} does not exist"


def sharded_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """A `load_path` that each process would read its part of, where the processes are not such."""
    path = Path(str(recipe.get("load_path")))
    if (path / ".metadata").is_file() and not writes_sharded(recipe):
        text = f"{path} is a sharded checkpoint, and this start loads a file: `pretrained={path}` reads its weights"
        how = "or start two processes or more, with fsdp_config.state_dict_type: sharded"
        yield ("load_path",), f"{text} (without load_path), {how}, to go on with its optimizer"


def pretrained_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if recipe.get("pretrained"):
        from recipes.weights.pretrained import problems

        for key, text in problems(recipe.values):
            yield tuple(key.split(".")), text


def vocabulary_problems(settings: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """A tokenizer here with more ids than one of our models has embeddings: Composer would silently make more."""
    tokenizer, size = (settings.get("tokenizer") or {}).get("name"), embeddings_of(settings)
    there = ids_of(tokenizer_folder(str(tokenizer)))
    if (settings.get("model") or {}).get("name") in OURS and size is not None and there > size:
        text = f"the tokenizer {tokenizer} has ids up to {there - 1}, the model has {size} embeddings"
        yield ("model", "vocab_size"), f"{text}: set model.vocab_size to at least {there}"


def embeddings_of(settings: Mapping[str, Any]) -> int | None:
    """How many a model has, by its `model:` section or the folder that this names; None where neither says."""
    section = settings.get("model") or {}
    if section.get("name") in OURS:
        size = section.get("vocab_size") or MODEL_DEFAULTS["vocab_size"]
    else:
        config = read_mapping(Path(str(section.get("pretrained_model_name_or_path"))) / "config.json") or {}
        size = section.get("vocab_size") or config.get("vocab_size")
    return size if isinstance(size, int) else None


def ids_of(folder: Path) -> int:
    """The largest id of a tokenizer's folder, and one more; 0 where its tokenizer.json is not there or does not say."""
    content = read_mapping(folder / "tokenizer.json") or {}
    try:
        vocabulary = content["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return max([*ids, *(token["id"] for token in content.get("added_tokens") or [])], default=-1) + 1
    except (KeyError, TypeError, AttributeError):
        return 0


def id_of_end(tokenizer: Mapping[str, Any]) -> int | None:
    """The id of the token that ends a text, by a `tokenizer:` section and its folder; None where neither says."""
    folder, said = tokenizer_folder(str(tokenizer.get("name"))), (tokenizer.get("kwargs") or {}).get("eos_token")
    token = said or (read_mapping(folder / "tokenizer_config.json") or {}).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    content = read_mapping(folder / "tokenizer.json") or {}
    try:
        added = {each["content"]: each["id"] for each in content.get("added_tokens") or []}
        found = added.get(token, content["model"]["vocab"].get(token))
    except (KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def read_mapping(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, where that is a mapping."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _mapping_in(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)
def _mapping_in(path: Path, mtime_ns: int, size: int) -> dict[str, Any] | None:
    """A tokenizer of 14 MB takes a third of a second, and several questions are about the same."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
