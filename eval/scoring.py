"""The scoring core: requests in, log-probabilities out, whatever asked for them.

Of a batch, what requests share is computed once (vectors.py), and logits only where a token is scored (vocabulary.py).
Batches go round the processes, so that a batch is the same tensors on one process or many, and the answers are the same
to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eval import batching
from eval.backbone import Backbone
from eval.batching import Batch
from eval.cache import Answer, AnswerCache, missing
from eval.questions import Request, Scored, ScoringError, refuse_unusable
from eval.vectors import vectors_for
from eval.vocabulary import answers_at

# A batch is so many times what goes through the model at once: from more requests come passes of rows more alike in
# length. A GPU's memory may have no room for the keys and values of more.
PASSES = {"cpu": 4}
NO_ROOM = (
    "this device's memory has no room for a batch of {}: set a smaller device_eval_batch_size "
    "(of eval.harness: --batch-size)"
)
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
    batches = batching.plan(unique, batch_size * PASSES.get(device_type(), 1), max_len)
    keys = [[unique[m].key for family in batch for m in family.members] for batch in batches]

    def compute(backbone: Backbone, index: int) -> dict[str, Answer]:
        found = score_batch(backbone, unique, batches[index], batch_size)
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
    """Compute the batches that the cache does not hold, in turns over the processes, and give all of them to each.

    Raises ScoringError, on every process, for what one of them could not compute.
    """
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
        except torch.OutOfMemoryError:
            if backbone.sharded:  # the others wait within the pass that this one has left
                raise
            trouble = trouble or NO_ROOM.format(len(keys[index]))
            break
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


def score_batch(backbone: Backbone, requests: Sequence[Request], batch: Batch, rows: int) -> dict[int, Scored]:
    """Answers by index of the request. rows: of a pass through the model at most."""
    members = [m for family in batch for m in family.members]
    # one pass of the root: on a sharded model every process must take the same number of them
    found = backbone.run(lambda: answers_at(backbone, *vectors_for(backbone, requests, batch, rows)))
    answers, start = {}, 0
    for member in members:
        request = requests[member]
        end = start + len(request.continuation)
        values = found.logprobs[start:end]
        if not all(map(math.isfinite, values)):
            raise ScoringError(
                f"{request.name}: the model's logits are not finite (NaN or infinity), so there is no score; "
                "look at the checkpoint, or at the precision: fp32 has the widest range"
            )
        answers[member] = Scored(tuple(values), all(found.greedy[start:end]), math.exp(min(found.most[start:end])))
        start = end
    return answers


def device_type() -> str:
    """What models are on: the plan of batches must be known before one is built."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def own_gpu() -> list[int]:
    """The GPU that this process computes on, where there is one: random numbers of the others are not its own."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


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
