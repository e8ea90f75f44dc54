"""Which requests are computed together: families that share a prefix, batches of families, passes of rows. No torch.

The plan depends on the requests and the batch size alone, never on the number of processes or on what is cached: the
same batch gives the same last bit everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.questions import Request

MIN_SHARED = 4  # tokens; a shorter common prefix is not worth a second pass
WASTE = 1.1  # padded tokens for each token of a pass that is large enough; beyond, a smaller pass is faster


@dataclass(frozen=True)
class Family:
    """Requests whose inputs begin with the same `shared` tokens, which are computed once.

    members: indices of requests, the longest first. rest: the most input tokens that a member has after the shared.
    """

    shared: int
    members: tuple[int, ...]
    rest: int


Batch = tuple[Family, ...]
Row = tuple[int, int]  # (family by its place in the batch, member)


def plan(requests: Sequence[Request], rows: int, max_len: int) -> list[Batch]:
    """Batches of families with at most `rows` requests that cover `requests` (all different), longest first.

    A branch goes on from its family's prefix, padded on the left to the longest of the batch, and is itself padded on
    the right, so the two longest together must not exceed `max_len`, the model's context in tokens.
    """
    batches: list[Batch] = []
    pending: list[Family] = []
    for family in sorted(
        families_of(requests, rows), key=lambda f: (f.shared + f.rest, f.rest, f.members), reverse=True
    ):
        together = [*pending, family]
        too_many = sum(len(f.members) for f in together) > rows
        too_long = max(f.shared for f in together) + max(f.rest for f in together) > max_len
        if pending and (too_many or too_long):
            batches.append(tuple(pending))
            together = [family]
        pending = together
    if pending:
        batches.append(tuple(pending))
    return batches


def passes(
    batch: Batch, requests: Sequence[Request], rows: int, enough: int
) -> tuple[list[list[Row]], list[list[Row]]]:
    """The passes of a batch through the model: each family's longest member whole, then the branches of the others.

    A pass has at most `rows` rows, alike in length. enough: padded tokens from which on a pass uses the device well;
    one that has them is closed early rather than padded by more than WASTE. 0: passes are always filled.
    """
    whole = [(f, family.members[0]) for f, family in enumerate(batch)]
    branches = [(f, m) for f, family in enumerate(batch) for m in family.members[1:] if _rest(batch, requests, (f, m))]
    return (
        _alike(whole, [len(requests[m].inputs) for _, m in whole], rows, enough),
        _alike(branches, [_rest(batch, requests, row) for row in branches], rows, enough),
    )


def padded(batch: Batch, requests: Sequence[Request], rows: int, enough: int) -> int:
    """How many tokens a batch computes, padding included."""
    whole, branches = passes(batch, requests, rows, enough)
    return sum(len(p) * max(len(requests[m].inputs) for _, m in p) for p in whole) + sum(
        len(p) * max(_rest(batch, requests, row) for row in p) for p in branches
    )


def _rest(batch: Batch, requests: Sequence[Request], row: Row) -> int:
    return len(requests[row[1]].inputs) - batch[row[0]].shared


def _alike(items: Sequence[Row], lengths: Sequence[int], rows: int, enough: int) -> list[list[Row]]:
    """The items in passes, longest first."""
    made: list[list[Row]] = []
    longest = tokens = 0
    for index in sorted(range(len(items)), key=lambda i: -lengths[i]):
        count = len(made[-1]) if made else 0
        large = enough and longest * count >= enough
        if not made or count == rows or (large and longest * (count + 1) > WASTE * (tokens + lengths[index])):
            made.append([])
            longest, tokens = lengths[index], 0
        made[-1].append(items[index])
        tokens += lengths[index]
    return made


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
    longest_first = sorted(members, key=lambda m: -len(inputs[m]))
    return Family(shared, tuple(longest_first), len(inputs[longest_first[0]]) - shared)


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
