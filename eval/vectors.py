"""A batch of requests → the hidden states from which their tokens are predicted.

Each family's longest member is read whole, then the branches of the others on the keys and values of what they share.
R rows of a pass, S tokens of its longest row, P tokens of the longest prefix, D width, N vectors, A tokens asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eval.backbone import Backbone
from eval.batching import Batch, Family, Row, passes
from eval.kv_cache import Prefixes
from eval.questions import Request

ENOUGH_TOKENS = {"cpu": 512}  # of a pass, that use the device well; on others, passes are always filled


def vectors_for(
    backbone: Backbone, requests: Sequence[Request], batch: Batch, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors (N, D); for each token asked for, in the order of the batch (A,), which one predicts it; its id (A,).

    rows: of a pass at most.
    """
    if not backbone.shares:
        batch = tuple(Family(len(requests[m].inputs), (m,), 0) for family in batch for m in family.members)
    # a sharded model's processes must take the same number of passes: one of each kind
    most, enough = (len(requests), 0) if backbone.sharded else (rows, ENOUGH_TOKENS.get(backbone.device.type, 0))
    whole, branches = passes(batch, requests, most, enough)
    if backbone.turns_at is not None:  # no branches: nothing is shared
        whole = [part for group in whole for part in _by_side(group, requests, backbone.turns_at)]
    asked, tokens = _asked(requests, batch)
    needed: dict[Row, dict[int, None]] = defaultdict(dict)  # positions of each row, once each
    for row, position in asked:
        needed[row][position] = None
    prefixes, found = Prefixes(), []
    firsts: dict[int, int] = {}  # family → the number of its first token among the prefixes
    for group in whole:
        ids = _padded([requests[m].inputs for _, m in group], backbone)  # (R, S)
        hidden, past = backbone.hidden(ids, None, keep=bool(branches) or backbone.sharded)
        if branches:
            first = prefixes.add(past)
            firsts |= {f: first + place * ids.shape[1] for place, (f, _) in enumerate(group)}
        found.append(_picked(hidden, group, needed))
    for group in branches:
        found.append(_picked(_go_on(backbone, requests, batch, group, prefixes, firsts), group, needed))
    if backbone.sharded and len(whole) + len(branches) == 1:
        backbone.hidden(_padded([(0,)], backbone), None)
    order = {
        spot: n for n, spot in enumerate((r, p) for group in (*whole, *branches) for r in group for p in needed[r])
    }
    which = torch.tensor([order[spot] for spot in asked], device=backbone.device)
    return torch.cat(found), which, torch.tensor(tokens, device=backbone.device)


def _by_side(group: Sequence[Row], requests: Sequence[Request], length: int) -> list[list[Row]]:
    """The rows of a pass that have more than `length` tokens, and those that do not."""
    sides = [[row for row in group if (len(requests[row[1]].inputs) > length) == is_long] for is_long in (True, False)]
    return [side for side in sides if side]


def _asked(requests: Sequence[Request], batch: Batch) -> tuple[list[tuple[Row, int]], list[int]]:
    """For each token asked for: the row that is computed and the position in it that predict it, and its id."""
    places: list[tuple[Row, int]] = []
    tokens: list[int] = []
    for f, family in enumerate(batch):
        leader = (f, family.members[0])
        for member in family.members:
            request = requests[member]
            first = len(request.context) - 1
            for position in range(first, first + len(request.continuation)):
                if member == family.members[0] or position < family.shared:
                    places.append((leader, position))
                else:
                    places.append(((f, member), position - family.shared))
            tokens += request.continuation
    return places, tokens


def _go_on(
    backbone: Backbone,
    requests: Sequence[Request],
    batch: Batch,
    group: Sequence[Row],
    prefixes: Prefixes,
    firsts: Mapping[int, int],
) -> Tensor:
    """Hidden states (R, S, D) of branches. firsts: of each family, the number of its first token among the prefixes."""
    shared = torch.tensor([batch[f].shared for f, _ in group], device=backbone.device)[:, None]  # (R, 1)
    start = torch.tensor([firsts[f] for f, _ in group], device=backbone.device)[:, None]
    ids = _padded([requests[m].inputs[batch[f].shared :] for f, m in group], backbone)  # (R, S)
    P = int(shared.max())
    place = torch.arange(P, device=backbone.device) - (P - shared)  # (R, P), negative where there is padding
    mask = None
    if int(shared.min()) < P:
        mask = torch.cat([place >= 0, torch.ones_like(ids, dtype=torch.bool)], dim=1)  # (R, P + S)
    hidden, _ = backbone.hidden(ids, mask, prefixes.of(start + place.clamp(min=0)))
    return hidden


def _picked(hidden: Tensor, group: Sequence[Row], needed: Mapping[Row, Mapping[int, None]]) -> Tensor:
    """Of hidden states (R, S, D) those that are needed, row after row."""
    S = hidden.shape[1]
    flat = [place * S + position for place, row in enumerate(group) for position in needed[row]]
    return hidden.flatten(0, 1).index_select(0, torch.tensor(flat, dtype=torch.long, device=hidden.device))


def _padded(rows: Sequence[Sequence[int]], backbone: Backbone) -> Tensor:
    """Tokens (R, S), padded on the right, which nothing before it sees."""
    S = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (S - len(row))] for row in rows], device=backbone.device)
