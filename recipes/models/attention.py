"""Attention kernels behind one signature.

LLM Foundry's blocks hand an ``attn_bias`` from the model to every attention layer; ours carries a ``Batch`` in that
place. A layer calls ``attend``, which picks a kernel (``backends.resolve``); the kernel asks the ``Batch`` for its mask
or bias. The first layer builds it, the others find it there: one a batch (and a window), not one a layer.

Shapes: B batch, H query heads, G key/value heads (G divides H), S queries, T keys (T = past + S), D head dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from llmfoundry.models.layers.attention import scaled_multihead_dot_product_attention
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from recipes.models import backends
from recipes.models.masks import BLOCK, Batch, additive_bias, bands, block_mask, needs_bias, score_rule, segments

log = logging.getLogger(__name__)

# Queries that `sdpa` handles in one call where there is a bias: few enough to leave out most of the masked half. On a
# CPU 256 was as fast as 128 to 512; a GPU needs more to be full.
BAND = {"cpu": 256, "cuda": 1024}

# Variants of a kernel that a process may compile. Those of a model with other heads are its own, seven to nine where
# tasks of all lengths are scored: enough for fifty models in one evaluation, and few enough to end what never repeats.
VARIANTS = 512

_announced: set[tuple[str, str, str]] = set()
_compiled_flex_attention: dict[bool, Callable[..., Tensor]] | None = None  # with gradients or without → a copy


@dataclass(frozen=True)
class Layer:
    """What one attention layer computes: softmax(softcap(scale q·k) + ALiBi) over the keys i - window ... i."""

    scale: float
    window: int  # keys before the query; -1: all of them
    softcap: float | None
    alibi: bool


def sdpa(q: Tensor, k: Tensor, v: Tensor, batch: Batch, layer: Layer, dropout_p: float) -> Tensor:
    """torch's fused attention: plain causal attention in one call, with a bias in bands of queries."""
    S, T = q.shape[2], k.shape[2]
    fused = partial(
        F.scaled_dot_product_attention, dropout_p=dropout_p, scale=layer.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    if not needs_bias(batch, layer.window, layer.alibi, S, T):
        return fused(q, k, v, is_causal=S > 1)
    key = ("bands", layer.window, layer.alibi, S, T, q.dtype, q.device)
    rows = BAND.get(q.device.type, BAND["cpu"])
    cut = batch.once(key, lambda: bands(batch, layer.window, layer.alibi, S, T, rows, q.dtype, q.device))
    parts = [fused(q[:, :, at], k[:, :, keys], v[:, :, keys], attn_mask=bias) for at, keys, bias in cut]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (B, H, S, D)


def math(q: Tensor, k: Tensor, v: Tensor, batch: Batch, layer: Layer, dropout_p: float) -> Tensor:
    """LLM Foundry's plain attention given our bias: the only kernel besides FlexAttention with soft-capping."""
    S, T = q.shape[2], k.shape[2]
    bias = None
    if needs_bias(batch, layer.window, layer.alibi, S, T):
        dtype = torch.promote_types(q.dtype, torch.float32)  # as LLM Foundry's own
        key = ("bias", layer.window, layer.alibi, S, T, dtype, q.device)
        whole = (range(S), range(T), T - S, dtype, q.device)
        bias = batch.once(key, lambda: additive_bias(batch, layer.window, layer.alibi, *whole))
    out, _, _ = scaled_multihead_dot_product_attention(
        *(t.transpose(1, 2).flatten(2) for t in (q, k, v)),  # (B, S or T, H or G * D)
        n_heads=q.shape[1],
        kv_n_heads=k.shape[1],
        softmax_scale=layer.scale,
        attn_bias=bias,
        is_causal=bias is None,
        dropout_p=dropout_p,
        training=True,  # dropout_p is 0 outside training
        attn_logit_softcapping=layer.softcap,
    )
    return out.unflatten(2, (q.shape[1], -1)).transpose(1, 2)  # (B, H, S, D)


def single_query(q: Tensor, k: Tensor, v: Tensor, batch: Batch, layer: Layer, dropout_p: float) -> Tensor:
    """Few scores, (B, H, 1, T). In 16 bits ALiBi would lose the distance of far keys: their bias is added in fp32."""
    rounded = layer.alibi and q.dtype in (torch.float16, torch.bfloat16)
    return (math if rounded or layer.softcap is not None else sdpa)(q, k, v, batch, layer, dropout_p)


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch: Batch,
    layer: Layer,
    dropout_p: float,
    flash4: bool = False,
) -> Tensor:
    """FlexAttention, compiled: rules inside the kernel, memory linear in S.

    A single query (generation with a cache) has no S x S to avoid: it goes to the kernels with a (B, H, 1, T) bias,
    which need no new block mask for every token.
    """
    assert dropout_p == 0.0, "backends.refusals lets no dropout through to FlexAttention"
    S, T = q.shape[2], k.shape[2]
    if S == 1:
        return single_query(q, k, v, batch, layer, dropout_p)
    slopes = batch.slopes if layer.alibi else None
    rows = _flash4_query_block(q.device) if flash4 else BLOCK
    blocks = batch.once(
        ("blocks", layer.window, S, T, rows), lambda: block_mask(batch, layer.window, S, T, q.device, rows)
    )
    score_mod = None
    if slopes is not None or layer.softcap is not None:
        key = ("score", layer.alibi, layer.softcap, S, T)
        score_mod = batch.once(key, lambda: score_rule(slopes, layer.softcap, T - S, q.device))
    return fused_flex_attention(
        q,
        k,
        v,
        score_mod=score_mod,
        block_mask=blocks,
        scale=layer.scale,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options={"BACKEND": "FLASH"} if flash4 else _triton_options(q),
    )


