"""Batch arithmetic: from sequences and a duration to micro-batches, steps and tokens. Pure Python."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.manifest import load_manifest
from recipes.config.file_names import is_remote
from recipes.config.load import Recipe
from recipes.cost.architecture import OURS
from recipes.cost.hardware import Gpu
from recipes.cost.memory import largest_microbatch
from recipes.cost.setup import drops_last, read_setup, sequences_per_item, steps_of_run, tokens_per_step
from recipes.ranks import world_size


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
        divides = self.microbatch is None or self.sequences_per_device % self.microbatch == 0
        return (
            f"{self.sequences_per_step} {self.items} = {self.devices} device{'s' * (self.devices > 1)} × "
            f"{times} micro-batches {'×' if divides else 'of at most'} {micro}"
        )


def plan_batches(recipe: Recipe, devices: int | None = None) -> Batches:
    """The batch arithmetic of a checked recipe on this many devices (default: those the launcher started)."""
    devices = devices or world_size()
    per_step = int(recipe["global_train_batch_size"])
    per_device = per_step // devices
    micro = recipe.get("device_train_microbatch_size", "auto")
    microbatch = None if micro == "auto" else min(micro, per_device)
    tokens = tokens_per_step(recipe.values)
    try:
        steps = steps_of_run(recipe.values, dataset_tokens(recipe))
    except ValueError:  # no duration
        steps = None
    return Batches(
        devices=devices,
        sequences_per_step=per_step,
        sequences_per_device=per_device,
        microbatch=microbatch,
        gradient_accumulation=None if microbatch is None else math.ceil(per_device / microbatch),
        tokens_per_step=tokens,
        steps=steps,
        tokens=None if steps is None else steps * tokens,
        items="pairs" if sequences_per_item(recipe.values) == 2 else "sequences",
    )


def microbatch_with_room(recipe: Recipe, devices: int, gpu: Gpu | None, memory_gib: float) -> int:
    """Sequences of a micro-batch that a device of `memory_gib` has room for, by the count that plans are made of.

    1 where one may be too many already, and of a model or a GPU that cannot be counted.
    """
    if gpu is None or recipe.get("model.name") not in OURS:
        return 1
    try:
        setup = read_setup(recipe.values, devices)
    except ValueError:  # layers that are not counted
        return 1
    return max(1, largest_microbatch(setup, dataclasses.replace(gpu, visible_memory_gib=memory_gib)))


def dataset_tokens(recipe: Recipe) -> int | None:
    """Tokens of an epoch of the training data here, padding included; None where that cannot be said."""
    items = sequences_per_epoch(recipe)
    return None if items is None else items * int(recipe["max_seq_len"]) * sequences_per_item(recipe.values)


def sequences_per_epoch(recipe: Recipe) -> int | None:
    """Sequences of max_seq_len (DPO: pairs) that an epoch of the training data gives; None where it cannot be said.

    Packed examples of instructions share a sequence: `packing_ratio` to one.
    """
    dataset = recipe.get("train_loader.dataset", {})
    ratio = dataset.get("packing_ratio") or 1
    size = dataset.get("epoch_size")
    there = _pairs(dataset) if recipe.get("dpo") else samples_per_epoch(dataset)
    samples = there if size is None else _number(str(size))
    if samples is None or not isinstance(ratio, (int, float)):
        return None
    sequences = max(1, round(samples / ratio))
    most = recipe.get("train_subset_num_batches", -1)
    return min(sequences, most * int(recipe["global_train_batch_size"])) if most > 0 else sequences


def too_little_data(recipe: Recipe, batches: Batches) -> str | None:
    """What is wrong where the training data gives not one batch; None where it does, or that cannot be said."""
    there = sequences_per_epoch(recipe)
    if there is None or not drops_last(recipe.values) or batches.sequences_per_device == 0:
        return None
    # Streaming deals them out evenly, with some twice; the sampler of pairs leaves out what does not go round
    each = there // batches.devices if recipe.get("dpo") else math.ceil(there / batches.devices)
    if each >= batches.sequences_per_device:
        return None
    return (
        f"{there:,} {batches.items} are fewer than a batch of {batches.sequences_per_step:,}, and drop_last leaves out "
        "what is no whole batch: prepare more data, or set a smaller global_train_batch_size or drop_last: false"
    )


def too_little_to_evaluate(recipe: Recipe, batches: Batches, loader: Mapping[str, Any]) -> str | None:
    """What is wrong where an evaluation's data gives not one batch; None where it does, or that cannot be said."""
    dataset = loader.get("dataset") or {}
    size, ratio = recipe.get("device_eval_batch_size") or batches.microbatch, dataset.get("packing_ratio") or 1
    there = _pairs(dataset) if recipe.get("dpo") else samples_per_epoch(dataset)
    if there is None or size is None or not loader.get("drop_last") or not isinstance(ratio, (int, float)):
        return None
    if math.ceil(there / batches.devices) >= int(size * ratio):
        return None
    return (
        f"{there:,} {batches.items if ratio == 1 else 'examples'} are fewer than a batch of "
        f"{int(size * ratio) * batches.devices:,}, and drop_last leaves out what is no whole batch: prepare more data, "
        "or set a smaller device_eval_batch_size or drop_last: false"
    )


def _pairs(dataset: Mapping[str, Any]) -> int | None:
    """Rows of the preferences that a `dataset:` section names."""
    try:
        with Path(str(dataset["path"])).open("rb") as lines:
            return sum(1 for line in lines if line.strip()) or None
    except (OSError, KeyError):
        return None


def _number(text: str) -> int | None:
    """A number as Streaming reads it, such as 5000 or 2.5m."""
    match = re.fullmatch(r"(\d*\.?\d+)([kmbt]?)", text.strip().lower())
    return int(float(match[1]) * 1000 ** " kmbt".index(match[2] or " ")) if match else None


def samples_per_epoch(dataset: Mapping[str, Any]) -> int | None:
    """Samples in the local shards that a `dataset:` section names; None where they are not all on this machine."""
    total = 0
    for stream, folder in _streams(dataset):
        try:
            index = json.loads((folder / "index.json").read_text())
            samples = sum(int(shard["samples"]) for shard in index["shards"])
            total += int(stream.get("choose") or samples * (stream.get("repeat") or 1))
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return total or None


def longest_sample(dataset: Mapping[str, Any]) -> int | None:
    """Tokens of a sample in the text shards that a `dataset:` section names, the most; None where that is not known."""
    found = []
    for folder in shard_folders(dataset):
        try:
            manifest = load_manifest(folder)
        except ValueError:  # preflight says of a damaged one
            continue
        if manifest is not None and manifest.loss_tokens is None:
            found.append(manifest.seq_len)
    return max(found, default=None)


def shard_folders(dataset: Mapping[str, Any]) -> list[Path]:
    """Folders on this machine where a `dataset:` section keeps (or will cache) its shards."""
    return [folder for _, folder in _streams(dataset)]


def _streams(dataset: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Path]]:
    """The streams that have a folder on this machine, with it."""
    found = []
    for stream in (dataset.get("streams") or {"": dataset}).values():
        remote = stream.get("remote")
        root = remote if remote and not is_remote(remote) else stream.get("local")
        split = stream.get("split") or dataset.get("split")
        if root:
            found.append((stream, Path(str(root)) / str(split) if split else Path(str(root))))
    return found
