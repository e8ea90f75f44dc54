"""RWKV-4's WKV: a weighted mean over all earlier tokens, channel by channel, in time and memory linear in their number.

Channel c of token t sees token i < t with weight exp(key_i - (t - 1 - i)·decay), and itself with exp(bonus + key_t)
(Peng et al. 2023, arXiv 2305.13048, equation 16). What a channel knows of the past is two numbers, the log of its
weights' sum and the mean of its values under them; a further token is merged by a sigmoid, so that nothing can
overflow. Tokens are taken in groups: each group's own sum is a token to the groups behind it, and so on, so that a
sequence takes a few hundred operations on large tensors instead of one after the other for each token.

The gradients are of the same form: what later tokens send back to a key is a weighted sum over them, the same scan in
the other direction.

Shapes: B sequences, S tokens, C channels, N groups of G tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

GROUP = 8  # tokens; on a CPU the fastest of 4, 8, 16 and 32, by up to a third
NOTHING = -1e30  # the log weight of no token at all; finite, so that differences of it are numbers


class Seen(NamedTuple):
    """What is known of earlier tokens: ``weight`` the log of their weights' sum, ``means`` of their values by it."""

    weight: Tensor
    means: tuple[Tensor, ...]


@torch.compiler.disable  # unrolled, its steps take minutes to compile
def wkv(
    keys: Tensor,
    values: Tensor,
    decay: Tensor,
    bonus: Tensor,
    starts: Tensor | None = None,
    seen: Seen | None = None,
) -> tuple[Tensor, Seen]:
    """The weighted means of keys and values (B, S, C), in fp32, with a gradient for all four tensors.

    decay, bonus: (C,), decay >= 0. starts: (B, S), True where a document begins, which sees nothing before it.
    seen: what goes before the first token, (B, C) each. The second result is what is known behind the last token,
    without a gradient: give it with the tokens that come next.
    """
    exact = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(keys.device.type, enabled=False):
        out, weight, mean = _Wkv.apply(*(x.to(exact) for x in (keys, values, decay, bonus)), starts, seen)
    return out, Seen(weight, (mean,))


def scan(
    keys: Tensor, values: tuple[Tensor, ...], decay: Tensor, cut: Tensor | None = None, seen: Seen | None = None
) -> Seen:
    """What is known before each token, (B, S, C) each.

    cut: (B, S, 1), taken off the log weight of what is known when a token is passed; NOTHING's size forgets it all.
    """
    size = keys.shape[1]
    if seen is None:
        nothing = torch.zeros_like(keys[:, 0])
        seen = Seen(nothing + NOTHING, (nothing,) * len(values))
    if size <= GROUP:
        return _one_by_one(keys, values, decay, cut, seen, dim=1)
    padding = -size % GROUP
    if padding:
        keys = _padded(keys, padding, NOTHING)
        values = tuple(_padded(value, padding) for value in values)
        cut = None if cut is None else _padded(cut, padding)
    grouped = (-1, GROUP)
    keys = keys.unflatten(1, grouped)  # (B, N, G, C)
    values = tuple(value.unflatten(1, grouped) for value in values)
    cut = None if cut is None else cut.unflatten(1, grouped)  # (B, N, G, 1)
    whole = _group_as_token(keys, values, decay, cut)
    before_groups = scan(
        whole.weight, whole.means, GROUP * decay, None if cut is None else cut.sum(2), seen
    )  # (B, N, C)
    found = _one_by_one(keys, values, decay, cut, before_groups, dim=2)
    return Seen(found.weight.flatten(1, 2)[:, :size], tuple(mean.flatten(1, 2)[:, :size] for mean in found.means))


def _group_as_token(keys: Tensor, values: tuple[Tensor, ...], decay: Tensor, cut: Tensor | None) -> Seen:
    """(B, N, G, C) → the log weight and the means of each group behind its last token, (B, N, C)."""
    distance = torch.arange(GROUP - 1, -1, -1, device=keys.device, dtype=keys.dtype)[:, None]  # (G, 1)
    logs = keys - distance * decay
    if cut is not None:  # by the tokens that follow in the group
        logs = logs - (cut.flip(2).cumsum(2).flip(2) - cut)
    largest = logs.amax(2)  # (B, N, C)
    weights = torch.exp(logs - largest[:, :, None])
    total = weights.sum(2)
    return Seen(largest + total.log(), tuple((weights * value).sum(2) / total for value in values))