def _triton_options(q: Tensor) -> dict[str, Any] | None:
    """Where torch chooses badly among the kernels that it writes in Triton, and their sizes: what to take instead."""
    options: dict[str, Any] = {}
    if q.shape[2] < BLOCK:
        # torch's kernel for few queries finds no block size for grouped heads, and has two warps hold all queries of a
        # head: more than 64 of them spill 45 kB of registers a thread
        options["FORCE_USE_FLEX_ATTENTION"] = True
    is_half = q.dtype in (torch.float16, torch.bfloat16)
    if q.shape[3] == 64 and is_half and _compute_capability(q.device) in (9, 10):
        # torch gives 128 x 128 scores to four warps. Compiled for sm_90, the forward kernel then spills 8 bytes of
        # registers a thread without a mask, 568 with documents, 3,856 with padding, 5,272 with both; with eight, none
        # (at 500 tokens, in fp16 and with both, 24 in place of 5,320). For sm_100 it is 704, 672, 5,376 and 3,384 with
        # four, and 0, 0, 0 and 72 with eight.
        options["fwd_num_warps"] = 8
    return options or None


def flash4(q: Tensor, k: Tensor, v: Tensor, batch: Batch, layer: Layer, dropout_p: float) -> Tensor:
    """FlexAttention's rules compiled into FlashAttention 4's kernels, forward and backward, by torch itself."""
    _check_half("flash4", q)
    return flex(q, k, v, batch, layer, dropout_p, flash4=True)


def _flash4_query_block(device: torch.device) -> int:
    """Queries of a block: FlashAttention 4 takes two tiles of 128 at once on Blackwell (its q_stage is 2 there)."""
    return 2 * BLOCK if _compute_capability(device) >= 10 else BLOCK


def _compute_capability(device: torch.device) -> int:
    """The first number of a GPU's version of CUDA's hardware: 9 on an H100, 10 on a B200; 0 on a CPU."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def flash2(q: Tensor, k: Tensor, v: Tensor, batch: Batch, layer: Layer, dropout_p: float) -> Tensor:
    """flash-attn 2: slopes, window and soft-capping in the kernel; documents and padding as sequences of their own.

    Documents are told apart where ids change along a row, so a document must be in one piece, as packers write it.
    Padding with a key/value cache, met in generation alone, goes to ``sdpa``, as does a single query.
    """
    _check_half("flash2", q)
    from flash_attn.flash_attn_interface import flash_attn_func, flash_attn_varlen_func

    B, S, T = q.shape[0], q.shape[2], k.shape[2]
    segmented = batch.key_padding is not None or batch.sequence_id is not None
    if S == 1 or (segmented and S != T):
        return single_query(q, k, v, batch, layer, dropout_p)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, S or T, H or G, D)
    options = {
        "dropout_p": dropout_p,
        "softmax_scale": layer.scale,
        "causal": True,
        "window_size": (layer.window, 0 if layer.window != -1 else -1),
        "softcap": layer.softcap or 0.0,
        "alibi_slopes": batch.slopes.float() if layer.alibi and batch.slopes is not None else None,
    }
    if not segmented:
        return flash_attn_func(q, k, v, **options).transpose(1, 2)
    begins = batch.once(("segments", S), lambda: segments(batch, S))
    flat = (t.flatten(0, 1) for t in (q, k, v))  # (B * S, H or G, D)
    out = flash_attn_varlen_func(*flat, begins, begins, S, S, **options)
    return out.unflatten(0, (B, S)).transpose(1, 2)  # (B, H, S, D)


def _check_half(name: str, q: Tensor) -> None:
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"attn_impl: {name} takes 16-bit numbers only, got {q.dtype}; set precision: amp_bf16.")


def fused_flex_attention(*args: Any, **kwargs: Any) -> Tensor:
    """Calls ``flex_attention`` compiled, once for the process: one copy of it for training, one for other passes."""
    global _compiled_flex_attention
    if torch.compiler.is_compiling():  # the whole model is being compiled: this becomes part of it
        return flex_attention(*args, **kwargs)
    if _compiled_flex_attention is None:
        _compiled_flex_attention = compile_flex_attention()
    return _compiled_flex_attention[torch.is_grad_enabled()](*args, **kwargs)


def compile_flex_attention(backend: str = "inductor") -> dict[bool, Callable[..., Tensor]]:
    """``flex_attention`` compiled for passes with gradients (True), and a second time for those without (False).

    What has had several sizes torch compiles for all sizes, by the code that was called: if they shared it, texts of
    any length that are judged before the first step would cost training the kernel of its one length.

    ``fullgraph`` makes too many recompilations an error: without it torch would go on with the unfused version, S x S
    scores and all, and say nothing. The limits are raised (``VARIANTS``) because all models in a process share them.
    Forgetting what one model compiled would not do: the next is often the same one, trained for longer.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, VARIANTS)
    functions: dict[bool, Callable[..., Any]] = {True: flex_attention, False: _flex_attention_without_gradients}
    return {grad: torch.compile(function, backend=backend, fullgraph=True) for grad, function in functions.items()}


