"""LLM Foundry finds the blocks of transformers' models, to shard them and to checkpoint their activations."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from llmfoundry.models.hf.hf_fsdp import prepare_hf_model_for_fsdp

from recipes.parts import register_components

SMALL = {"vocab_size": 128, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
SMALL_MPT = {"vocab_size": 128, "n_layers": 2, "d_model": 32, "n_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "gpt_neox": {"intermediate_size": 64},
    "gptj": {"rotary_dim": 8},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "mpt": {},
    "llama": {"intermediate_size": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_its_blocks_are_wrapped_one_by_one(kind: str) -> None:
    register_components()
    sizes = SMALL_MPT if kind == "mpt" else SMALL
    config = transformers.AutoConfig.for_model(kind, **sizes, **KINDS[kind])
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    prepare_hf_model_for_fsdp(model, "cpu")
    wrapped = [type(module).__name__ for module in model.modules() if model.fsdp_wrap_fn(module)]
    assert len(wrapped) == 2, wrapped
