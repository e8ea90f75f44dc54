"""What an MPT-style model or its RWKV relative is made of, read from its `model:` mapping alone.

The keys and their defaults are LLM Foundry's (`llmfoundry.models.mpt.MPTConfig`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.spelling import did_you_mean

MPT = "mpt_causal_lm"  # LLM Foundry's name: MPT, and LLaMA as a configuration of it
RWKV = "rwkv_causal_lm"
OURS = (MPT, RWKV)  # the models that this project builds itself, by `model.name`
# LLM Foundry's defaults (MPTConfig.__init__ and models/utils/config_defaults.py) for the keys that change a shape.
MODEL_DEFAULTS: Mapping[str, Any] = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "head_dim": None,  # d_model // n_heads
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "learned_pos_emb": True,
    "no_bias": False,
    "attention_bias": None,  # not no_bias
    "norm_type": "low_precision_layernorm",
    "tie_word_embeddings": True,
    "block_overrides": None,
}
ATTN_DEFAULTS: Mapping[str, Any] = {
    "attn_type": "multihead_attention",
    "kv_n_heads": None,  # required by grouped_query_attention
    "kv_dim": None,
    "qk_ln": False,
    "qk_gn": False,
    "fused_qkv": True,
    "alibi": False,
    "rope": False,
    "sliding_window_size": -1,
    "reuse_kv_layer_idx": None,
}

NORM_HAS_BIAS: Mapping[str, bool] = {
    "layernorm": True,
    "low_precision_layernorm": True,
    "rmsnorm": False,
    "low_precision_rmsnorm": False,
    "triton_rmsnorm": False,
}
FFN_MATRICES: Mapping[str, int] = {"mptmlp": 2, "mptglu": 3}  # up, down; the gated one adds a gate
ATTN_TYPES = ("multihead_attention", "multiquery_attention", "grouped_query_attention")


@dataclass(frozen=True)
class ModelShape:
    """The numbers that decide an MPT-style model's size, with every default filled in."""

    d_model: int
    n_heads: int
    n_layers: int
    head_dim: int
    max_seq_len: int
    vocab_size: int
    kv_n_heads: int
    kv_dim: int
    ffn_hidden_size: int
    ffn_matrices: int
    norm_has_bias: bool
    learned_pos_emb: bool
    tie_word_embeddings: bool
    bias: bool  # of out_proj, ffn and norms
    attention_bias: bool  # of the QKV projections
    qk_ln: bool
    qk_gn: bool
    layers_reusing_kv: int
    attention_layers: int
    attends: bool = True  # False for RWKV, whose tokens have no scores with each other

    @property
    def q_width(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_n_heads * self.head_dim


def model_shape(model: Mapping[str, Any]) -> ModelShape:
    """Fills LLM Foundry's defaults into a `model:` mapping and checks what can be checked without building it."""
    name = model.get("name")
    if name == RWKV:
        return _rwkv_shape(model)
    if name is not None and not str(name).startswith("mpt"):
        raise ValueError(
            f"model.name: cannot count the parameters of {name!r}; expected an MPT-style model such as "
            "'mpt_causal_lm'. A model of another kind has no plan."
        )
    values = {**MODEL_DEFAULTS, **{k: v for k, v in model.items() if k in MODEL_DEFAULTS}}
    attn = {**ATTN_DEFAULTS, **(model.get("attn_config") or {})}
    ffn = {"ffn_type": "mptmlp", "ffn_hidden_size": None, **(model.get("ffn_config") or {})}

    d_model = positive_integer("model.d_model", values["d_model"])
    n_heads = positive_integer("model.n_heads", values["n_heads"])
    n_layers = positive_integer("model.n_layers", values["n_layers"])
    if d_model % n_heads:
        raise ValueError(f"model.d_model: got {d_model}, which n_heads={n_heads} does not divide; change one of them.")
    if attn["qk_ln"] and attn["qk_gn"]:
        raise ValueError("model.attn_config: qk_ln and qk_gn are both true; set one of them to false.")
    head_dim = d_model // n_heads
    if values["head_dim"] is not None:
        head_dim = positive_integer("model.head_dim", values["head_dim"])
    layers = [{**attn, **(override or {})} for override in _attn_overrides(values["block_overrides"], n_layers)]
    bias = not values["no_bias"]
    return ModelShape(
        d_model=d_model,
        n_heads=n_heads,
        n_layers=n_layers,
        head_dim=head_dim,
        max_seq_len=positive_integer("model.max_seq_len", values["max_seq_len"]),
        vocab_size=positive_integer("model.vocab_size", values["vocab_size"]),
        kv_n_heads=_kv_heads(attn, n_heads),
        kv_dim=d_model if attn["kv_dim"] is None else positive_integer("model.attn_config.kv_dim", attn["kv_dim"]),
        ffn_hidden_size=_ffn_hidden_size(ffn["ffn_hidden_size"], values["expansion_ratio"], d_model),
        ffn_matrices=FFN_MATRICES[_choice("ffn_config.ffn_type", ffn["ffn_type"], FFN_MATRICES)],
        norm_has_bias=NORM_HAS_BIAS[_choice("norm_type", str(values["norm_type"]).lower(), NORM_HAS_BIAS)],
        learned_pos_emb=bool(values["learned_pos_emb"]) and not (attn["alibi"] or attn["rope"]),
        tie_word_embeddings=bool(values["tie_word_embeddings"]),
        bias=bias,
        attention_bias=bias if values["attention_bias"] is None else bool(values["attention_bias"]),
        qk_ln=bool(attn["qk_ln"]),
        qk_gn=bool(attn["qk_gn"]),
        layers_reusing_kv=sum(layer["reuse_kv_layer_idx"] is not None for layer in layers),
        attention_layers=len(layers),
    )


def _rwkv_shape(model: Mapping[str, Any]) -> ModelShape:
    """RWKV's keys are MPT's of the same name; its four matrices of time mixing stand where QKV and the output do."""
    values = {**MODEL_DEFAULTS, **{k: v for k, v in model.items() if k in MODEL_DEFAULTS and v is not None}}
    d_model = positive_integer("model.d_model", values["d_model"])
    return ModelShape(
        d_model=d_model,
        n_heads=1,
        n_layers=positive_integer("model.n_layers", values["n_layers"]),
        head_dim=d_model,
        max_seq_len=positive_integer("model.max_seq_len", values["max_seq_len"]),
        vocab_size=positive_integer("model.vocab_size", values["vocab_size"]),
        kv_n_heads=1,
        kv_dim=d_model,
        ffn_hidden_size=_ffn_hidden_size(None, values["expansion_ratio"], d_model, tolerance=1e-6),
        ffn_matrices=2,
        norm_has_bias=True,
        learned_pos_emb=False,
        tie_word_embeddings=False,
        bias=False,
        attention_bias=False,
        qk_ln=False,
        qk_gn=False,
        layers_reusing_kv=0,
        attention_layers=0,
        attends=False,
    )


def _kv_heads(attn: Mapping[str, Any], n_heads: int) -> int:
    attn_type = _choice("attn_config.attn_type", attn["attn_type"], ATTN_TYPES)
    if attn_type == "multihead_attention":
        return n_heads
    if attn_type == "multiquery_attention":
        return 1
    if attn["kv_n_heads"] is None:
        raise ValueError("model.attn_config.kv_n_heads: missing; grouped_query_attention needs it, e.g. kv_n_heads: 8.")
    kv_n_heads = positive_integer("model.attn_config.kv_n_heads", attn["kv_n_heads"])
    if n_heads % kv_n_heads:
        raise ValueError(f"model.attn_config.kv_n_heads: got {kv_n_heads}, expected a divisor of n_heads={n_heads}.")
    return kv_n_heads


def _ffn_hidden_size(hidden_size: Any, expansion_ratio: Any, d_model: int, tolerance: float = 0.0) -> int:
    if hidden_size is not None:
        return positive_integer("model.ffn_config.ffn_hidden_size", hidden_size)
    product = d_model * expansion_ratio
    if abs(product - round(product)) > tolerance or product <= 0:
        raise ValueError(
            f"model.expansion_ratio: {expansion_ratio} times d_model={d_model} is {product}, expected a positive "
            "integer; change it or state ffn_config.ffn_hidden_size."
        )
    return round(product)


def _attn_overrides(block_overrides: Mapping[str, Any] | None, n_layers: int) -> list[Mapping[str, Any] | None]:
    """One `attn_config` override a layer, in order (None for a default layer)."""
    if not block_overrides:
        return [None] * n_layers
    overrides = block_overrides.get("overrides", {})

    def expand(section: Mapping[str, Any]) -> list[str]:
        names = (
            [section["name"]] if "name" in section else [n for item in section.get("order", []) for n in expand(item)]
        )
        repeat = section.get("repeat", 1)
        if len(names) * repeat > n_layers:
            raise ValueError(f"model.block_overrides: order names more layers than n_layers={n_layers}.")
        return names * repeat

    names = expand(block_overrides)
    if len(names) != n_layers:
        raise ValueError(f"model.block_overrides: order names {len(names)} layers, expected n_layers={n_layers}.")
    for name in names:
        if name != "default":
            _choice("block_overrides.order", name, [*overrides, "default"])
    return [None if name == "default" else overrides[name].get("attn_config", {}) for name in names]


def _choice(key: str, got: Any, choices: Iterable[str]) -> str:
    choices = list(choices)
    if got in choices:
        return str(got)
    hint = did_you_mean(got, choices)
    raise ValueError(f"model.{key}: got {got!r}, expected one of {', '.join(choices)}{hint}")


def positive_integer(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value <= 0:
        raise ValueError(f"{key}: got {value!r}, expected a positive integer.")
    return int(value)