def _flex_attention_without_gradients(*args: Any, **kwargs: Any) -> Any:
    return flex_attention(*args, **kwargs)


# A kernel: q (B, H, S, D), k and v (B, G, T, D), the batch, the layer, a dropout probability -> (B, H, S, D).
KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Batch, Layer, float], Tensor]] = {
    "flex": flex,
    "flash2": flash2,
    "flash4": flash4,
    "sdpa": sdpa,
    "math": math,
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    n_heads: int,
    kv_n_heads: int,
    *,
    attn_impl: str,
    alibi: bool,
    attn_bias: Batch,
    softmax_scale: float,
    past_key_value: tuple[Tensor, Tensor] | tuple[()] | None = None,
    dropout_p: float = 0.0,
    training: bool = False,
    attn_logit_softcapping: float | None = None,
    sliding_window_size: int = -1,
    **_: Any,
) -> tuple[Tensor, None, tuple[Tensor, Tensor] | None]:
    """Computes attention for one of LLM Foundry's attention layers, in place of its ``attn_fn``.

    query is (B, S, H * D), key and value (B, S, G * D); gives (B, S, H * D), no attention weights, and the keys and
    values to cache, (B, T, G * D) each, as LLM Foundry's own flash attention lays them out. ``attn_impl`` and ``alibi``
    are bound when the model is built; the rest comes from the layer.

    Raises:
        ValueError: the device has no kernel that can do what the layer asks for.
    """
    if past_key_value is not None:
        if past_key_value:
            key = torch.cat([past_key_value[0], key], dim=1)  # (B, T, G * D)
            value = torch.cat([past_key_value[1], value], dim=1)
        past_key_value = (key, value)
    q = query.unflatten(2, (n_heads, -1)).transpose(1, 2)  # (B, H, S, D)
    k = key.unflatten(2, (kv_n_heads, -1)).transpose(1, 2)  # (B, G, T, D)
    v = value.unflatten(2, (kv_n_heads, -1)).transpose(1, 2)
    B, S, T = q.shape[0], q.shape[2], k.shape[2]
    attn_bias.check(B, S, T)
    window = sliding_window_size if sliding_window_size < T - 1 else -1  # a window over everything is none
    layer = Layer(softmax_scale, window, attn_logit_softcapping, alibi)
    dropout_p = dropout_p if training else 0.0
    name = attn_bias.once(
        ("kernel", attn_impl, layer, dropout_p > 0), lambda: _choose(attn_impl, attn_bias, layer, dropout_p, q)
    )
    out = KERNELS[name](q, k, v, attn_bias, layer, dropout_p)
    return out.transpose(1, 2).flatten(2), None, past_key_value  # (B, S, H * D)


def _choose(attn_impl: str, batch: Batch, layer: Layer, dropout_p: float, q: Tensor) -> str:
    """Resolves ``attn_impl`` on the device of q, and logs what that came to, once."""
    wanted = {
        "alibi": layer.alibi,
        "documents": batch.sequence_id is not None,
        "dropout": dropout_p > 0,
        "sliding_window": layer.window != -1,
        "softcap": layer.softcap is not None,
    }
    device = q.device.type
    name = backends.resolve(
        attn_impl,
        device,
        [feature for feature, used in wanted.items() if used],
        q.shape[3],
    )
    if (attn_impl, name, device) not in _announced and not torch.compiler.is_compiling():
        _announced.add((attn_impl, name, device))
        log.info("attention: %s → %s (%s)", attn_impl, name, device)
    return name
