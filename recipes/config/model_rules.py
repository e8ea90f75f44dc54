"""What one key of a recipe's `model:` demands of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.config.keys import KeyPath
from recipes.config.sections import Finding, is_number, section
from recipes.cost.architecture import MODEL_DEFAULTS
from recipes.cost.parameters import count_parameters
from recipes.models.backends import CHOICES, features, refusals

MOST_LAYERS = 10_000
SCALED_BY = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # RoPE, by llama3


def _of(model: Mapping[str, Any], key: str) -> Any:
    """What the model is built with under a key."""
    return model.get(key, MODEL_DEFAULTS[key])


def _heads(model: Mapping[str, Any]) -> Iterator[Finding]:
    d_model, n_heads = _of(model, "d_model"), _of(model, "n_heads")
    attention = section(model, "attn_config")
    if is_number(d_model, n_heads) and (n_heads < 1 or d_model % n_heads):
        yield ("n_heads",), f"d_model {d_model} must be a multiple of n_heads, got {n_heads}"
    kind, kv_heads = attention.get("attn_type", "multihead_attention"), attention.get("kv_n_heads")
    if kind == "grouped_query_attention":
        if kv_heads is None:
            yield ("attn_config", "kv_n_heads"), "missing; grouped_query_attention needs the number of key-value heads"
        elif is_number(kv_heads, n_heads) and (kv_heads < 1 or n_heads % kv_heads):
            yield ("attn_config", "kv_n_heads"), f"n_heads {n_heads} must be a multiple of kv_n_heads, got {kv_heads}"
    elif kv_heads is not None:
        text = f"{kind} sets the number of key-value heads itself: remove kv_n_heads"
        yield ("attn_config", "kv_n_heads"), f"{text}, or set attn_type: grouped_query_attention"
    kv_dim = attention.get("kv_dim")
    if is_number(kv_dim, d_model) and kv_dim != d_model:
        text = f"got {kv_dim}, but keys and values are made of the same {d_model} numbers (d_model) as queries"
        yield ("attn_config", "kv_dim"), f"{text}: leave it out; fewer heads of them are attn_config.kv_n_heads"
    elif kv_dim is not None and attention.get("fused_qkv", True):
        yield ("attn_config", "kv_dim"), "needs projections of their own: set attn_config.fused_qkv: false"
    head_dim = model.get("head_dim")
    if (
        is_number(head_dim, d_model, n_heads)
        and attention.get("fused_qkv", True)
        and n_heads
        and head_dim * n_heads != d_model
    ):
        text = f"head_dim × n_heads = {head_dim * n_heads} is not d_model {d_model}"
        yield ("head_dim",), f"{text}, where the fused projection splits; set attn_config.fused_qkv: false"


def _positions(model: Mapping[str, Any]) -> Iterator[Finding]:
    attention = section(model, "attn_config")
    alibi, rope = attention.get("alibi"), attention.get("rope")
    if alibi and rope:
        yield ("attn_config", "rope"), "alibi and rope are both on: a model has one kind of positions, turn one off"
    if attention.get("qk_ln") and attention.get("qk_gn"):
        yield ("attn_config", "qk_gn"), "qk_ln and qk_gn are both on: turn one off"
    if section(attention, "attn_temperature_tuning").get("attn_scale") and attention.get("attn_uses_sequence_id"):
        text = "attn_scale counts positions along a row, not within its documents: turn attn_uses_sequence_id off"
        yield ("attn_config", "attn_temperature_tuning"), text
    shared: Any = attention.get("seq_parallel_world_size")
    if is_number(shared) and shared > 1:
        text = f"got {shared}, but LLM Foundry 0.22 cannot share a sequence among devices: leave it out"
        yield ("attn_config", "seq_parallel_world_size"), text
    window = attention.get("sliding_window_size", -1)
    if is_number(window) and window != -1 and window < 1:
        yield ("attn_config", "sliding_window_size"), f"got {window}, expected -1 (no window) or at least 1 token"


def _scaled_rope(model: Mapping[str, Any]) -> Iterator[Finding]:
    """Of llama3 LLM Foundry fills in a factor of 1, which would scale nothing; linear and dynamic need no more."""
    attention = section(model, "attn_config")
    scaling = section(attention, "rope_hf_config")
    if attention.get("rope") and attention.get("rope_impl") == "hf" and scaling.get("type") == "llama3":
        missing = [key for key in SCALED_BY if scaling.get(key) is None]
        if missing:
            text = f"type: llama3 needs {', '.join(missing)} too: copy them from the rope_scaling of its config.json"
            yield ("attn_config", "rope_hf_config"), text


def _of_other_blocks(model: Mapping[str, Any]) -> Iterator[Finding]:
    """What only some blocks can have, in which others stand before them."""
    attention = section(model, "attn_config")
    for key in ("reuse_kv_layer_idx", "reuse_kv_x_layer_idx"):
        if attention.get(key) is not None:
            text = "the first block has no block before it to take from: set it for others, in model.block_overrides"
            yield ("attn_config", key), text
    if attention.get("nope"):
        text = (
            "is for some blocks, in model.block_overrides; all without positions: leave it out, and alibi and rope off"
        )
        yield ("attn_config", "nope"), text


def _first_weights(model: Mapping[str, Any]) -> Iterator[Finding]:
    init = section(model, "init_config")
    if init.get("name") == "baseline_" and init.get("init_std") is None:
        yield ("init_config", "init_std"), "missing; baseline_ draws weights with this standard deviation, such as 0.02"
    limits = init.get("emb_init_uniform_lim")
    if isinstance(limits, list) and not (len(limits) == 2 and is_number(*limits)):
        yield ("init_config", "emb_init_uniform_lim"), f"got {limits}, expected a number, or the least and the most"


def _experts(model: Mapping[str, Any]) -> Iterator[Finding]:
    feed_forward = section(model, "ffn_config")
    if feed_forward.get("ffn_type") == "torch_dmoe" and feed_forward.get("moe_num_experts") is None:
        yield ("ffn_config", "moe_num_experts"), "missing; torch_dmoe needs the number of its experts"


def _ranges(model: Mapping[str, Any]) -> Iterator[Finding]:
    for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "expansion_ratio"):
        value: Any = model.get(name)
        if is_number(value) and value <= 0:
            yield (name,), f"got {value}, expected more than 0"
    probabilities: dict[KeyPath, Any] = {
        ("resid_pdrop",): model.get("resid_pdrop"),
        ("emb_pdrop",): model.get("emb_pdrop"),
        ("attn_config", "attn_pdrop"): section(model, "attn_config").get("attn_pdrop"),
    }
    for key, value in probabilities.items():
        if is_number(value) and not 0 <= value <= 1:
            yield key, f"got {value}, expected a probability between 0 and 1"


def _backend(model: Mapping[str, Any]) -> Iterator[Finding]:
    attention = section(model, "attn_config")
    implementation = attention.get("attn_impl", "flash")
    if implementation in CHOICES:
        for text in refusals(implementation, wanted=features(attention)):
            yield ("attn_config", "attn_impl"), text


def size(model: Mapping[str, Any]) -> Iterator[Finding]:
    layers = _of(model, "n_layers")
    if is_number(layers) and layers > MOST_LAYERS:
        yield ("n_layers",), f"got {layers:,}, which no machine holds; {MOST_LAYERS:,} at most"
        return
    is_dense = section(model, "ffn_config").get("ffn_type", "mptmlp") in ("mptmlp", "mptglu")
    if is_dense and not model.get("block_overrides"):
        try:
            count_parameters(model)
        except ValueError as error:
            yield (), f"cannot be built: {error}"


def target_problems(model: Mapping[str, Any]) -> list[str]:
    """What is wrong with `model.peft_config.target_modules`, in words: modules that the model does not have."""
    config = model.get("peft_config") or {}
    wanted = config.get("target_modules")
    there = modules_of(model)
    if not wanted or isinstance(wanted, str):
        return [f"got {wanted!r}, expected a list of some of {', '.join(there)}"]
    return [
        f"there is no module {name} in this model; it has {', '.join(there)}" for name in wanted if name not in there
    ]


def modules_of(model: Mapping[str, Any]) -> list[str]:
    """Names of the matrices in a block of the model that a `model:` section describes."""
    fused = (model.get("attn_config") or {}).get("fused_qkv", True)
    gated = (model.get("ffn_config") or {}).get("ffn_type") == "mptglu"
    attention = ["Wqkv"] if fused else ["Wq", "Wk", "Wv"]
    return [*attention, "out_proj", "up_proj", "down_proj", *(["gate_proj"] if gated else [])]


def _lora(model: Mapping[str, Any]) -> Iterator[Finding]:
    if model.get("peft_config"):
        for text in target_problems(model):
            yield ("peft_config", "target_modules"), text


MODEL_RULES = (
    _heads,
    _positions,
    _scaled_rope,
    _of_other_blocks,
    _first_weights,
    _experts,
    _ranges,
    _backend,
    _lora,
)
