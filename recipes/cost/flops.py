"""FLOPs of training an MPT-style model, per token and by part, in two conventions that must not be mixed up.

A multiply and an add are two FLOPs. Norms, activations, softmax and embeddings' lookups are left out, as in
Kaplan et al. 2020 (arXiv 2001.08361, table 1) and Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.cost.architecture import model_shape, positive_integer
from recipes.cost.parameters import count_parameters


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs of a token by part, of a forward pass or of a training step."""

    matrix: int  # QKV, output and ffn projections
    attention: int  # scores and weighted sum over all S keys, as the usual MFU counts them, or over a window's
    head: int  # the product with the vocabulary, tied or not

    @property
    def total(self) -> int:
        return self.matrix + self.attention + self.head


def flops_per_token(model: Mapping[str, Any], seq_len: int) -> FlopsPerToken:
    """FLOPs by part of a forward pass for one token of sequences of `seq_len` tokens.

    matrix = 2 * (weights of the projections), head = 2 * vocab_size * d_model,
    attention = sum over layers of 4 * n_heads * head_dim * S: a query meets S keys twice (scores, weighted sum).
    A sliding window of W, with which a query meets itself and W keys before it, takes the share that it leaves of the
    causal half: S becomes (2 S K - K (K - 1)) / (S + 1) with K = min(W + 1, S), which is S where K is.
    RWKV has one d x d matrix more in its ffn, and no scores; its `wkv` is left out, as norms are.
    """
    s = model_shape(model)
    length = positive_integer("seq_len", seq_len)
    q_and_out = 2 * s.d_model * s.q_width
    key_value = 2 * s.kv_dim * s.kv_width
    weights = s.n_layers * (q_and_out + s.ffn_matrices * s.d_model * s.ffn_hidden_size)
    weights += (s.n_layers - s.layers_reusing_kv) * key_value
    weights += 0 if s.attends else s.n_layers * s.d_model**2
    met = _keys_of_a_query(model, length)
    return FlopsPerToken(
        matrix=2 * weights,
        attention=4 * s.q_width * s.attention_layers * (2 * length * met - met * (met - 1)) // (length + 1),
        head=2 * s.vocab_size * s.d_model,
    )


def _keys_of_a_query(model: Mapping[str, Any], length: int) -> int:
    """The most that one meets: those of its window. `torch` attention computes all and throws away what is outside."""
    attention = model.get("attn_config") or {}
    window = attention.get("sliding_window_size", -1)
    return length if window == -1 or attention.get("attn_impl") == "torch" else min(window + 1, length)


def llm_foundry_flops_per_token(model: Mapping[str, Any], seq_len: int) -> int:
    """LLM Foundry's count: 6 N + 12 n_layers d_model S, with N its active parameters and S² attention in full.

    Source: llmfoundry 0.22, `ComposerMPTCausalLM.flops_per_batch` and `get_attention_flops`; the same convention as
    PaLM's MFU. Recomputation is not counted. With an untied head N leaves out the token table; d_model stands where
    n_heads * head_dim is meant, so the two differ when head_dim is set.
    """
    s = model_shape(model)
    length = positive_integer("seq_len", seq_len)
    return 3 * (2 * count_parameters(model).active + s.attention_layers * 4 * s.d_model * length)


def causal_flops_per_token(model: Mapping[str, Any], seq_len: int) -> float:
    """6 N + 6 n_layers d_model S: LLM Foundry's count with only the causal half of the attention scores."""
    s = model_shape(model)
    length = positive_integer("seq_len", seq_len)
    return 3 * (2 * count_parameters(model).active + s.attention_layers * 2 * s.d_model * length)
