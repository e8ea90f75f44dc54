"""The list of a model's tensors is the model's: names and shapes, of every kind that a recipe can be."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.weights.hf_names import own_shapes

from ..tiny import LLAMA, MPT, RWKV, build, with_changes

GROUPED = {"attn_config__attn_type": "grouped_query_attention", "attn_config__kv_n_heads": 2}


@pytest.mark.parametrize(
    "section",
    [
        MPT,
        with_changes(MPT, no_bias=False, attn_config={}, tie_word_embeddings=False),
        with_changes(MPT, attention_bias=True, attn_config__fused_qkv=False),
        with_changes(MPT, no_bias=False, attn_config__qk_ln=True, **GROUPED),
        with_changes(MPT, attn_config__qk_gn=True),
        with_changes(LLAMA, head_dim=16, attn_config__fused_qkv=False, **GROUPED),
        with_changes(LLAMA, no_bias=False, ffn_config__ffn_type="mptmlp"),
        RWKV,
    ],
)
def test_every_tensor_is_listed(section: dict[str, Any]) -> None:
    assert own_shapes(section) == {name: tuple(p.shape) for name, p in build(section).named_parameters()}
