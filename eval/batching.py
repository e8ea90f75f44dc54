"""Which requests are computed together: families that share a prefix, batches of families alike in length. No torch.

The plan depends on the requests and the batch size alone, never on the number of processes or on what is cached: the
same batch gives the same last bit everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.questions import Request

MIN_SHARED = 4  # tokens; a shorter common prefix is not worth a second pass
BUCKET = 8  # tokens; families whose branches differ less are batched by the length of their prefix
WASTE = 1.1  # padded tokens for each token of a batch that is large enough; beyond, a smaller batch is faster


@dataclass(frozen=True)
class Family:
    """Requests whose inputs begin with the same `shared` tokens, which are computed once.

    members: indices of requests. rest: the most input tokens that a member has after the shared ones.
    """

    shared: int
    members: tuple[int, ...]
    rest: int


Batch = tuple[Family, ...]


def plan(requests: Sequence[Request], rows: int, max_len: int, enough: int = 0) -> list[Batch]:
    """Batches of at most `rows` requests that cover `requests` (all different), longest first.

    enough: padded tokens from which on a batch uses the device well; one that has them is closed early rather than
    padded by more than WASTE. 0: batches are always filled.

    In a batch, prefixes are padded on the left to the longest and branches on the right, so the two longest together
    must not exceed `max_len`, the model's context in tokens.
    """
    batches: list[Batch] = []
    pending: list[Family] = []
    families = sorted(
        families_of(requests, rows), key=lambda f: (-(-f.rest // BUCKET), f.shared, f.members), reverse=True
    )
    for family in families:
        together = [*pending, family]
        too_many = sum(len(f.members) for f in together) > rows
        too_long = max(f.shared for f in together) + max(f.rest for f in together) > max_len
        wasteful = enough and padded(pending, requests)[1] >= enough and _waste(together, requests) > WASTE
        if pending and (too_many or too_long or wasteful):
            batches.append(tuple(pending))
            together = [family]
        pending = together
    if pending:
        batches.append(tuple(pending))
    return sorted(batches, key=lambda b: max(f.shared + f.rest for f in b), reverse=True)


def padded(batch: Sequence[Family], requests: Sequence[Request]) -> tuple[int, int]:
    """(tokens that a batch reads, tokens that it computes with padding)."""
    if not batch:
        return 0, 0
    branches = [len(requests[m].inputs) - f.shared for f in batch for m in f.members]
    read = sum(f.shared for f in batch) + sum(branches)
    longest = max(f.shared for f in batch), max(branches)
    return read, longest[0] * len(batch) + longest[1] * sum(b > 0 for b in branches)


def _waste(batch: Sequence[Family], requests: Sequence[Request]) -> float:
    read, computed = padded(batch, requests)
    return computed / read


def families_of(requests: Sequence[Request], rows: int) -> list[Family]:
    """Sort requests by their tokens, so that shared prefixes are neighbours, and cut where joining saves nothing.

    k members that share L tokens save (k − 1)·L. A further one that shares only M < L joins when k·M ≥ (k − 1)·L.
    """
    inputs = [request.inputs for request in requests]
    order = sorted(range(len(requests)), key=lambda index: inputs[index])
    families: list[Family] = []
    members: list[int] = []
    shared = 0
    for index in order:
        if members:
            common = min(shared, common_prefix(inputs[members[-1]], inputs[index]))
            worth = common >= MIN_SHARED and len(members) * common >= (len(members) - 1) * shared
            if worth and len(members) < rows:
                members.append(index)
                shared = common
                continue
            families.append(_family(members, shared, inputs))
        members, shared = [index], len(inputs[index])
    if members:
        families.append(_family(members, shared, inputs))
    return families


def _family(members: list[int], shared: int, inputs: Sequence[tuple[int, ...]]) -> Family:
    return Family(shared, tuple(members), max(len(inputs[m]) for m in members) - shared)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike; by bisection, because slices compare fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
