"""Defaults against LLM Foundry's, and refusals of what no model has."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from recipes.cost.architecture import ATTN_DEFAULTS, MODEL_DEFAULTS, model_shape

SMALL = {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 32, "vocab_size": 97}


def test_defaults_are_llm_foundrys() -> None:
    from llmfoundry.models.mpt import MPTConfig
    from llmfoundry.models.utils.config_defaults import attn_config_defaults

    theirs = {k: p.default for k, p in inspect.signature(MPTConfig.__init__).parameters.items()}
    assert dict(MODEL_DEFAULTS) == {k: theirs[k] for k in MODEL_DEFAULTS}
    shared = {k: v for k, v in ATTN_DEFAULTS.items() if k in attn_config_defaults}
    assert shared == {k: attn_config_defaults[k] for k in shared}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ffn_config": {"ffn_type": "mptgllu"}}, "ffn_type: got 'mptgllu'.*did you mean mptglu"),
        ({"attn_config": {"attn_type": "latent"}}, "attn_type: got 'latent', expected one of multihead_attention"),
        ({"norm_type": "rmsnrom"}, "norm_type: got 'rmsnrom'.*did you mean rmsnorm"),
        ({"attn_config": {"attn_type": "grouped_query_attention"}}, "kv_n_heads: missing"),
        ({"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 3}}, "divisor of n_heads=4"),
        ({"d_model": 65}, "n_heads=4 does not divide"),
        ({"n_layers": 0}, "n_layers: got 0, expected a positive integer"),
        ({"n_layers": "many"}, "n_layers: got 'many'"),
        ({"expansion_ratio": 2.33}, "expansion_ratio: 2.33 times d_model=64"),
        (
            {"name": "hf_causal_lm"},
            "'hf_causal_lm'; expected an MPT-style model.*of another kind has no plan",
        ),
    ],
)
def test_what_cannot_be_read_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_shape({**SMALL, **change})