def _one_by_one(
    keys: Tensor, values: tuple[Tensor, ...], decay: Tensor, cut: Tensor | None, seen: Seen, dim: int
) -> Seen:
    """The tokens along ``dim`` one after the other, all groups at the same time."""
    found = []
    for token in range(keys.shape[dim]):
        found.append(seen)
        if token + 1 < keys.shape[dim]:
            here = [value.select(dim, token) for value in values]
            past = None if cut is None else cut.select(dim, token)
            seen = _passed(seen, keys.select(dim, token), tuple(here), decay, past)
    means = zip(*(each.means for each in found), strict=True)
    return Seen(torch.stack([each.weight for each in found], dim), tuple(torch.stack(mean, dim) for mean in means))


def _passed(seen: Seen, key: Tensor, values: tuple[Tensor, ...], decay: Tensor, cut: Tensor | None) -> Seen:
    """One token further: what was known fades, and the token is merged with it."""
    faded = seen.weight - decay if cut is None else seen.weight - decay - cut
    share = torch.sigmoid(key - faded)  # the token's, of the new sum
    means = tuple(torch.lerp(mean, value, share) for mean, value in zip(seen.means, values, strict=True))
    return Seen(torch.logaddexp(faded, key), means)


class _Wkv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor,
        decay: Tensor,
        bonus: Tensor,
        starts: Tensor | None,
        seen: Seen | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cut = _cut(starts, keys.dtype)
        weight, (mean,) = _before(keys, (values,), decay, cut, seen)
        ctx.save_for_backward(keys, values, decay, bonus, cut, weight, mean)
        out = torch.lerp(mean, values, torch.sigmoid(keys + bonus - weight))
        before_last = Seen(weight[:, -1], (mean[:, -1],))
        known, (behind,) = _passed(before_last, keys[:, -1], (values[:, -1],), decay, None)
        ctx.mark_non_differentiable(known, behind)
        return out, known, behind

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """With p the share of token i in token t: d value_i is Σ p·d_out_t, d key_i Σ p·d_out_t·(value_i - out_t).

        The decay shares in every step from a token to the next: what the sum at such a step is multiplied with.
        """
        keys, values, decay, bonus, cut, weight, mean = ctx.saved_tensors
        own_log = keys + bonus
        share = torch.sigmoid(own_log - weight)
        out = torch.lerp(mean, values, share)
        d_own = d_out * share * (values - out)  # of key and bonus, by the token's share in itself
        total = torch.logaddexp(own_log, weight)
        ends = None if cut is None else torch.cat([cut[:, 1:], torch.zeros_like(cut[:, :1])], 1).flip(1)
        later = _before(-total.flip(1), (d_out.flip(1), (d_out * out).flip(1)), decay, ends)
        later_weight = later.weight.flip(1)  # log Σ exp(-total_t - (t - 1 - i)·decay) over t > i
        sent, sent_out = (value.flip(1) for value in later.means)  # means of d_out and of d_out·out under it
        weights = torch.exp(keys + later_weight)
        d_values = d_out * share + weights * sent
        d_keys = d_own + weights * (values * sent - sent_out)
        step = torch.exp(weight - decay + later_weight) * (mean * sent - sent_out)
        return d_keys, d_values, -step.sum((0, 1)), d_own.sum((0, 1)), None, None


def _before(
    keys: Tensor, values: tuple[Tensor, ...], decay: Tensor, cut: Tensor | None, seen: Seen | None = None
) -> Seen:
    """What each token sees: what is known before it, unless a document begins there."""
    found = scan(keys, values, decay, cut, seen)
    return found if cut is None else Seen(found.weight - cut, found.means)


def _cut(starts: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if starts is None else starts[..., None].to(dtype) * -NOTHING


def _padded(x: Tensor, tokens: int, value: float = 0.0) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, tokens), value=value)
