"""Keys and values that a model keeps, one token after the other, whichever way it lays them out.

B rows, T tokens, R rows that go on, P tokens before them, N tokens of all passes, … what a layer keeps of one token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

Past = Any  # keys and values of every layer, as the model itself keeps them


class Prefixes:
    """The tokens of several passes, laid end to end, from which any row of tokens can be put together."""

    def __init__(self) -> None:
        self._passes: list[Past] = []
        self._length = 0
        self._flat: list[tuple[Tensor, Tensor]] = []  # a layer: keys and values, (N, …) each

    def add(self, past: Past) -> int:
        """The number of its first token: that of row b, token t of (B, T) is B's first + b·T + t."""
        first = self._length
        keys, axes = _pairs(past)[0][0], _token_axes(past)
        assert axes is not None
        self._length += keys.shape[0] * keys.shape[axes[0]]
        self._passes.append(past)
        return first

    def of(self, tokens: Tensor) -> Past:
        """Tokens by number (R, P) → what the model takes as R rows of P tokens."""
        like = self._passes[0]
        axes = _token_axes(like)
        assert axes is not None
        if not self._flat:
            passes = [_pairs(past) for past in self._passes]
            self._flat = [
                (_joined([k for k, _ in layer], axes[0]), _joined([v for _, v in layer], axes[1]))
                for layer in zip(*passes, strict=True)
            ]
        pairs = [(_rows(k, tokens, axes[0]), _rows(v, tokens, axes[1])) for k, v in self._flat]
        return DynamicCache(pairs) if isinstance(like, DynamicCache) else pairs


def can_be_shared(past: Past) -> bool:
    """Whether this is a layout with every token's keys and values in it; a sliding window's, for one, is not."""
    return _token_axes(past) is not None


def _token_axes(past: Past) -> tuple[int, int] | None:
    """Which axis of keys, and which of values, counts the tokens."""
    if isinstance(past, DynamicCache):
        return (2, 2) if all(type(layer) is DynamicLayer for layer in past.layers) else None  # (B, H, T, D)
    try:
        dimensions = {(keys.dim(), values.dim()) for keys, values in past}
    except (TypeError, ValueError, AttributeError):
        return None
    return {(3, 3): (1, 1), (4, 4): (3, 2)}.get(*dimensions) if len(dimensions) == 1 else None  # LLM Foundry's two


def _pairs(past: Past) -> list[tuple[Tensor, Tensor]]:
    layers: Any = [(layer.keys, layer.values) for layer in past.layers] if isinstance(past, DynamicCache) else past
    return list(layers)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    """Of each pass (B, T, …), with the tokens on that axis → (N, …)."""
    flat = [part.movedim(axis, 1).flatten(0, 1) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _rows(flat: Tensor, tokens: Tensor, axis: int) -> Tensor:
    return flat.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).movedim(1, axis)
