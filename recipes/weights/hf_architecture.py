"""One architecture, two spellings: the recipe's `model:` keys, and the config.json of transformers' own classes.

Three families can be spelled in transformers without remote code: MPT with ALiBi (`MptForCausalLM`), LLaMA
(`LlamaForCausalLM`) and RWKV-4 (`RwkvForCausalLM`, in hf_rwkv.py). `architecture` and `architecture_of_folder`
describe a model by the same dotted keys, so that two can be compared. What cannot be said is in hf_refusals.py, the
tensors are in hf_names.py. Pure Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes.config.model_rules import SCALED_BY
from recipes.cost.architecture import RWKV, model_shape
from recipes.weights import hf_rwkv

CLASSES = {"mpt": "MptForCausalLM", "llama": "LlamaForCausalLM", "rwkv": hf_rwkv.CLASS}
ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "relu": "relu"}  # torch.nn.functional's names and transformers'
ROPE_TYPES = {"no_scaling": None, "linear": "linear", "dynamic": "dynamic", "llama3": "llama3"}
AS_NO_BIAS = "what no_bias says"  # so that one key is to be changed on purpose, not two

# What neither class computes, and the values that mean "off". Dropout and packed documents are the training's business.
OFF: Mapping[str, tuple[Any, ...]] = {
    "logit_scale": (None,),
    "final_logit_softcapping": (None,),
    "block_overrides": (None,),
    "fuse_norm_attn_norm": (None, False),
    "attn_config.qk_ln": (None, False),
    "attn_config.qk_gn": (None, False),
    "attn_config.attn_logit_softcapping": (None,),
    "attn_config.sliding_window_size": (None, -1),
    "attn_config.reuse_kv_layer_idx": (None,),
    "attn_config.reuse_kv_x_layer_idx": (None,),
    "attn_config.attn_temperature_tuning.attn_scale": (None, 0, 0.0),
}


def get(model: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The value under a dotted key; the default where it, or a section of the way, is missing or null."""
    value: Any = model
    for part in key.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            return default
        value = value[part]
    return value


def family_of(model: Mapping[str, Any]) -> str:
    """`rwkv` by its name, `llama` for what only LLaMA has (RoPE, RMSNorm, a gated feed-forward part), else `mpt`."""
    if model.get("name") == RWKV:
        return "rwkv"
    is_llama = (
        get(model, "attn_config.rope")
        or "rms" in str(get(model, "norm_type", "")).lower()
        or get(model, "ffn_config.ffn_type") == "mptglu"
    )
    return "llama" if is_llama else "mpt"


