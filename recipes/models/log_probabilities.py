"""Log-probability of each target without logits, for losses that weigh whole answers, such as preferences.

Scores over the vocabulary exist for a chunk of tokens at a time. What a token's gradient weighs is not known before
all log-probabilities are, so a chunk's scores are computed a second time in the backward pass: one more product with
the output embedding, in place of (N, V) numbers kept.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from recipes.models.loss import IGNORE, Terms, tokens_of_a_chunk


@torch.compiler.disable  # a loop that a graph gains nothing from
def log_probabilities(
    hidden: Tensor, weight: Tensor, targets: Tensor, terms: Terms, chunk: int | None = None
) -> Tensor:
    """Log-probabilities of targets (...) from hidden (..., D) and weight (V, D), of the shape of targets, in fp32.

    0 where a target is ``IGNORE``. Of ``terms``, scale and softcap count. ``chunk`` is in tokens.
    """
    flat = hidden.flatten(0, -2)  # (N, D)
    chunk = chunk or tokens_of_a_chunk(flat, weight)
    parts = zip(flat.split(chunk), targets.flatten().split(chunk), strict=True)
    found = [
        checkpoint(_of_a_chunk, part, weight, wanted, terms, use_reentrant=False, preserve_rng_state=False)
        for part, wanted in parts
    ]
    return torch.cat(found).unflatten(0, targets.shape)


def _of_a_chunk(hidden: Tensor, weight: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """(C, D), (V, D), (C,) → (C,)"""
    scores = F.linear(hidden, weight)  # (C, V)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if terms.scale != 1.0:
        scores = scores * terms.scale
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    return -F.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")
