"""What was judged, as a SHA-256: a model by its weights, configuration and tokenizer. Pure Python, no torch."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_prep.manifest import MANIFEST
from data_prep.sources import sha256_of_file
from recipes.config.file_names import is_remote
from recipes.config.load import Recipe
from recipes.config.sections import contamination_shards, loaders
from recipes.preflight.data import local_data_files
from recipes.preflight.hub import cache_folder
from recipes.training.batches import shard_folders
from recipes.training.checkpoints import first_rank_path

ADAPTER = "pretrained_lora_id_or_path"  # of LLM Foundry's hf_causal_lm: a folder, or a name of the hub's


def digest_of(
    entry: Mapping[str, Any], precision: str | None, run_name: str = "", code_paths: Sequence[str] = ()
) -> str:
    """The digest of a spelled-out entry of `models`, at a precision.

    run_name: what {run_name} in a path stands for. code_paths: files of code that the model may be made of.
    """
    name, adapter = (entry["model"].get(key) for key in ("pretrained_model_name_or_path", ADAPTER))
    path = first_rank_path(str(entry["load_path"]), run_name) if entry.get("load_path") else name
    local = None if path is None or is_remote(path) else Path(str(path))
    tokenizer = Path(str(entry["tokenizer"]["name"]))
    model = {k: v for k, v in entry["model"].items() if k != "pretrained_model_name_or_path"}
    configuration = {"model": model, "tokenizer": entry["tokenizer"], "precision": precision, "path": None}
    if local is None or not local.exists():
        configuration["path"] = path  # weights elsewhere are known by their name alone
    if name and not Path(str(name)).exists():
        configuration["hub"] = [name, _hub_commit("models", str(name))]
    if name and entry.get("load_path") and (Path(str(name)) / "config.json").is_file():
        # what the checkpoint's weights are put into; of a tuned adapter, beside which Composer saves nothing, all of it
        has_adapter = adapter or model.get("peft_config")
        configuration["folder"] = _contents(Path(str(name)) if has_adapter else Path(str(name)) / "config.json")
    if adapter:
        is_here = Path(str(adapter)).exists()
        configuration["adapter"] = _contents(Path(str(adapter))) if is_here else _hub_commit("models", str(adapter))
    if code_paths:
        configuration["code"] = [file_digest(Path(code)) for code in code_paths if Path(code).is_file()]
    return model_digest(local, configuration, tokenizer if tokenizer.is_dir() else None)


def data_versions(name: str) -> list[str]:
    """The versions of a data set of the Hugging Face hub that its caches have; none where it is not in them.

    They are the hub's own, which the folder of what `datasets` has made of one is named by.
    """
    from huggingface_hub.constants import HF_HOME

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")

    def plain(text: str) -> str:  # a/CamelCase lies in a___camel_case
        return text.replace("/", "").replace("_", "").lower()

    folders = cache.iterdir() if cache.is_dir() else []
    made = [version for folder in folders if plain(folder.name) == plain(name) for version in folder.glob("*/*/*")]
    found = {version.name for version in made if version.is_dir() and "." not in version.name}  # .incomplete
    return sorted(found | {commit for commit in [_hub_commit("datasets", name)] if commit})


def _hub_commit(kind: str, name: str) -> str | None:
    """The commit of one of the Hugging Face hub's `models` or `datasets` that its cache has; None where it has none."""
    try:
        return (cache_folder(kind, name) / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def model_digest(weights: Path | None, configuration: Mapping[str, Any], tokenizer: Path | None) -> str:
    """weights: a checkpoint file, a sharded checkpoint's folder or a Hugging Face folder; None for none.

    configuration: whatever else decides what the model answers: its section of the recipe, the precision.
    tokenizer: its folder, where it is a local one.
    """
    whole = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode())
    for name, digest in (*_contents(weights), *_contents(tokenizer)):
        whole.update(name.encode())
        whole.update(digest.encode())
    return whole.hexdigest()


def _contents(path: Path | None) -> list[tuple[str, str]]:
    """The name and the digest of a file, or of each that decides what a folder is."""
    files = _files(path)
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter: a sharded checkpoint in its parts at once
        return [(file.name, digest) for file, digest in zip(files, pool.map(file_digest, files), strict=True)]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; of a zip's, which torch's checkpoints are, by the checksums in its directory.

    The directory has the CRC-32 and the size of each tensor, so that 80 GB are told apart in a moment.
    """
    if path.suffix == ".pt" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = sorted((i.filename.partition("/")[2], i.file_size, i.CRC) for i in archive.infolist())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return sha256_of_file(path)


def _files(path: Path | None) -> list[Path]:
    if path is None or not path.exists():
        return []
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith((".git", "README")))


def files_of(recipe: Recipe) -> list[Path]:
    """The files of tasks and of data that decide the results."""
    files = [Path(path) for path in recipe.get("code_paths") or []]
    for task in recipe.get("icl_tasks") or []:
        files += _files_of_task(task)
    folders = [Path(folder) for folder in contamination_shards(recipe.values)]
    for _, loader in loaders(recipe.values, ["eval_loader"]):
        folders += shard_folders(loader.get("dataset") or {})
        files += local_data_files(loader.get("dataset") or {})
    return files + [file for folder in folders for file in _files_of_shards(folder)]


def _files_of_task(task: Mapping[str, Any]) -> list[Path]:
    uri = str(task["dataset_uri"])
    if not uri.startswith("hf://"):
        return [] if is_remote(uri) else [Path(uri)]
    return local_data_files({"hf_name": uri.removeprefix("hf://"), "hf_kwargs": task.get("hf_loading_vars") or {}})


def is_elsewhere(recipe: Recipe) -> bool:
    """Whether the file of a task is not on this machine, so that only reading it tells whether it is still the same."""
    tasks = recipe.get("icl_tasks") or []
    return any(is_remote(task["dataset_uri"]) and not _files_of_task(task) for task in tasks)


def _files_of_shards(folder: Path) -> list[Path]:
    """What tells shards from others: their manifest, which has their checksums, else themselves."""
    if (folder / MANIFEST).is_file():
        return [folder / "index.json", folder / MANIFEST]
    return sorted(file for file in folder.rglob("*") if file.is_file()) if (folder / "index.json").is_file() else []
