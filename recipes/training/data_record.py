"""What a run's training data was when it began, kept in the run folder: a run that goes on in other data says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.manifest import MANIFEST
from data_prep.sources import sha256_of_file
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.reports.runs import write_whole
from recipes.training.batches import shard_folders

RECORD = "data.json"  # folder of shards: SHA-256 of its manifest, or of its index


def record_data(folder: Path, recipe: Recipe) -> str:
    """Write down the shards here that the recipe trains on; in words, what is other than the run began with, if any.

    folder: the run's. Shards that are fetched from elsewhere while the run goes on are not looked at.
    """
    now = {
        str(shards): sha256_of_file(mark)
        for _, loader in loaders(recipe.values, ["train_loader"])
        for shards in shard_folders(loader.get("dataset") or {})
        for mark in [next((m for m in (shards / MANIFEST, shards / "index.json") if m.is_file()), None)]
        if mark is not None
    }
    before = _read(folder / RECORD)
    write_whole(folder / RECORD, json.dumps(now, indent=2) + "\n")
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(changed) if before else ""


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
