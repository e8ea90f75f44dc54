"""FLOPs of training an MPT-style model, per token and by part, in two conventions that must not be mixed up.

A multiply and an add are two FLOPs. Norms, activations, softmax and embeddings' lookups are left out, as in
Kaplan et al. 2020 (arXiv 2001.08361, table 1) and Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipes.cost.parameters import count_parameters, model_shape, positive_integer

BACKWARD_PER_FORWARD = 2  # gradients with respect to the inputs and to the weights: one matrix product each


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs of one token's forward pass by part; a training step costs three forwards, four when it recomputes."""

    matrix: int  # QKV, output and ffn projections
    attention_full: int  # scores and weighted sum over all S keys: what the usual MFU counts
    attention_causal: float  # the half (or the sliding window) that a causal kernel has to compute
    head: int  # the product with the vocabulary, tied or not

    def forward(self, causal: bool = False) -> float:
        return self.matrix + self.head + (self.attention_causal if causal else self.attention_full)

    def backward(self, causal: bool = False) -> float:
        return BACKWARD_PER_FORWARD * self.forward(causal)

    def training(self, causal: bool = False, recompute: bool = False) -> float:
        """Forward and backward; `recompute` adds the second forward of full activation checkpointing."""
        head = self.head  # lies outside the checkpointed blocks, so it is never recomputed
        return self.forward(causal) + self.backward(causal) + (self.forward(causal) - head if recompute else 0)


def flops_per_token(model: Mapping[str, Any], seq_len: int | None = None) -> FlopsPerToken:
    """FLOPs by part for one token of sequences of `seq_len` tokens (default: the model's max_seq_len).

    matrix = 2 * (weights of the projections), head = 2 * vocab_size * d_model,
    attention_full = sum over layers of 4 * n_heads * head_dim * S: a query meets S keys twice (scores, weighted sum);
    attention_causal = 4 * n_heads * head_dim * (mean keys seen), S/2 for causal attention, fewer with a window.
    RWKV has one d x d matrix more in its ffn, and no scores; its `wkv` is left out, as norms are.
    """
    s = model_shape(model)
    length = s.max_seq_len if seq_len is None else positive_integer("seq_len", seq_len)
    q_and_out = 2 * s.d_model * s.q_width
    key_value = 2 * s.kv_dim * s.kv_width
    weights = s.n_layers * (q_and_out + s.ffn_matrices * s.d_model * s.ffn_hidden_size)
    weights += (s.n_layers - s.layers_reusing_kv) * key_value
    weights += 0 if s.attends else s.n_layers * s.d_model**2
    return FlopsPerToken(
        matrix=2 * weights,
        attention_full=4 * s.q_width * length * len(s.sliding_windows),
        attention_causal=4 * s.q_width * sum(_mean_keys(length, window) for window in s.sliding_windows),
        head=2 * s.vocab_size * s.d_model,
    )


def llm_foundry_flops_per_token(model: Mapping[str, Any], seq_len: int | None = None) -> int:
    """LLM Foundry's count: 6 N + 12 n_layers d_model S, with N its active parameters and S² attention in full.

    Source: llmfoundry 0.22, `ComposerMPTCausalLM.flops_per_batch` and `get_attention_flops`; the same convention as
    PaLM's MFU. Recomputation is not counted. With an untied head N leaves out the token table; d_model stands where
    n_heads * head_dim is meant, so the two differ when head_dim is set.
    """
    s = model_shape(model)
    length = s.max_seq_len if seq_len is None else positive_integer("seq_len", seq_len)
    return 3 * (2 * count_parameters(model).active + len(s.sliding_windows) * 4 * s.d_model * length)


def llm_foundry_flops_per_batch(model: Mapping[str, Any], sequences: int, seq_len: int | None = None) -> int:
    """Exactly what LLM Foundry's `model.flops_per_batch(batch)` returns for a (sequences, seq_len) batch."""
    s = model_shape(model)
    length = s.max_seq_len if seq_len is None else positive_integer("seq_len", seq_len)
    return llm_foundry_flops_per_token(model, length) * length * positive_integer("sequences", sequences)


def causal_flops_per_token(model: Mapping[str, Any], seq_len: int | None = None) -> float:
    """6 N + 6 n_layers d_model S: LLM Foundry's count with only the causal half of the attention scores."""
    s = model_shape(model)
    length = s.max_seq_len if seq_len is None else positive_integer("seq_len", seq_len)
    return 3 * (2 * count_parameters(model).active + len(s.sliding_windows) * 2 * s.d_model * length)


def _mean_keys(seq_len: int, window: int) -> float:
    """Mean number of keys a query sees: S/2 when causal; with a window w, the query itself and w before it."""
    if window < 0 or window + 1 >= seq_len:
        return seq_len / 2
    keys = window + 1
    return keys - keys * (keys - 1) / (2 * seq_len)  # the first w queries see fewer
