"""Parameter counts and FLOPs against LLM Foundry's own model, built on the meta device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recipes.cost.architecture import model_shape
from recipes.cost.flops import (
    causal_flops_per_token,
    flops_per_token,
    llm_foundry_flops_per_token,
)
from recipes.cost.parameters import adapter_parameters, count_parameters

from .. import tiny

TORCH_ATTN = {"attn_impl": "torch"}
SMALL = {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 32, "vocab_size": 97}
MPT_7B_8K: dict[str, Any] = {
    "name": "mpt_causal_lm",
    "d_model": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "expansion_ratio": 4,
    "max_seq_len": 8192,
    "vocab_size": 50432,
    "no_bias": True,
    "attn_config": {"alibi": True},
}
LLAMA = {"no_bias": True, "norm_type": "rmsnorm", "tie_word_embeddings": False, "ffn_config": {"ffn_type": "mptglu"}}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": SMALL,
    "alibi_no_bias": {**SMALL, "no_bias": True, "attn_config": {"alibi": True}},
    "learned_positions_no_bias": {**SMALL, "no_bias": True},
    "untied": {**SMALL, "tie_word_embeddings": False},
    "no_positions": {**SMALL, "learned_pos_emb": False},
    "llama": {**SMALL, **LLAMA, "attn_config": {"alibi": True}},
    "llama_gqa_hidden_size": {
        **SMALL,
        **LLAMA,
        "ffn_config": {"ffn_type": "mptglu", "ffn_hidden_size": 176},
        "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "alibi": True},
    },
    "mqa": {**SMALL, "attn_config": {"attn_type": "multiquery_attention"}},
    "mqa_unfused": {**SMALL, "attn_config": {"attn_type": "multiquery_attention", "fused_qkv": False}},
    "qk_ln": {**SMALL, "attn_config": {"qk_ln": True}},
    "qk_ln_no_bias_gqa": {
        **SMALL,
        "no_bias": True,
        "attn_config": {"qk_ln": True, "attn_type": "grouped_query_attention", "kv_n_heads": 2},
    },
    "qk_gn": {**SMALL, "attn_config": {"qk_gn": True}},
    "attention_bias_only": {**SMALL, "no_bias": True, "attention_bias": True},
    "no_attention_bias": {**SMALL, "attention_bias": False},
    "rmsnorm_with_biases": {**SMALL, "norm_type": "low_precision_rmsnorm"},
    "glu_with_biases": {**SMALL, "ffn_config": {"ffn_type": "mptglu"}, "expansion_ratio": 2.5},
    "layernorm_upper_case": {**SMALL, "norm_type": "LayerNorm"},
    "head_dim": {**SMALL, "head_dim": 24, "attn_config": {"fused_qkv": False}},
    "reused_kv": {
        **SMALL,
        "attn_config": {"qk_ln": True},
        "block_overrides": {
            "order": [{"name": "default"}, {"order": [{"name": "reuse"}], "repeat": 2}],
            "overrides": {"reuse": {"attn_config": {"reuse_kv_layer_idx": -1}}},
        },
    },
}


def build(model: dict[str, Any]) -> Any:
    """LLM Foundry's model with no memory behind it."""
    from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

    config = {k: v for k, v in model.items() if k != "name"}
    config["attn_config"] = {**TORCH_ATTN, **config.get("attn_config", {})}
    return MPTForCausalLM(MPTConfig(**config, init_device="meta"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_count_equals_llm_foundry(name: str) -> None:
    model = build(CONFIGURATIONS[name])
    count = count_parameters(CONFIGURATIONS[name])

    assert count.total == sum(p.numel() for p in model.parameters())
    tables = [model.transformer.wte.weight, model.transformer.wpe.weight if model.transformer.learned_pos_emb else None]
    tables.append(model.lm_head.weight if model.lm_head is not None else None)
    assert count.embedding == sum(t.numel() for t in tables if t is not None)
    norms = sum(p.numel() for n, p in model.named_parameters() if "norm" in n or "_ln" in n)
    assert count.norms == norms
    assert count.ffn == sum(p.numel() for n, p in model.named_parameters() if ".ffn." in n)


@pytest.mark.parametrize("targets", [["Wqkv"], ["out_proj", "up_proj"], ["Wqkv", "down_proj", "gate_proj"]])
def test_adapters_equal_pefts(targets: list[str]) -> None:
    from recipes.training.lora import add_lora

    section = {**SMALL, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2}}
    section |= {"ffn_config": {"ffn_type": "mptglu"}}
    model, config = build(section), {"r": 4, "lora_alpha": 8, "target_modules": targets}
    add_lora(model, config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(model_shape(section), config) == trained > 0


def test_mpt_7b_8k() -> None:
    assert count_parameters(MPT_7B_8K).total == 6_649_286_656
    assert sum(p.numel() for p in build(MPT_7B_8K).parameters()) == 6_649_286_656


@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n != "reused_kv"])
def test_flops_equal_llm_foundry(name: str) -> None:
    import torch
    from llmfoundry.models.mpt.modeling_mpt import ComposerMPTCausalLM
    from llmfoundry.models.utils.mpt_param_count import mpt_get_active_params

    config = CONFIGURATIONS[name]
    model = build(config)
    wrapper = SimpleNamespace(model=model, config=model.config, parameters=model.parameters)
    wrapper.n_active_params = mpt_get_active_params(wrapper)
    wrapper.get_attention_flops = lambda length: ComposerMPTCausalLM.get_attention_flops(wrapper, length)  # type: ignore[arg-type]
    batch = {"input_ids": torch.zeros(5, 32, device="meta")}

    assert count_parameters(config).active == wrapper.n_active_params
    assert 5 * 32 * llm_foundry_flops_per_token(config, 32) == ComposerMPTCausalLM.flops_per_batch(wrapper, batch)  # type: ignore[arg-type]


def test_the_conventions_differ_by_half_the_attention() -> None:
    layers, d_model, seq_len = 32, 4096, 8192
    total = 6_649_286_656
    full = llm_foundry_flops_per_token(MPT_7B_8K, seq_len)
    assert full == 6 * total + 12 * layers * d_model * seq_len
    assert causal_flops_per_token(MPT_7B_8K, seq_len) == 6 * total + 6 * layers * d_model * seq_len


def test_flops_by_part_add_up() -> None:
    parts = flops_per_token(MPT_7B_8K, 8192)
    count = count_parameters(MPT_7B_8K)
    assert parts.matrix == 2 * (count.attention + count.ffn)
    assert parts.head == 2 * 50432 * 4096
    assert parts.attention == 32 * 4 * 4096 * 8192
    # 6 N counts the norms' weights, which take part in no matrix product: nothing else differs.
    forward = parts.matrix + parts.attention + parts.head
    assert llm_foundry_flops_per_token(MPT_7B_8K, 8192) - 3 * forward == 6 * count.norms


@pytest.mark.parametrize("model", [CONFIGURATIONS["reused_kv"], tiny.RWKV], ids=["reused_kv", "rwkv"])
def test_flops_are_those_of_the_matrices_that_there_are(model: dict[str, Any]) -> None:
    named = tiny.build(model).named_parameters()
    matrices = sum(p.numel() for name, p in named if p.dim() == 2 and "blocks" in name)
    assert flops_per_token(model, 32).matrix == 2 * matrices
