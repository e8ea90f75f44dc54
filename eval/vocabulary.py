"""Hidden states → log-probabilities of the tokens that are asked for, without ever holding all logits.

A block of rows meets a block of words: their logits stay in a processor's cache while their largest and the sum of
their exponentials are taken; only these two numbers a block, and the logits asked for, are kept. The blocks' sums are
joined in float64, so that a log-probability is as exact as its float32 logits.

N vectors, D width, V vocabulary, A tokens asked for, B blocks of words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eval.backbone import Backbone

# (logits of a block, rows of it at most): a CPU's cache holds small ones, other devices want large ones.
BLOCK = {"cpu": (2**20, 1024)}
LARGE = (2**28, 2**12)


@dataclass(frozen=True)
class Answers:
    """For each token asked for (A,): its log-probability, whether it is the likeliest, the log-probability of that."""

    logprobs: list[float]
    greedy: list[bool]
    most: list[float]


def answers_at(backbone: Backbone, vectors: Tensor, which: Tensor, tokens: Tensor) -> Answers:
    """Token `tokens[a]` in the place that `vectors[which[a]]` predicts. vectors (N, D), which and tokens (A,)."""
    logits, rows = BLOCK.get(vectors.device.type, LARGE)
    count = backbone.most(len(vectors))  # a process with fewer goes on with empty blocks
    rows = max(1, min(rows, count))
    words = logits // rows if backbone.divisible else backbone.vocabulary
    parts = []
    for start in range(0, max(1, count), rows):
        asked = ((which >= start) & (which < start + rows)).nonzero()[:, 0]
        found = _rows(backbone, vectors[start : start + rows], which[asked] - start, tokens[asked], words)
        parts.append((asked, *found))
    asked, logprobs, greedy, most = (torch.cat(column) for column in zip(*parts, strict=True))
    order = asked.argsort()
    return Answers(logprobs[order].tolist(), greedy[order].tolist(), most[order].tolist())


def _rows(
    backbone: Backbone, vectors: Tensor, which: Tensor, tokens: Tensor, words: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for one block of rows, `words` words at a time: log-probabilities, greedy, the largest, each (A,)."""
    order = tokens.argsort()
    which, tokens = which[order], tokens[order]
    starts = range(0, backbone.vocabulary, words)
    ends = torch.searchsorted(tokens, torch.tensor([*starts, backbone.vocabulary], device=tokens.device)).tolist()
    tops, sums = [], []
    wanted = torch.empty(len(which), device=vectors.device)  # the logits asked for
    first = torch.zeros(len(which), dtype=torch.bool, device=vectors.device)  # none before it in its block is as large
    for block, start in enumerate(starts):
        part = slice(start, start + words) if backbone.divisible else None
        logits = backbone.logits(vectors, part)  # (N, ≤ words)
        top = logits.amax(dim=1)
        here = slice(ends[block], ends[block + 1])
        if here.start < here.stop:
            row, word = which[here], tokens[here] - start
            wanted[here] = logits[row, word]
            likely = (wanted[here] == top[row]).nonzero()[:, 0]  # seldom: only then is it worth looking for its place
            if len(likely):
                first[here][likely] = logits[row[likely]].argmax(dim=1) == word[likely]
        tops.append(top)
        sums.append(logits.sub_(top[:, None]).exp_().sum(dim=1))
    top, total = torch.stack(tops, dim=1), torch.stack(sums, dim=1).double()  # (N, B)
    most, likeliest = top.max(dim=1)  # of equal ones the first block
    total = (total * (top - most[:, None]).double().exp()).sum(dim=1).log()  # (N,), less `most`
    greedy = first & (likeliest[which] == tokens // words)
    back = order.argsort()
    return ((wanted - most[which]).double() - total[which])[back], greedy[back], -total[which][back]
