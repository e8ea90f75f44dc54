"""Validation loss that does not depend on the number of processes: every sample once, in fixed batches.

A streaming loader gives every process equally many samples and repeats some for that; here the samples are taken by
their number, batches go round the processes, and the batches' sums are added up in their order.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from eval.backbone import Backbone
from eval.questions import ScoringError
from eval.scoring import from_all, rank_and_world
from eval.vocabulary import answers_at

IGNORED = -100  # a label that is no target


def validation_loss(backbone: Backbone, loader: Any, batch_size: int, subset_batches: int | None = None) -> float:
    """Mean cross entropy in nats a token over a loader's data set.

    loader: a torch DataLoader whose data set can be asked for a sample by its number, of input_ids and labels.
    subset_batches: how many batches of all processes together, from the first; None or -1 for all.
    Raises ScoringError where the loss is not finite.
    """
    dataset, collate = loader.dataset, loader.collate_fn
    samples = int(getattr(dataset, "num_samples", 0)) or len(dataset)
    batches = [range(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)]
    if subset_batches is not None and subset_batches > 0:
        batches = batches[:subset_batches]
    rank, world = rank_and_world()
    mine: dict[int, tuple[float, int]] = {}
    for turn in range(0, len(batches), world):
        here = turn + rank < len(batches)
        if not here and not backbone.sharded:
            break
        index = turn + rank if here else 0  # sharded: all compute at the same time, this one for nothing
        batch = collate([dataset[sample] for sample in batches[index]])
        found = backbone.run(functools.partial(_sum, backbone, batch))
        if here:
            mine[index] = found
    sums = {index: found for part in from_all(mine) for index, found in part.items()}
    total = math.fsum(sums[index][0] for index in sorted(sums))
    tokens = sum(count for _, count in sums.values())
    if not tokens:
        raise ScoringError("the validation data has no tokens to predict")
    if not math.isfinite(total):
        worst = next(index for index in sorted(sums) if not math.isfinite(sums[index][0]))
        first = batches[worst][0]
        raise ScoringError(
            f"validation samples from {first} on: the model's loss is not finite; look at the checkpoint"
        )
    return total / tokens


def _sum(backbone: Backbone, batch: Any) -> tuple[float, int]:
    """Cross entropy summed over a batch, and how many tokens were predicted."""
    ids = batch["input_ids"].to(backbone.device)  # (B, S)
    labels = batch["labels"].to(backbone.device)
    mask = batch.get("attention_mask")
    mask = None if mask is None or bool(mask.all()) else mask.bool().to(backbone.device)
    hidden, _ = backbone.hidden(ids, mask, sequence_id=batch.get("sequence_id"))  # (B, S, D)
    targets = labels[:, 1:].flatten()
    scored = targets != IGNORED
    vectors, targets = hidden[:, :-1].flatten(0, 1)[scored], targets[scored]
    found = answers_at(backbone, vectors, torch.arange(len(vectors), device=backbone.device), targets)
    return -math.fsum(found.logprobs), len(targets)
