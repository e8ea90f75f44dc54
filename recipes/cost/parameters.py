"""Exact parameter counts of an MPT-style model or its RWKV relative, from its `model:` mapping alone.

Any `model:` section with `name: mpt_causal_lm` or `rwkv_causal_lm` can be counted; the tests compare with the real
model on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.cost.architecture import ModelShape, model_shape, positive_integer


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part. The parts add up to `total`."""

    token_embedding: int
    position_embedding: int
    head: int  # 0 when tied: the token embedding is used again
    attention: int
    ffn: int
    norms: int

    @property
    def total(self) -> int:
        return self.embedding + self.non_embedding

    @property
    def embedding(self) -> int:
        """Token and position tables and an untied head: what "non-embedding parameters" leaves out."""
        return self.token_embedding + self.position_embedding + self.head

    @property
    def non_embedding(self) -> int:
        return self.attention + self.ffn + self.norms

    @property
    def active(self) -> int:
        """LLM Foundry's `n_active_params`: an untied token table is a lookup, so it is not counted."""
        return self.total - (self.token_embedding if self.head else 0)


def count_parameters(model: Mapping[str, Any]) -> ParameterCount:
    """Counts the parameters of the model that a `model:` mapping describes.

    With H = n_heads * head_dim, K = kv_n_heads * head_dim, d = d_model, F = ffn hidden size, per layer:
    attention d*(H + 2K) + H*d, ffn 2*d*F (`mptmlp`) or 3*d*F (`mptglu`), two norms of d, plus biases; and once:
    vocab_size*d, max_seq_len*d (learned positions), vocab_size*d (untied head), a norm of d.
    Source: llmfoundry 0.22 models/mpt/modeling_mpt.py, models/layers/{attention,ffn,blocks,norm}.py.

    Raises:
        ValueError: an unknown model, attention, ffn or norm type, or a size that is not a positive integer.
    """
    s = model_shape(model)
    if not s.attends:
        return _count_rwkv(s)
    norm_bias = s.norm_has_bias and s.bias

    def norm(width: int) -> int:
        return width * (2 if norm_bias else 1)

    def linear(width_in: int, width_out: int, bias: bool) -> int:
        return width_in * width_out + (width_out if bias else 0)

    query = linear(s.d_model, s.q_width, s.attention_bias)
    key_value = 2 * linear(s.kv_dim, s.kv_width, s.attention_bias)
    out = linear(s.q_width, s.d_model, s.bias)
    attention = s.n_layers * (query + out) + (s.n_layers - s.layers_reusing_kv) * key_value
    ffn_layer = (s.ffn_matrices - 1) * linear(s.d_model, s.ffn_hidden_size, s.bias)
    ffn_layer += linear(s.ffn_hidden_size, s.d_model, s.bias)
    q_norm = k_norm = 0
    if s.qk_ln:
        q_norm, k_norm = norm(s.q_width), norm(s.kv_width)
    elif s.qk_gn:
        q_norm = k_norm = norm(s.head_dim)
    norms = s.n_layers * (2 * norm(s.d_model) + q_norm) + (s.n_layers - s.layers_reusing_kv) * k_norm + norm(s.d_model)
    return ParameterCount(
        token_embedding=s.vocab_size * s.d_model,
        position_embedding=s.max_seq_len * s.d_model if s.learned_pos_emb else 0,
        head=0 if s.tie_word_embeddings else s.vocab_size * s.d_model,
        attention=attention,
        ffn=s.n_layers * ffn_layer,
        norms=norms,
    )


def _count_rwkv(s: ModelShape) -> ParameterCount:
    """2 V d + 13 d² L + d (11 L + 4) with F = 4 d (Peng et al. 2023, arXiv 2305.13048, section 4.1)."""
    d, layers, embedding = s.d_model, s.n_layers, s.vocab_size * s.d_model
    return ParameterCount(
        token_embedding=embedding,
        position_embedding=0,
        head=embedding,
        attention=layers * (4 * d * d + 5 * d),  # key, value, receptance, output; decay, bonus and three mixes
        ffn=layers * (2 * d * s.ffn_hidden_size + d * d + 2 * d),  # key, value, receptance; two mixes
        norms=layers * 4 * d + 4 * d,
    )


def adapter_rank(peft_config: Mapping[str, Any]) -> int:
    return positive_integer("model.peft_config.r", peft_config.get("r", 8))


def adapted(s: ModelShape, peft_config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Inputs and outputs of each matrix of a layer that `target_modules` names."""
    sizes = {
        "Wqkv": (s.d_model, s.q_width + 2 * s.kv_width),
        "Wq": (s.d_model, s.q_width),
        "Wk": (s.kv_dim, s.kv_width),
        "Wv": (s.kv_dim, s.kv_width),
        "out_proj": (s.q_width, s.d_model),
        "up_proj": (s.d_model, s.ffn_hidden_size),
        "gate_proj": (s.d_model, s.ffn_hidden_size),
        "down_proj": (s.ffn_hidden_size, s.d_model),
    }
    names = map(str, peft_config.get("target_modules") or ())
    return [sizes[name] for name in names if name in sizes]


def adapter_parameters(s: ModelShape, peft_config: Mapping[str, Any]) -> int:
    """What LoRA trains: rank times (inputs + outputs) of each matrix that `target_modules` names, in every layer."""
    return adapter_rank(peft_config) * s.n_layers * sum(map(sum, adapted(s, peft_config)))
