"""The data that a recipe reads: shards, their manifests, data sets."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.manifest import Manifest, digest_problems, load_manifest, shard_problems
from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath
from recipes.config.load import Recipe
from recipes.preflight.hub import in_hub_cache, not_from_hub, tokenizer_folder
from recipes.preflight.packages import importable, scheme_problems
from recipes.preflight.weights import embeddings_of, id_of_end, read_mapping, vocabulary_problems
from recipes.ranks import is_first_of_machine
from recipes.training.batches import shard_folders
from recipes.training.pairs import read_conversations


def data_problems(key: KeyPath, loader: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    dataset = loader.get("dataset") or {}
    where = (*key, "dataset")
    if recipe.get("model.attn_config.attn_uses_sequence_id") and loader.get("name") == "text":
        yield from _separator_problems(where, dataset, recipe)
    if loader.get("name") == "preferences":
        yield from _pair_problems((*where, "path"), Path(str(dataset.get("path"))))
    if dataset.get("hf_name"):
        yield from _hub_dataset_problems(where, dataset)
        return
    yield from _cache_problems((*where, "cache_limit"), dataset)
    streams = dataset.get("streams")
    for name, stream in (streams or {"": dataset}).items():
        inner = (*where, "streams", name) if streams else where
        remote, local = stream.get("remote"), stream.get("local")
        split = stream.get("split") or dataset.get("split")
        if remote and is_remote(remote):
            yield from scheme_problems((*inner, "remote"), str(remote))
            continue
        root = remote or local
        if root:
            folder = Path(str(root)) / str(split) if split else Path(str(root))
            yield from _shards((*inner, "remote" if remote else "local"), folder, loader, recipe)


def _separator_problems(where: KeyPath, dataset: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """A token by which documents are told apart, and which does not stand between those of the shards.

    Shards without a manifest do not say what does: there it is to be the tokenizer's own end of a text.
    """
    key, place = ("bos_token_id", "before") if dataset.get("eos_token_id") is None else ("eos_token_id", "after")
    token, unlisted = dataset.get(key), False
    if token is None:  # said of the recipe
        return
    for folder in shard_folders(dataset):
        manifest = None
        with contextlib.suppress(ValueError):  # said of the shards
            manifest = load_manifest(folder)
        unlisted = unlisted or manifest is None
        if manifest is not None and manifest.separators[place] != [token]:
            there = manifest.separators[place]
            mend = f"set it to {there[0]}" if len(there) == 1 else "prepare them with one token there (--eos-text)"
            text = f"got {token}, and the shards in {folder} have {there or 'nothing'} {place} a document"
            yield (*where, key), f"{text}: documents would not be told apart; {mend}"
    end = id_of_end(recipe.get("tokenizer", {})) if key == "eos_token_id" and unlisted else None
    if end is not None and token != end:
        text = f"got {token}, and the tokenizer {recipe.get('tokenizer.name')} ends a text with {end}"
        yield (*where, key), f"{text}: documents would not be told apart"


def _pair_problems(key: KeyPath, path: Path) -> Iterator[tuple[KeyPath, str]]:
    """The first row that is no pair; a process a machine reads them."""
    if not path.is_file():
        yield key, f"no data: there is no file {path} of prompt, chosen and rejected"
    elif is_first_of_machine():
        try:
            deque(read_conversations(path), maxlen=0)
        except ValueError as error:
            yield key, str(error)


def _cache_problems(key: KeyPath, dataset: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """A `cache_limit` that Streaming refuses, as far as the indexes are here."""
    written = re.fullmatch(r"([\d.]+)([kmgtpezy]?)b?", str(dataset.get("cache_limit")).strip().lower())
    if not written:
        return
    limit, largest = float(written[1]) * 1024 ** " kmgtpezy".index(written[2] or " "), 0
    for folder in shard_folders(dataset):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # said of the shards
            for shard in json.loads((folder / "index.json").read_text())["shards"]:
                parts = (shard.get("raw_data"), shard.get("zip_data"))
                largest = max(largest, sum(part["bytes"] for part in parts if part))
    if limit < 4 * largest:
        text = f"got {dataset['cache_limit']}, and the largest shard takes {largest:,} bytes"
        yield key, f"{text}: expected four times that at least, {4 * largest:,}"


def _unlisted_shards(folder: Path) -> Iterator[str]:
    """What is wrong with an index and its shards, without a manifest."""
    try:
        shards = json.loads((folder / "index.json").read_text())["shards"]
        for shard in shards:
            part = shard["zip_data"] or shard["raw_data"]
            path = folder / part["basename"]
            if not path.is_file() or path.stat().st_size != part["bytes"]:
                yield f"missing or truncated shard {path}: expected {part['bytes']:,} bytes"
        if not shards:
            yield f"no data: {folder} has an index of no shards"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder / 'index.json'} cannot be read ({error}): prepare the shards again"


def _shards(key: KeyPath, folder: Path, loader: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if not os.path.isfile(folder / "index.json"):  # unlike Path's, false also for a name that is too long
        state = "has no index.json" if os.path.isdir(folder) else "does not exist"
        if (folder.parent / "index.json").is_file():
            yield key, f"no data: {folder} {state}; {folder.parent} is one split: give {folder.parent.parent}"
            return
        kind, share = ("finetune", "0.02") if loader.get("name") == "finetuning" else ("pretrain", "0.01")  # yamls/data
        length, tokenizer = recipe["max_seq_len"], recipe.get("tokenizer.name", "TOKENIZER")
        split = "--holdout-split" if key[0] == "eval_loader" else "--split"
        command = f"python -m data_prep.{kind} YOUR.jsonl --out {folder.parent} --holdout {share} {split} {folder.name}"
        yield key, f"no data: {folder} {state}; make it with `{command} --tokenizer {tokenizer} --seq-len {length}`"
        return
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        yield key, str(error)
        return
    if manifest is None:  # shards that another program made
        for text in _unlisted_shards(folder):
            yield key, text
        return
    # Validation data is small, and a flipped bit in it changes every score; a process a machine reads it.
    is_read = key[0] == "eval_loader" and is_first_of_machine()
    found = digest_problems(folder, manifest) if is_read else shard_problems(folder, manifest)
    for text in found or _unlisted_shards(folder):
        yield key, text
    is_for_turns, are_turns = loader.get("name") == "finetuning", manifest.loss_tokens is not None
    if is_for_turns != are_turns:
        kinds = ("text (data_prep.pretrain)", "prompts and answers (data_prep.finetune)")
        yield key, f"the shards in {folder} hold {kinds[are_turns]}, and a {loader.get('name')} loader reads the other"
    length = (loader.get("dataset") or {}).get("max_seq_len") or recipe["max_seq_len"]
    if manifest.seq_len < length and not are_turns:  # of turns it is the most that one may have
        yield key, f"the shards in {folder} hold {manifest.seq_len} tokens a sequence, the recipe wants {length}"
    for model in recipe.get("models") or [recipe.values]:  # of an evaluation there are several
        for text in _strangers(folder, manifest, model):
            yield key, text


def _strangers(folder: Path, manifest: Manifest, model: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a model, with its tokenizer, from reading the ids of shards."""
    name = str((model.get("tokenizer") or {}).get("name"))
    used = tokenizer_folder(name) / "tokenizer.json"
    if read_mapping(used) is not None and not manifest.was_made_with(used):
        text = f"the shards in {folder} were made with another tokenizer ({manifest.tokenizer.path}) than {name}"
        yield f"{text}: the ids would mean other words; prepare the shards again, or name their tokenizer"
    size, ids = embeddings_of(model), manifest.tokenizer.vocab_size
    if size is not None and ids > size and not any(vocabulary_problems(model)):
        text = f"the shards in {folder} hold ids up to {ids - 1}, the model has {size} embeddings"
        yield f"{text}: set model.vocab_size to at least {ids}"