def computed_more(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of what neither class computes, the keys that are on, in a `model:` section or LLM Foundry's own config.json."""
    return {key: get(model, key) for key, off in OFF.items() if get(model, key) not in off}


def architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a model's numbers, by dotted keys of the recipe, defaults filled in, for what is not refused."""
    shape, family = model_shape(model), family_of(model)
    if family == "rwkv":
        return hf_rwkv.architecture(model)
    found: dict[str, Any] = {
        "family": family,
        "d_model": shape.d_model,
        "n_heads": shape.n_heads,
        "n_layers": shape.n_layers,
        "vocab_size": shape.vocab_size,
        "norm_eps": float(get(model, "norm_eps", 1e-5)),
        "tie_word_embeddings": shape.tie_word_embeddings,
        "no_bias": not shape.bias,
        "attention_bias": AS_NO_BIAS if shape.attention_bias == shape.bias else shape.attention_bias,
        "head_dim": shape.head_dim,
        "attn_config.alibi": bool(get(model, "attn_config.alibi")),
        "attn_config.rope": bool(get(model, "attn_config.rope")),
        "attn_config.kv_n_heads": shape.kv_n_heads,
        "attn_config.kv_dim": shape.kv_dim,
        "attn_config.fused_qkv": get(model, "attn_config.fused_qkv", True),
        "ffn_config.ffn_type": "mptglu" if shape.ffn_matrices == 3 else "mptmlp",
        "ffn_config.ffn_hidden_size": shape.ffn_hidden_size,
        "norm_type": _norm(model),
        "learned_pos_emb": shape.learned_pos_emb,
        "ffn_config.ffn_act_fn": _activation_said(model),
        "attn_config.clip_qkv": get(model, "attn_config.clip_qkv"),
        "attn_config.softmax_scale": scale(model, shape.d_model, shape.n_heads),
    }
    if found["attn_config.alibi"]:
        found["attn_config.alibi_bias_max"] = get(model, "attn_config.alibi_bias_max", 8)
    if found["attn_config.rope"]:
        found["attn_config.rope_theta"] = float(get(model, "attn_config.rope_theta", 10000))
        found["attn_config.rope_hf_config"] = _rope_scaling(model)
        found |= _rope_dail(model)
    if get(model, "attn_config.attn_temperature_tuning.attn_scale"):
        key = "attn_config.attn_temperature_tuning.floor_scale"
        found[key] = get(model, key, 8192)  # LLM Foundry's default
    is_dynamic = (found.get("attn_config.rope_hf_config") or {}).get("rope_type") == "dynamic"  # beyond this length
    if found["learned_pos_emb"] or is_dynamic:
        found["max_seq_len"] = shape.max_seq_len
    return found


def activation(model: Mapping[str, Any]) -> str | None:
    """transformers' name of the feed-forward part's activation; None where it has none."""
    function = get(model, "ffn_config.ffn_act_fn", {"name": "gelu"})
    extra = {key: value for key, value in function.items() if key != "name" and (key, value) != ("approximate", "none")}
    return None if extra else ACTIVATIONS.get(str(function.get("name")))


def scale(model: Mapping[str, Any], d_model: int, n_heads: int) -> float:
    """What scores are multiplied by before the softmax."""
    return float(get(model, "attn_config.softmax_scale") or (d_model / n_heads) ** -0.5)


def _norm(model: Mapping[str, Any]) -> str:
    return "rmsnorm" if "rms" in str(get(model, "norm_type", "")).lower() else "layernorm"


def _activation_said(model: Mapping[str, Any]) -> str:
    return activation(model) or str(get(model, "ffn_config.ffn_act_fn"))


def _rope_scaling(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """transformers' `rope_scaling`; None for plain RoPE."""
    if get(model, "attn_config.rope_impl", "dail") != "hf":
        return None
    config = get(model, "attn_config.rope_hf_config", {})
    kind = ROPE_TYPES[config.get("type", "no_scaling")]
    if kind is None:
        return None
    return {"rope_type": kind, "factor": 1.0, **{k: config[k] for k in SCALED_BY if k in config}}  # 1: LLM Foundry's


def _rope_dail(model: Mapping[str, Any]) -> dict[str, Any]:
    """What flash-attn's own RoPE may compute beside the plain one, which it shares with transformers'."""
    is_dail = get(model, "attn_config.rope_impl", "dail") == "dail"
    kind = get(model, "attn_config.rope_dail_config.type", "original") if is_dail else "original"
    found = {"attn_config.rope_dail_config.type": kind}
    if kind == "xpos":
        key = "attn_config.rope_dail_config.xpos_scale_base"
        found[key] = get(model, key, 512)
    return found


def architecture_of_folder(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, from the config.json of a Hugging Face folder.

    Raises:
        ValueError: a model of another kind, or a size that is missing or no size; to be read behind "FOLDER holds".
    """
    kind = config.get("model_type")
    if kind not in CLASSES:
        raise ValueError(
            f"a model of type {kind!r}; expected {' or '.join(CLASSES)}, which are the families known here"
        )
    try:
        return _READERS[kind](config)
    except KeyError as error:
        raise ValueError(f"a config.json without {error.args[0]}") from None
    except hf_rwkv.NotSaid as error:
        raise ValueError(f"an RWKV model with {error}, which is not known here") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"a config.json with a value of another kind than expected ({error})") from None


def _read_mpt(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of transformers' own MPT, and of what LLM Foundry writes under the same name."""
    said = {
        "no_bias": True,
        "learned_pos_emb": False,
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        **{key: value for key, value in config.items() if key != "name"},
        **{key: config[key] for key in ("d_model", "n_heads", "n_layers", "vocab_size")},  # KeyError without
        "attn_config": {"alibi": True, **(config.get("attn_config") or {})},
    }
    found = {**architecture(said), "family": "mpt"}
    del found["attn_config.fused_qkv"]  # the recipe's may be either
    return found


def _read_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config["num_attention_heads"]
    scaling = dict(config.get("rope_scaling") or {})
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    kind = scaling.pop("rope_type", scaling.pop("type", None))
    length = {"max_seq_len": config.get("max_position_embeddings", 2048)} if kind == "dynamic" else {}
    return {
        **length,
        "family": "llama",
        "d_model": config["hidden_size"],
        "n_heads": heads,
        "n_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "no_bias": not config.get("attention_bias", False),
        "attention_bias": AS_NO_BIAS,
        "head_dim": head_dim,
        "attn_config.alibi": False,
        "attn_config.rope": True,
        "attn_config.kv_n_heads": config.get("num_key_value_heads") or heads,
        "attn_config.kv_dim": config["hidden_size"],
        "norm_type": "rmsnorm",
        "learned_pos_emb": False,
        "attn_config.softmax_scale": head_dim**-0.5,
        "ffn_config.ffn_type": "mptglu",
        "ffn_config.ffn_hidden_size": config["intermediate_size"],
        "ffn_config.ffn_act_fn": config.get("hidden_act", "silu"),
        "attn_config.clip_qkv": None,
        "attn_config.rope_dail_config.type": "original",
        "attn_config.rope_theta": float(config.get("rope_theta", 10000)),
        "attn_config.rope_hf_config": {"rope_type": kind, **scaling} if kind not in (None, "default") else None,
    }


def not_computed(config: Mapping[str, Any]) -> list[str]:
    """The keys of an MPT folder's config.json that transformers' own class passes over without a word.

    LLM Foundry writes them, its hf_checkpointer among others, for code of its own that lies beside the weights.
    """
    what = _read_mpt(config)
    computed = {
        "attn_config.alibi": (True,),
        "attn_config.rope": (False,),
        "attn_config.alibi_bias_max": (8,),
        "attn_config.kv_n_heads": (what["n_heads"],),
        "norm_type": ("layernorm",),
        "norm_eps": (float(config.get("layer_norm_epsilon", 1e-5)),),
        "ffn_config.ffn_act_fn": ("gelu",),
    }
    return [
        *computed_more(config),
        *(key for key, values in computed.items() if what.get(key, values[0]) not in values),
    ]


_READERS = {"mpt": _read_mpt, "llama": _read_llama, "rwkv": hf_rwkv.architecture_of_folder}


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def folder_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture keys of config.json for a `model:` section that `refusals` lets through."""
    if family_of(model) == "rwkv":
        return hf_rwkv.folder_config(model)
    what = architecture(model)
    length = model_shape(model).max_seq_len
    if what["family"] == "mpt":
        return {
            "architectures": [CLASSES["mpt"]],
            "model_type": "mpt",
            "d_model": what["d_model"],
            "n_heads": what["n_heads"],
            "n_layers": what["n_layers"],
            "expansion_ratio": 4,
            "max_seq_len": length,
            "vocab_size": what["vocab_size"],
            "layer_norm_epsilon": what["norm_eps"],
            "learned_pos_emb": False,
            "no_bias": True,
            "norm_type": get(model, "norm_type", "low_precision_layernorm"),
            "tie_word_embeddings": what["tie_word_embeddings"],
            "attn_config": {
                "attn_type": "multihead_attention",
                # transformers 5 takes a whole number for the first and fractions for the others alone
                "attn_pdrop": 0,
                "clip_qkv": _float(what["attn_config.clip_qkv"]),
                "softmax_scale": _float(get(model, "attn_config.softmax_scale")),
                "alibi": True,
                "alibi_bias_max": 8,
            },
        }
    return {
        "architectures": [CLASSES["llama"]],
        "model_type": "llama",
        "hidden_size": what["d_model"],
        "intermediate_size": what["ffn_config.ffn_hidden_size"],
        "num_hidden_layers": what["n_layers"],
        "num_attention_heads": what["n_heads"],
        "num_key_value_heads": what["attn_config.kv_n_heads"],
        "head_dim": what["head_dim"],
        "hidden_act": what["ffn_config.ffn_act_fn"],
        "max_position_embeddings": length,
        "vocab_size": what["vocab_size"],
        "rms_norm_eps": what["norm_eps"],
        "rope_theta": what["attn_config.rope_theta"],
        "rope_scaling": what["attn_config.rope_hf_config"],
        "attention_bias": not what["no_bias"],
        "mlp_bias": not what["no_bias"],
        "tie_word_embeddings": what["tie_word_embeddings"],
    }
