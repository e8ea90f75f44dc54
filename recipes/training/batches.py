"""Batch arithmetic: from sequences and a duration to micro-batches, steps and tokens. Pure Python."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.config.contradictions import world_size
from recipes.config.load import Recipe
from recipes.cost.run_length import read_duration
from recipes.cost.setup import sequences_per_item


@dataclasses.dataclass(frozen=True)
class Batches:
    """How one optimizer step is divided, and how many there are. Batch sizes are in sequences, with DPO in pairs."""

    devices: int
    sequences_per_step: int
    sequences_per_device: int
    microbatch: float | None  # None: found by trying (auto)
    gradient_accumulation: int | None
    tokens_per_step: int
    steps: int | None  # None: depends on data that is not here, or on time
    tokens: int | None
    items: str = "sequences"

    def __str__(self) -> str:
        micro = "auto" if self.microbatch is None else f"{self.microbatch:g}"
        times = "auto" if self.gradient_accumulation is None else str(self.gradient_accumulation)
        return (
            f"{self.sequences_per_step} {self.items} = {self.devices} device{'s' * (self.devices > 1)} × "
            f"{times} micro-batches × {micro}"
        )


def plan_batches(recipe: Recipe, devices: int | None = None) -> Batches:
    """The batch arithmetic of a checked recipe on this many devices (default: those the launcher started)."""
    devices = devices or world_size()
    per_step = int(recipe["global_train_batch_size"])
    per_device = per_step // devices
    micro = recipe.get("device_train_microbatch_size", "auto")
    microbatch = None if micro == "auto" else min(micro, per_device)
    tokens_per_step = per_step * int(recipe["max_seq_len"]) * sequences_per_item(recipe.values)
    steps = _steps(recipe, per_step, tokens_per_step)
    return Batches(
        devices=devices,
        sequences_per_step=per_step,
        sequences_per_device=per_device,
        microbatch=microbatch,
        gradient_accumulation=None if microbatch is None else math.ceil(per_device / microbatch),
        tokens_per_step=tokens_per_step,
        steps=steps,
        tokens=None if steps is None else steps * tokens_per_step,
        items="pairs" if sequences_per_item(recipe.values) == 2 else "sequences",
    )


def _steps(recipe: Recipe, per_step: int, tokens_per_step: int) -> int | None:
    duration = read_duration(recipe["max_duration"])
    if duration is None:
        return None
    amount, unit = int(duration.amount), duration.unit
    if unit == "ba":
        return amount
    if unit == "tok":
        return math.ceil(amount / tokens_per_step)
    if unit == "sp":
        return math.ceil(amount / per_step)
    sequences = sequences_per_epoch(recipe)
    if unit != "ep" or sequences is None:
        return None
    per_epoch = sequences / per_step
    return amount * (math.floor(per_epoch) if recipe.get("train_loader.drop_last") else math.ceil(per_epoch))


def sequences_per_epoch(recipe: Recipe) -> int | None:
    """Sequences of max_seq_len that an epoch of the training data gives; None where it cannot be said.

    Packed examples of instructions share a sequence: `packing_ratio` to one.
    """
    dataset = recipe.get("train_loader.dataset", {})
    ratio = dataset.get("packing_ratio") or 1
    size = dataset.get("epoch_size")
    samples = samples_per_epoch(dataset) if size is None else _number(str(size))
    if samples is None or not isinstance(ratio, (int, float)):
        return None
    sequences = max(1, round(samples / ratio))
    most = recipe.get("train_subset_num_batches", -1)
    return min(sequences, most * int(recipe["global_train_batch_size"])) if most > 0 else sequences


def _number(text: str) -> int | None:
    """A number as Streaming reads it, such as 5000 or 2.5m."""
    match = re.fullmatch(r"(\d*\.?\d+)([kmbt]?)", text.strip().lower())
    return int(float(match[1]) * 1000 ** " kmbt".index(match[2] or " ")) if match else None


def samples_per_epoch(dataset: Mapping[str, Any]) -> int | None:
    """Samples in the local shards that a `dataset:` section names; None where they are not all on this machine."""
    total = 0
    for folder in shard_folders(dataset):
        try:
            index = json.loads((folder / "index.json").read_text())
            total += sum(int(shard["samples"]) for shard in index["shards"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return total or None


def shard_folders(dataset: Mapping[str, Any]) -> list[Path]:
    """Folders on this machine where a `dataset:` section keeps (or will cache) its shards."""
    streams = dataset.get("streams") or {"": dataset}
    folders = []
    for stream in streams.values():
        remote = stream.get("remote")
        root = remote if remote and "://" not in str(remote) else stream.get("local")
        split = stream.get("split") or dataset.get("split")
        if root:
            folders.append(Path(str(root)) / str(split) if split else Path(str(root)))
    return folders
