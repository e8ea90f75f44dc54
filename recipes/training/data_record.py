"""What a run's training data was when it began, kept in the run folder: a run that goes on in other data says so."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.durable import write_whole
from data_prep.manifest import MANIFEST
from data_prep.sources import sha256_of_file
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.reports.summary import read_json
from recipes.training.batches import shard_folders

RECORD = "data.json"  # folder of shards: SHA-256 of its manifest, or of its index


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
    before = read_json(folder / RECORD)
    write_whole(folder / RECORD, json.dumps(now, indent=2) + "\n")
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(changed) if before else ""
