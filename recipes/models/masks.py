"""Which key a query sees, and what is added to its score: for one batch, shared by all its layers.

Both are written once, as rules on indices (``key_rule``, ``score_rule``). FlexAttention compiles the rules into its
kernel and wants a block mask beside them; the other kernels get the rules evaluated into a tensor.

Shapes: B batch, H query heads, S queries, T keys (T = past + S), N query blocks, M key blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens: FlexAttention's own block size
ALIGNED = 8  # numbers: a GPU's kernels of SDPA want a bias that begins at a multiple of 16 bytes
Built = TypeVar("Built")
Index = Any  # an index tensor; None where a rule does not look at it


class Batch:
    """What every attention layer of one forward pass needs to know about the batch.

    ``key_padding`` is (B, T), True where there is a token, None when there is one everywhere. ``sequence_id`` is
    (B, S), equal within a document. ``slopes`` is (H,), None without ALiBi.

    No dataclass, on purpose: FSDP2 gives each sharded layer a copy of those among its inputs, with numbers cast to the
    type it computes in, so that each would build its own mask, of rounded slopes.
    """

    def __init__(
        self, key_padding: Tensor | None = None, sequence_id: Tensor | None = None, slopes: Tensor | None = None
    ) -> None:
        self.key_padding, self.sequence_id, self.slopes = key_padding, sequence_id, slopes
        self._built: dict[Any, Any] = {}

    def once(self, key: Any, build: Callable[[], Built]) -> Built:
        """Returns what an earlier layer built under ``key``, or builds it."""
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]

    def check(self, B: int, S: int, T: int) -> None:
        """Refuses masks that do not fit the queries and keys: indexing past their end would read other memory."""
        if self.key_padding is not None and self.key_padding.shape != (B, T):
            raise ValueError(
                f"attention_mask has shape {tuple(self.key_padding.shape)}, expected {(B, T)}: one column for every "
                "key, the cached ones included."
            )
        if self.sequence_id is not None and (self.sequence_id.shape != (B, S) or S != T):
            raise ValueError(
                f"sequence_id has shape {tuple(self.sequence_id.shape)} with {S} queries and {T} keys, expected "
                f"{(B, T)} and as many queries: packed documents cannot be continued from a key/value cache; leave "
                "sequence_id out when generating."
            )


def key_rule(batch: Batch, window: int, past: int, device: torch.device) -> Callable[..., Tensor]:
    """Writes "may query q see key k" as a function of indices, in FlexAttention's ``mask_mod`` form.

    ``past`` is the number of keys before the first query. The numbers are captured as tensors: a captured int would
    be compiled in, and each new value would compile the kernel again.
    """
    key_padding, sequence_id = batch.key_padding, batch.sequence_id
    shift = torch.full((), past, dtype=torch.int32, device=device) if past else None
    reach = torch.full((), window, dtype=torch.int32, device=device) if window != -1 else None

    def may_see(b: Index, h: Index, q: Index, k: Index) -> Tensor:
        position = q if shift is None else q + shift
        seen = k <= position
        if reach is not None:
            seen = seen & (k >= position - reach)
        if sequence_id is not None:
            seen = seen & (sequence_id[b, q] == sequence_id[b, k])
        if key_padding is not None:
            seen = seen & key_padding[b, k]
        return seen

    return may_see


def score_rule(slopes: Tensor | None, softcap: float | None, past: int, device: torch.device) -> Callable[..., Tensor]:
    """Writes the change to a scaled score as a function of indices, in FlexAttention's ``score_mod`` form.

    Soft-capping first, softcap·tanh(score / softcap), then ALiBi, -slope·(distance to the key), as LLM Foundry has it
    (which counts the distance from the end: the softmax takes away the difference).
    """
    shift = torch.full((), past, dtype=torch.int32, device=device) if past else None
    # a tensor: a second value of a Python number in one process cannot be compiled
    exact = torch.float64 if device.type == "cpu" else torch.float32
    cap = None if softcap is None else torch.full((), softcap, dtype=exact, device=device)

    def change(score: Tensor, b: Index, h: Index, q: Index, k: Index) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if slopes is not None:
            position = q if shift is None else q + shift
            score = score - slopes[h] * (position - k)
        return score

    return change


def block_mask(batch: Batch, window: int, S: int, T: int, device: torch.device, query_block: int = BLOCK) -> BlockMask:
    """Builds FlexAttention's block mask from the first and last element of each block, never from S x T elements.

    A block is listed unless no query of it can see any key of it, and marked full (the kernel then skips the rule)
    only when every query sees every key. Documents are compared by the range of their ids in a block: exact when ids
    do not decrease along a row, as packers write them, and never too narrow otherwise. ``query_block`` is a block's
    size in queries, in keys it is ``BLOCK``.
    """
    past = T - S
    n_q, n_k = -(-S // query_block), -(-T // BLOCK)
    q_first = torch.arange(n_q, device=device)[:, None] * query_block  # (N, 1)
    k_first = torch.arange(n_k, device=device)[None, :] * BLOCK  # (1, M)
    q_last, k_last = q_first + query_block - 1, k_first + BLOCK - 1
    some = k_first <= q_last.clamp(max=S - 1) + past  # (N, M)
    every = (k_last <= q_first + past) & (q_last < S) & (k_last < T)
    if window != -1:
        some = some & (k_last.clamp(max=T - 1) >= q_first + past - window)
        every = every & (k_first >= q_last + past - window)
    some, every = some[None], every[None]  # (1, N, M)
    if batch.sequence_id is not None:  # S == T here
        q_low, q_high = _ranges(batch.sequence_id, query_block)  # (B, N)
        k_low, k_high = _ranges(batch.sequence_id, BLOCK)  # (B, M)
        some = some & (k_low[:, None, :] <= q_high[:, :, None]) & (q_low[:, :, None] <= k_high[:, None, :])
        every = every & (k_low[:, None, :] == q_high[:, :, None]) & (q_low[:, :, None] == k_high[:, None, :])
    if batch.key_padding is not None:
        tokens = F.pad(batch.key_padding, (0, n_k * BLOCK - T)).unflatten(1, (n_k, BLOCK))  # (B, M, BLOCK)
        some = some & tokens.any(2)[:, None, :]
        every = every & tokens.all(2)[:, None, :]
    return BlockMask.from_kv_blocks(
        *_listed(some & ~every),
        *_listed(some & every),
        BLOCK_SIZE=(query_block, BLOCK),
        mask_mod=key_rule(batch, window, past, device),
        seq_lengths=(S, T),
    )


def _ranges(ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest of (B, S) ids in each block, (B, N) each."""
    S = ids.shape[1]
    n = -(-S // size)
    inside = torch.arange(n * size, device=ids.device).clamp(max=S - 1)
    blocks = ids[:, inside].unflatten(1, (n, size))  # (B, N, size)
    return blocks.amin(2), blocks.amax(2)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Turns (B, N, M) flags into counts (B, 1, N) and columns (B, 1, N, M), flagged ones first, for BlockMask."""
    flags = blocks.to(torch.int32).unsqueeze(1)  # (B, 1, N, M)
    columns = torch.argsort(flags, dim=-1, descending=True, stable=True)
    return flags.sum(-1, dtype=torch.int32), columns.to(torch.int32)


def additive_bias(
    batch: Batch,
    window: int,
    alibi: bool,
    queries: range,
    keys: range,
    past: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Evaluates the rules into one tensor, (1 or B, 1 or H, S, T), for S ``queries`` and T ``keys`` of a sequence.

    ``past`` is the number of keys before query 0. A forbidden key gets the lowest finite number instead of -inf, so
    that a query without any key (a padding token) gives a finite average that nobody reads, and no NaN, on every kernel
    and in its backward.
    """
    q = torch.arange(queries.start, queries.stop, device=device)[:, None]  # (S, 1)
    k = torch.arange(keys.start, keys.stop, device=device)  # (T,)
    per_sample = [t for t in (batch.key_padding, batch.sequence_id) if t is not None]
    B = per_sample[0].shape[0] if per_sample else 1
    b = torch.arange(B, device=device)[:, None, None, None]  # (B, 1, 1, 1)
    seen = key_rule(batch, window, past, device)(b, None, q, k)  # (S, T) or (B, 1, S, T)
    bias = torch.zeros((), dtype=torch.float32, device=device)
    if alibi:
        assert batch.slopes is not None
        h = torch.arange(batch.slopes.shape[0], device=device)[:, None, None]  # (H, 1, 1)
        bias = score_rule(batch.slopes, None, past, device)(bias, None, h, q, k)  # (H, S, T)
    bias = torch.where(seen, bias.to(dtype), torch.finfo(dtype).min)
    return bias[(None,) * (4 - bias.dim())]  # (1 or B, 1 or H, S, T)


def needs_bias(batch: Batch, window: int, alibi: bool, S: int, T: int) -> bool:
    """Whether there is anything that torch's own ``is_causal`` does not say."""
    per_sample = batch.key_padding is not None or batch.sequence_id is not None
    return alibi or per_sample or window != -1 or (T > S > 1)


def bands(
    batch: Batch, window: int, alibi: bool, S: int, T: int, rows: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[slice, slice, Tensor]]:
    """Cuts causal attention into bands of ``rows`` queries, each with the keys that it can see and their bias.

    A band ends at the key of its last query, so that the half of the scores that is masked is not computed. Without
    padding or documents a bias depends on the distance to a key alone: all bands are views of the last one's,
    (1, H, rows, T), and memory is linear in S.
    """
    past = T - S
    per_sample = batch.key_padding is not None or batch.sequence_id is not None
    last = range(max(0, S - rows), S)
    shared = None if per_sample else additive_bias(batch, window, alibi, last, range(T), past, dtype, device)
    cut = []
    for begin in range(0, S, rows):
        end = min(begin + rows, S)
        first = max(0, past + begin - window) if window != -1 else 0
        keys = range(first, past + end)
        if shared is None:
            bias = additive_bias(batch, window, alibi, range(begin, end), keys, past, dtype, device)
        else:
            bias = shared[:, :, len(last) - (end - begin) :, T - len(keys) :]
            if device.type == "cuda" and (T - len(keys)) % ALIGNED:
                bias = bias.contiguous()
        cut.append((slice(begin, end), slice(keys.start, keys.stop), bias))
    return cut


def segments(batch: Batch, S: int) -> Tensor:
    """Where sequences begin in B rows of S tokens laid end to end, and where the last one ends: int32, for flash-attn.

    A sequence ends with its row, and where the document or being a token changes; padding becomes one of its own.
    """
    rows = [t for t in (batch.key_padding, batch.sequence_id) if t is not None]
    changes = torch.stack([row[:, 1:] != row[:, :-1] for row in rows]).any(0)  # (B, S - 1)
    begins = F.pad(changes, (1, 0), value=True).flatten().nonzero()[:, 0]
    end = begins.new_tensor([rows[0].shape[0] * S])
    return torch.cat([begins, end]).to(torch.int32)
