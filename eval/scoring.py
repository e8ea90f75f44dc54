"""The scoring core: requests in, log-probabilities out, whatever asked for them.

A batch takes two passes: the prefixes of its families, then their branches on the kept keys and values; logits are
computed only where a token is scored. Batches go round the processes, so that a batch is the same tensor on one
process or many, and the answers are the same to the last bit.

F families, R rows with a branch, P longest prefix, S longest branch, D width, V vocabulary, N scored positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eval import batching
from eval.backbone import Backbone
from eval.batching import Batch
from eval.cache import Answer, AnswerCache, missing
from eval.questions import Request, Scored, ScoringError, refuse_unusable

# What a device does at once: tokens of a batch that use it well, and logits, in floats, that it keeps at hand. A GPU
# wants large pieces; a CPU's cache holds small ones.
ENOUGH_TOKENS = {"cpu": 512}
LOGITS_AT_ONCE = {"cpu": 2**21}
MOST_TOKENS, MOST_LOGITS = 0, 2**28  # for other devices; 0: batches are always filled
Progress = Callable[[int], None]  # told how many requests a finished batch had
Model = Callable[[], Backbone]  # built when something has to be computed


def score(
    model: Model,
    requests: Sequence[Request],
    batch_size: int,
    max_len: int,
    cache: AnswerCache | None = None,
    progress: Progress | None = None,
) -> list[Scored]:
    """Answers in the order of `requests`; equal requests are evaluated once.

    batch_size: rows of the largest tensor. max_len: tokens that the model reads at most.
    Raises ScoringError where an example is unusable or the model answers NaN, which names the example.
    """
    refuse_unusable(requests, max_len)
    unique = list(dict.fromkeys(requests))
    batches = batching.plan(unique, batch_size, max_len, ENOUGH_TOKENS.get(device_type(), MOST_TOKENS))
    keys = [[unique[m].key for family in batch for m in family.members] for batch in batches]

    def compute(backbone: Backbone, index: int) -> dict[str, Answer]:
        found = score_batch(backbone, unique, batches[index])
        return {unique[m].key: answer for m, answer in found.items()}

    answers = answer_batches(model, keys, compute, cache, progress)
    return [_scored(answers[request.key]) for request in requests]


def answer_batches(
    model: Model,
    keys: Sequence[Sequence[str]],
    compute: Callable[[Backbone, int], dict[str, Answer]],
    cache: AnswerCache | None,
    progress: Progress | None,
) -> dict[str, Answer]:
    """Compute the batches that the cache does not hold, in turns over the processes, and give all of them to each."""
    rank, world = rank_and_world()
    known: dict[str, Answer] = cache.read() if cache is not None and rank == 0 else {}
    (known,) = _from_first([known])
    todo = missing(known, keys)
    if progress is not None:
        progress(sum(map(len, keys)) - sum(len(keys[i]) for i in todo))
    if not todo:
        return known
    backbone = model()
    mine: dict[str, Answer] = {}
    trouble = ""
    for turn in range(0, len(todo), world):
        here = turn + rank < len(todo)
        if not here and not backbone.sharded:
            break
        index = todo[turn + rank] if here else todo[0]  # sharded: all compute at the same time, this one for nothing
        try:
            answers = compute(backbone, index)
        except ScoringError as error:
            trouble = trouble or str(error)
            if not backbone.sharded:
                break
            continue
        if here:
            mine.update(answers)
            if cache is not None:
                cache.add(answers)
        if progress is not None:
            progress(sum(len(keys[i]) for i in todo[turn : turn + world]))
    everywhere = from_all((mine, trouble))
    if any(words for _, words in everywhere):
        raise ScoringError(next(words for _, words in everywhere if words))
    return {**known, **{key: answer for part, _ in everywhere for key, answer in part.items()}}


def score_batch(backbone: Backbone, requests: Sequence[Request], batch: Batch) -> dict[int, Scored]:
    """Answers by index of the request."""
    members = [m for family in batch for m in family.members]
    # one pass of the root: on a sharded model every process must take the same number of them
    logprobs, best, most = backbone.run(lambda: _at_targets(backbone, *_hidden_states(backbone, requests, batch)))
    answers, start = {}, 0
    for member in members:
        request = requests[member]
        end = start + len(request.continuation)
        values = logprobs[start:end]
        if not all(map(math.isfinite, values)):
            raise ScoringError(
                f"{request.name}: the model's logits are not finite (NaN or infinity), so there is no score; "
                "look at the checkpoint, or at the precision: fp32 has the widest range"
            )
        greedy = tuple(best[start:end]) == request.continuation
        answers[member] = Scored(tuple(values), greedy, math.exp(min(most[start:end])))
        start = end
    return answers


def _hidden_states(backbone: Backbone, requests: Sequence[Request], batch: Batch) -> tuple[Any, Tensor]:
    """The vectors from which the continuations' tokens are predicted.

    Gives ((which vector, which token) for each scored token, in the order of the batch), and the vectors (N, D).
    """
    P = max(family.shared for family in batch)
    prefixes = [requests[family.members[0]].inputs[: family.shared] for family in batch]
    branches: list[tuple[int, tuple[int, ...]]] = []  # (family, tokens)
    wanted: dict[int, int] = {}  # position among all hidden states, flat → index of the vector
    which: list[int] = []
    tokens: list[int] = []
    S = max((family.rest for family in batch), default=0)
    if backbone.sharded:
        S = max(S, 1)  # all processes take the same number of passes
    for f, family in enumerate(batch):
        for member in family.members:
            request = requests[member]
            rest = request.inputs[family.shared :]
            first, count = len(request.context) - 1, len(request.continuation)
            for position in range(first, first + count):
                if position < family.shared:
                    flat = f * P + P - family.shared + position
                else:
                    flat = len(batch) * P + len(branches) * S + position - family.shared
                which.append(wanted.setdefault(flat, len(wanted)))
            tokens += request.continuation
            if rest:
                branches.append((f, rest))
    if backbone.sharded and not branches:
        branches = [(0, (0,))]
    device = backbone.device
    ids = torch.tensor([[0] * (P - len(prefix)) + list(prefix) for prefix in prefixes], device=device)  # (F, P)
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    mask = torch.arange(P, device=device) >= P - lengths[:, None]  # (F, P)
    padded = bool((lengths != P).any())
    hidden, past = backbone.hidden(ids, mask if padded else None, keep=bool(branches))  # (F, P, D)
    found = hidden.flatten(0, 1)  # (F * P, D)
    if branches:
        rows = torch.tensor([f for f, _ in branches], device=device)  # (R,)
        rest_ids = torch.tensor([list(t) + [0] * (S - len(t)) for _, t in branches], device=device)  # (R, S)
        whole = torch.cat([mask[rows], torch.ones_like(rest_ids, dtype=torch.bool)], dim=1)  # (R, P + S)
        after, _ = backbone.hidden(rest_ids, whole if padded else None, backbone.select(past, rows))
        found = torch.cat([found, after.flatten(0, 1)])
    vectors = found[torch.tensor(list(wanted), device=device)]  # (N, D)
    return (torch.tensor(which, device=device), torch.tensor(tokens, device=device)), vectors


def _at_targets(backbone: Backbone, targets: Any, vectors: Tensor) -> tuple[list[float], list[int], list[float]]:
    """For each scored token its log-probability, the likeliest token in its place, and the log-probability of that."""
    which, tokens = targets
    size = logits_at_once(backbone, len(vectors))
    logprobs = torch.empty(len(which), device=vectors.device)
    normaliser, most = (
        torch.empty(len(vectors), device=vectors.device),
        torch.empty(len(vectors), device=vectors.device),
    )
    best = torch.empty(len(vectors), dtype=torch.long, device=vectors.device)
    for start in range(0, len(vectors), size):
        piece = slice(start, start + size)
        logits = backbone.logits(vectors[piece])  # (≤ size, V)
        inside = (which >= start) & (which < start + size)
        logprobs[inside] = logits[which[inside] - start, tokens[inside]]
        largest, best[piece] = logits.max(dim=1)
        most[piece] = largest
        # in place: at a vocabulary of 50,000 the memory for another copy costs as much as the sum
        normaliser[piece] = largest + logits.sub_(largest[:, None]).exp_().sum(dim=1).log_()
    logprobs -= normaliser[which]
    most -= normaliser
    return logprobs.tolist(), best[which].tolist(), most[which].tolist()


def logits_at_once(backbone: Backbone, vectors: int) -> int:
    """How many vectors get their logits in one piece; all where processes must take the same number of steps."""
    if backbone.sharded:
        return max(1, vectors)
    return max(1, LOGITS_AT_ONCE.get(backbone.device.type, MOST_LOGITS) // backbone.causal.config.vocab_size)


def device_type() -> str:
    """What models are on: the plan of batches must be known before one is built."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _scored(answer: Answer) -> Scored:
    assert isinstance(answer, Scored)
    return answer


def rank_and_world() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _from_first(objects: list[Any]) -> list[Any]:
    if rank_and_world()[1] > 1:
        torch.distributed.broadcast_object_list(objects, src=0)
    return objects


def from_all(value: Any) -> list[Any]:
    """What every process has, in the order of their numbers."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, value)
    return gathered
