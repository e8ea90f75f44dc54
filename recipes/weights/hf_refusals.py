"""What of a recipe's `model:` section transformers' own classes do not compute, naming the keys. Pure Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.cost.architecture import OURS, ModelShape, model_shape
from recipes.weights.hf_architecture import ACTIVATIONS, CLASSES, activation, computed_more, family_of, get, scale
from recipes.weights.trained import HF_MODEL

# Writes a folder of any model, but for the adapters of mpt_causal_lm
THROUGH_LLM_FOUNDRY = (
    "`python train.py RECIPE only_hf_checkpoint=true load_path=CHECKPOINT "
    "callbacks.hf_checkpointer='{save_folder: OUT, save_interval: 1dur}'`"
)


def refusals(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, why) for everything in a `model:` section that transformers' class of its family does not compute."""
    if model.get("name") == HF_MODEL:
        text = f"the adapters of {HF_MODEL} are peft's own, and lie in the checkpoint without the model they change"
        return [("model.peft_config", text)] if model.get("peft_config") else []
    if model.get("name") not in (None, *OURS):
        return [("model.name", f"got {model['name']}, expected {', '.join(OURS)} or {HF_MODEL}")]
    family = family_of(model)
    if family == "rwkv":
        return []
    said = CLASSES[family]
    found = [
        (f"model.{key}", f"got {value!r}, which {said} does not compute") for key, value in computed_more(model).items()
    ]
    ffn_type = get(model, "ffn_config.ffn_type", "mptmlp")
    if ffn_type not in ("mptmlp", "mptglu"):
        return [*found, ("model.ffn_config.ffn_type", f"got {ffn_type!r}, which {said} does not have")]
    try:
        shape = model_shape(model)
    except ValueError as error:  # a layer that the user's own code registers
        key, _, why = str(error).partition(": ")
        return [*found, (key, why)]
    if shape.kv_dim != shape.d_model:
        found.append(("model.attn_config.kv_dim", f"got {shape.kv_dim}, but {said} reads keys from d_model"))
    found += _mpt_refusals(model, shape) if family == "mpt" else _llama_refusals(model, shape)
    return found


def _mpt_refusals(model: Mapping[str, Any], shape: ModelShape) -> Iterator[tuple[str, str]]:
    said = CLASSES["mpt"]
    if not get(model, "attn_config.alibi"):
        yield "model.attn_config.alibi", f"got false, but {said} has ALiBi and no other positions"
    bias_max = get(model, "attn_config.alibi_bias_max", 8)
    if bias_max != 8:
        yield "model.attn_config.alibi_bias_max", f"got {bias_max}, but {said} always computes with 8"
    if shape.bias:
        yield "model.no_bias", f"got false, but {said} has no biases"
    elif shape.attention_bias:
        yield "model.attention_bias", f"got true, but {said} has no biases"
    if shape.kv_n_heads != shape.n_heads:
        key = "kv_n_heads" if get(model, "attn_config.kv_n_heads") else "attn_type"
        text = f"got {shape.kv_n_heads} key-value heads for {shape.n_heads} query heads, but {said} has as many of each"
        yield f"model.attn_config.{key}", text
    if shape.ffn_hidden_size != 4 * shape.d_model:
        key = "ffn_config.ffn_hidden_size" if get(model, "ffn_config.ffn_hidden_size") else "expansion_ratio"
        yield (
            f"model.{key}",
            f"got a width of {shape.ffn_hidden_size}, but {said} has 4 × d_model = {4 * shape.d_model}",
        )
    if activation(model) != "gelu":
        yield (
            "model.ffn_config.ffn_act_fn",
            f"got {get(model, 'ffn_config.ffn_act_fn')}, but {said} has the exact gelu",
        )
    if shape.head_dim * shape.n_heads != shape.d_model:
        yield "model.head_dim", f"got {shape.head_dim}, but {said} has d_model / n_heads"


def _llama_refusals(model: Mapping[str, Any], shape: ModelShape) -> Iterator[tuple[str, str]]:
    said = CLASSES["llama"]
    if not get(model, "attn_config.rope"):
        yield "model.attn_config.rope", f"got false, but {said} has RoPE and no other positions"
    if get(model, "attn_config.rope_impl", "dail") == "dail":
        kind = get(model, "attn_config.rope_dail_config.type", "original")
        if kind != "original":
            yield "model.attn_config.rope_dail_config.type", f"got {kind}, which {said} does not have"
    if shape.norm_has_bias:
        yield "model.norm_type", f"got {get(model, 'norm_type', 'low_precision_layernorm')}, but {said} has RMSNorm"
    if shape.ffn_matrices != 3:
        yield "model.ffn_config.ffn_type", f"got mptmlp, but {said} has the gated mptglu"
    if activation(model) is None:
        text = f"got {get(model, 'ffn_config.ffn_act_fn')}; {said} can have {', '.join(ACTIVATIONS)}"
        yield "model.ffn_config.ffn_act_fn", text
    if shape.bias != shape.attention_bias:
        yield "model.attention_bias", f"got {str(shape.attention_bias).lower()} beside no_bias: {said} has both or none"
    if get(model, "attn_config.clip_qkv"):
        yield "model.attn_config.clip_qkv", f"got {get(model, 'attn_config.clip_qkv')}, but {said} does not clip"
    found = scale(model, shape.d_model, shape.n_heads)
    if abs(found - shape.head_dim**-0.5) > 1e-12:
        yield "model.attn_config.softmax_scale", f"is {found}, but {said} has head_dim ** -0.5 = {shape.head_dim**-0.5}"