def local_data_files(dataset: Mapping[str, Any]) -> list[Path]:
    """The files on this machine that a data set of Hugging Face's loaders is read from."""
    options = dataset.get("hf_kwargs") or {}
    names = [*_data_files(options), *_names_in(options.get("data_dir")), str(dataset.get("hf_name", ""))]
    files: set[Path] = set()
    for name in names:
        for path in (Path(found) for found in glob.glob(name, recursive=True)):
            files |= {inner for inner in (path.rglob("*") if path.is_dir() else [path]) if inner.is_file()}
    return sorted(files)


def _data_files(options: Mapping[str, Any]) -> list[str]:
    """The files and patterns of `hf_kwargs`; Hugging Face looks for them below `data_dir`."""
    folder = Path(str(options.get("data_dir") or ""))
    return [name if is_remote(name) else str(folder / name) for name in _names_in(options.get("data_files"))]


def _names_in(value: Any) -> list[str]:
    """The texts of a text, a list or a section, however deep."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [name for one in inner for name in _names_in(one)]


def _hub_dataset_problems(where: KeyPath, dataset: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    name = str(dataset["hf_name"])
    function = dataset.get("preprocessing_fn")
    if isinstance(function, str) and ":" in function:
        module = function.partition(":")[0]
        if not importable(module):
            text = f"no module {module}: write it, or put its folder on PYTHONPATH"
            yield (*where, "preprocessing_fn"), f"got {function!r}, but there is {text}"
    if name in ("json", "csv", "parquet", "text"):
        options = dataset.get("hf_kwargs") or {}
        folder = options.get("data_dir")
        if folder and not is_remote(folder) and not Path(str(folder)).is_dir():
            yield (*where, "hf_kwargs", "data_dir"), f"no data: there is no folder {folder}"
        for file in _data_files(options):
            if not is_remote(file) and not os.path.exists(file) and not glob.glob(file, recursive=True):
                yield (*where, "hf_kwargs", "data_files"), f"no data: there is no file {file}"
    elif is_remote(name):
        yield from scheme_problems((*where, "hf_name"), name)
    elif not Path(name).exists() and not in_hub_cache("datasets", name):
        yield from not_from_hub((*where, "hf_name"), f"data set {name}", "datasets", name)
