"""How many sequences a device computes at once, where the recipe leaves it to the machine."""

from __future__ import annotations

import logging

import torch

from recipes.config.load import Recipe
from recipes.cost.hardware import gpu_from_device_name
from recipes.training.batches import Batches, microbatch_with_room

log = logging.getLogger("recipes")


def microbatch_of_training(recipe: Recipe, batches: Batches, is_split: bool) -> float | str:
    """The size of a micro-batch; `auto` where Composer searches for it, which it does not with FSDP2."""
    if batches.microbatch is not None:
        return batches.microbatch
    if not torch.cuda.is_available():
        return batches.sequences_per_device
    if not is_split:
        return "auto"
    size = _with_room(recipe, batches)
    log.info("micro-batch: auto → %s of %s, for which memory is counted to suffice", size, batches.sequences_per_device)
    return size


def batch_of_evaluation(recipe: Recipe, batches: Batches, microbatch: float | str) -> float:
    """Sequences that a device evaluates at once: `device_eval_batch_size`, else the micro-batch of training.

    Where Composer will still search for that one, the largest that memory is counted to suffice for.
    """
    if recipe.get("device_eval_batch_size") is not None:
        return recipe["device_eval_batch_size"]
    return _with_room(recipe, batches) if isinstance(microbatch, str) else microbatch


def _with_room(recipe: Recipe, batches: Batches) -> int:
    """A micro-batch for which memory is counted to suffice on this process's GPU."""
    gpu, memory_gib = gpu_from_device_name(torch.cuda.get_device_name()), torch.cuda.mem_get_info()[1] / 2**30
    return microbatch_with_room(recipe, batches.devices, gpu, memory_gib)
