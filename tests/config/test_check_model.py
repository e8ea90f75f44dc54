"""A model key that would do nothing, or that the first step would die of, is said of the recipe."""

from __future__ import annotations

import pytest

from recipes.config.check import check
from recipes.config.load import load

from ..conftest import ROOT

QUICKSTART = ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml"


def found(*overrides: str) -> dict[str, str]:
    """Problems by dotted key."""
    return {".".join(map(str, p.key)): p.text for p in check(load(QUICKSTART, overrides))}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dtype=bfloat16", "master_weights_dtype"),
        ("should_save_peft_only=true", "export --unmerged"),
        ("torchscript=true", "unknown key"),
        ("num_labels=3", "unknown key"),
        ("return_dict=false", "unknown key"),
        ("metrics=[a]", "unknown key"),
        ("attn_config.kv_dim=32", "leave it out; fewer heads of them are attn_config.kv_n_heads"),
        ("attn_config.reuse_kv_layer_idx=0", "model.block_overrides"),
        ("attn_config.nope=true", "model.block_overrides"),
        ("attn_config.rope_hf_config.factor=0", "expected more than 0"),
        ("init_config.emb_init_uniform_lim=[0,1,2]", "the least and the most"),
        ("ffn_config.ffn_act_fn.name=nope", "expected one of"),
    ],
)
def test_what_does_nothing_or_cannot_run_is_refused(override: str, words: str) -> None:
    said = found(f"model.{override}", "model.attn_config.fused_qkv=false")
    assert list(said) == [f"model.{override.partition('=')[0]}"]
    (text,) = said.values()
    assert words in text


def test_what_a_choice_needs_is_asked_for() -> None:
    for override, key in (("init_config.name=baseline_", "init_std"), ("ffn_config.ffn_type=torch_dmoe", "moe_num_e")):
        ((name, text),) = found(f"model.{override}").items()
        assert key in name
        assert text.startswith("missing; ")


def test_what_llm_foundry_takes_of_a_model_is_taken() -> None:
    taken = "{init_std: 0.02, name: baseline_, emb_init_uniform_lim: [-1, 1]}"
    act = "model.ffn_config.ffn_act_fn={name: gelu, approximate: none}"
    assert found(f"model.init_config={taken}", act, "model.eos_token_id=0", "model.use_cache=false") == {}
