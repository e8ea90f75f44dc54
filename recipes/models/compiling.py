"""Blocks compiled one by one, and activation checkpointing by operation: what is done to a model before it trains."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from composer.distributed.activation_checkpointing import apply_ac, generate_composer_model_check_fn
from llmfoundry.models.layers.attention import GroupedQueryAttention
from llmfoundry.models.layers.blocks import MPTBlock
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from recipes.models.rwkv_blocks import RwkvBlock

# What selective checkpointing keeps: products and attention. The rest (norms, activations, residuals) is cheap again.
_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of an MPT or RWKV model, in order."""
    return [module for module in model.modules() if isinstance(module, (MPTBlock, RwkvBlock))]


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compiles each block's forward pass, and so its backward.

    All blocks share what is compiled once. Attention stays outside: it has kernels of its own (FlexAttention's is
    compiled by itself), and masks that differ from batch to batch would be reasons to compile again. FSDP's and
    checkpointing's hooks stay outside as well; names of parameters do not change.
    """
    # DDP sends gradients while others are computed. A block at a time is fine enough for that; torch would cut a
    # block's graph in two where a bucket of gradients ends, and fuse nothing across the cut.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks(model):
        for layer in block.modules():
            if isinstance(layer, GroupedQueryAttention):
                layer.attn_fn = torch.compiler.disable(layer.attn_fn)
        block.not_compiled = block.forward  # type: ignore[assignment]
        block.forward = torch.compile(block.forward, backend=backend)  # type: ignore[method-assign]


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, blocks that were compiled run as they were written.

    For passes of any length and with kept keys and values, as tasks make: each would be compiled by itself, and fill
    the number of variants of a function beyond which torch compiles no more, not even the training step.
    """
    compiled = {block: block.forward for block in blocks(model) if hasattr(block, "not_compiled")}
    for block in compiled:
        block.forward = block.not_compiled  # type: ignore[assignment]
    try:
        yield
    finally:
        for block, forward in compiled.items():
            block.forward = forward


def checkpoint_blocks(model: nn.Module) -> None:
    """Keeps only the input of what the model names for it (its blocks), as Composer does where it shards a model."""
    apply_ac(model, True, False, generate_composer_model_check_fn(model))


def checkpoint_by_operation(model: nn.Module) -> None:
    """Keeps only the outputs of ``KEPT`` operations of each block for the backward pass.

    Between no checkpointing and a whole block's: the memory of norms and activations is saved, and recomputing them
    costs no matrix product. FlexAttention's compiled kernel cannot be seen from here and runs again.
    """
    for block in blocks(model):
        block.forward = functools.partial(_checkpointed, block.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
