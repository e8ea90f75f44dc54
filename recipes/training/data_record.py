"""What the data and own code of a run are, kept in its folder: whether it was read whole, whether it has changed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.durable import write_whole
from data_prep.manifest import MANIFEST, Manifest, digest_problems, load_manifest
from data_prep.sources import sha256_of_file
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.preflight.data import local_data_files
from recipes.reports.summary import read_json
from recipes.run_files import DATA, SHARDS_READ
from recipes.training.batches import shard_folders

READ_BYTES = 2e9  # of shards in all, which take a second or two; more are known by their sizes alone


def refuse_damage(folder: Path, recipe: Recipe) -> None:
    """Read the training shards here and compare them with the digests in their manifests.

    folder: the run's, which remembers what was read: the next start reads only what has changed.
    Raises RecipeError where they are not what was prepared.
    """
    dataset = recipe.get("train_loader.dataset", {})
    splits = {str(split): manifest for split in shard_folders(dataset) if (manifest := load_manifest(split))}
    if sum(record.bytes for manifest in splits.values() for record in manifest.shards) > READ_BYTES:
        return
    before = read_json(folder / SHARDS_READ)
    now = {split: _state(Path(split), manifest) for split, manifest in splits.items()}
    new = [split for split in splits if now[split] != before.get(split)]
    found = [text for split in new for text in digest_problems(split, splits[split])]
    if new and not found:
        write_whole(folder / SHARDS_READ, json.dumps(now) + "\n")
    key = ("train_loader", "dataset")
    if found:
        raise RecipeError([recipe.problem(key, f"{text}: prepare the shards again") for text in found])


def _state(split: Path, manifest: Manifest) -> list[list[str | int]]:
    files = [(record.name, (split / record.name).stat()) for record in (*manifest.shards, *manifest.files)]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]


def record_data(folder: Path, recipe: Recipe) -> str:
    """Write down the data and code here that the recipe trains with; in words, what is other than the run began with.

    folder: the run's. Shards that are fetched from elsewhere while the run goes on are not looked at.
    """
    now = _digests(recipe)
    before = read_json(folder / DATA)
    write_whole(folder / DATA, json.dumps(now, indent=2) + "\n")
    return ", ".join(_differ(before, now)) if before else ""


def is_as_recorded(folder: Path, recipe: Recipe) -> bool:
    """Whether data and code are those that the run in a folder last started with, as far as that was written down."""
    before = read_json(folder / DATA)
    return not before or not _differ(before, _digests(recipe))


def _differ(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _digests(recipe: Recipe) -> dict[str, str]:
    """SHA-256 by path: of what names the shards, of local files of rows, of code of the user's own."""
    files = [file for path in recipe.get("code_paths") or [] for file in _python_files(Path(path))]
    now = {}
    for _, loader in loaders(recipe.values, ["train_loader"]):
        dataset = loader.get("dataset") or {}
        function = dataset.get("preprocessing_fn")
        if isinstance(function, str) and ":" in function:
            files += _of_module(function.partition(":")[0])
        if dataset.get("path"):
            files.append(Path(str(dataset["path"])))
        if dataset.get("hf_name"):
            files += local_data_files(dataset)
        for shards in shard_folders(dataset):
            marks = [mark for mark in (shards / MANIFEST, shards / "index.json") if mark.is_file()]
            if marks:
                now[str(shards)] = sha256_of_file(marks[0])
    return now | {str(file): sha256_of_file(file) for file in files if file.is_file()}


def _of_module(name: str) -> list[Path]:
    """The file of a module; none where there is no such module, or it has none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    return [_from_here(Path(spec.origin))] if spec and spec.origin else []


def _from_here(path: Path) -> Path:
    """As seen from where the command is started, so that the same run elsewhere has the same names."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]
