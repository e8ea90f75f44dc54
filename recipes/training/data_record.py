"""What the training data of a run is, kept in its folder: whether it was read whole, whether it is other data now."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.durable import write_whole
from data_prep.manifest import MANIFEST, Manifest, digest_problems, load_manifest
from data_prep.sources import sha256_of_file
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe
from recipes.config.sections import loaders
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
    """Write down the shards here that the recipe trains on; in words, what is other than the run began with, if any.

    folder: the run's. Shards that are fetched from elsewhere while the run goes on are not looked at.
    """
    now = {}
    for _, loader in loaders(recipe.values, ["train_loader"]):
        for shards in shard_folders(loader.get("dataset") or {}):
            marks = [mark for mark in (shards / MANIFEST, shards / "index.json") if mark.is_file()]
            if marks:
                now[str(shards)] = sha256_of_file(marks[0])
    before = read_json(folder / DATA)
    write_whole(folder / DATA, json.dumps(now, indent=2) + "\n")
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(changed) if before else ""
