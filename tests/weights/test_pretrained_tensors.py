"""What `pretrained:` finds where weights are not the recipe's: no tensor is dropped, cut, padded or read as another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.training.lora import add_lora
from recipes.weights.pretrained import load_pretrained, problems

from ..tiny import LLAMA, MPT, build, with_changes, write_run
from .test_export import write_sharded
from .test_pretrained import GQA, folder_of, recipe_for

pytestmark = pytest.mark.filterwarnings("ignore")

TUNING = "attn_config__attn_temperature_tuning"
SCALED = with_changes(MPT, **{TUNING: {"attn_scale": 0.1, "floor_scale": 16}})
DYNAMIC = with_changes(GQA, attn_config__rope_hf_config={"type": "dynamic", "factor": 4.0})
LEARNED = with_changes(MPT, attn_config={})


@pytest.mark.parametrize(
    ("there", "changes", "key"),
    [
        (LLAMA, {"ffn_config__ffn_type": "mptmlp"}, "ffn_config.ffn_type"),
        (with_changes(MPT, attention_bias=True), {"attention_bias": None}, "attention_bias"),
        (
            SCALED,
            {"attn_config__attn_temperature_tuning__floor_scale": 4},
            "attn_config.attn_temperature_tuning.floor_scale",
        ),
        (MPT, {"attn_config__fused_qkv": False}, "attn_config.fused_qkv"),
        (DYNAMIC, {"max_seq_len": 64}, "max_seq_len"),
        (LEARNED, {"max_seq_len": 64}, "max_seq_len"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_of_another_architecture_is_refused(
    there: dict[str, Any], changes: dict[str, Any], key: str, shards: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", there, build(there), shards / "tokenizer")
    assert list(problems(recipe_for(run, there))) == []
    found = [found for found, _ in problems(recipe_for(run, with_changes(there, **changes)))]
    assert [name for name in found if name != "pretrained"] == [f"model.{key}"]


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_a_checkpoint_with_other_tensors_than_its_recipe_is_refused(kind: str, shards: Path, tmp_path: Path) -> None:
    taller = build(with_changes(MPT, n_layers=3, tie_word_embeddings=False))
    run = write_run(tmp_path / "run", MPT, taller, shards / "tokenizer")
    if kind == "sharded":
        (run / "checkpoints" / "ep0-ba1-rank0.pt").unlink()
        write_sharded(run / "checkpoints" / "ep0-ba1", taller)
    ((key, text),) = problems(recipe_for(run, MPT))
    assert key == "pretrained"
    assert "has transformer.blocks.2.norm_1.weight and 6 more tensors that this model has no place for" in text
    longer = with_changes(MPT, n_layers=4, tie_word_embeddings=False)
    texts = [
        text for _, text in problems(recipe_for(run, longer, pretrained_changes=["n_layers", "tie_word_embeddings"]))
    ]
    assert texts == [f"{run} has no tensor transformer.blocks.3.attn.Wqkv.weight, and 5 more are missing"]


@pytest.mark.parametrize(
    ("there", "changes", "keys"),
    [
        (with_changes(MPT, n_layers=3), {"n_layers": 2}, ["n_layers"]),
        (with_changes(MPT, no_bias=False), {"no_bias": True}, ["no_bias"]),
        (with_changes(MPT, attn_config__qk_ln=True), {"attn_config__qk_ln": False}, ["attn_config.qk_ln"]),
        (LEARNED, {"attn_config__alibi": True}, ["attn_config.alibi", "learned_pos_emb"]),
        (LLAMA, {"tie_word_embeddings": True}, ["tie_word_embeddings"]),
        (DYNAMIC, {"max_seq_len": 64}, ["max_seq_len"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_goes_on_purpose_goes(
    there: dict[str, Any], changes: dict[str, Any], keys: list[str], shards: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", there, build(there), shards / "tokenizer")
    here = with_changes(there, **changes)
    assert list(problems(recipe_for(run, here))) != []
    assert list(problems(recipe_for(run, here, pretrained_changes=keys))) == []
    module = build(here)
    assert load_pretrained(module, here, run) == len(list(module.parameters()))


def test_layers_that_differ_are_compared_by_their_recipe(shards: Path, tmp_path: Path) -> None:
    order = [{"name": "default"}, {"name": "reuse"}]
    overrides = {"order": order, "overrides": {"reuse": {"attn_config": {"reuse_kv_layer_idx": -1}}}}
    section = with_changes(MPT, block_overrides=overrides)
    module = build(section)
    run = write_run(tmp_path / "run", section, module, shards / "tokenizer")
    assert list(problems(recipe_for(run, section))) == []
    assert load_pretrained(build(section, seed=1), section, run) == len(list(module.parameters()))
    assert next(problems(recipe_for(run, MPT)))[0] == "model.block_overrides"


def test_a_run_with_adapters_can_be_started_from(shards: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv", "down_proj"]}
    module, here = build(MPT), with_changes(MPT, peft_config=lora)
    add_lora(module, lora)
    run = write_run(tmp_path / "run", here, module, shards / "tokenizer")
    for section in (MPT, here):
        assert list(problems(recipe_for(run, section))) == []


@pytest.mark.parametrize("rows", [256, 1024])
def test_a_vocabulary_has_the_size_that_its_folder_says(rows: int, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    config = json.loads((source / "config.json").read_text())
    assert list(problems(recipe_for(source, GQA))) == []
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    here = with_changes(GQA, vocab_size=rows)
    for section, changes in ((here, []), (GQA, ["vocab_size"])):
        ((key, text),) = problems(recipe_for(source, section, pretrained_changes=changes))
        assert key == "pretrained"
        assert f"has model.embed_tokens.weight of the shape (512, 32), the model ({rows}, 32)" in text


def test_dynamic_rope_depends_on_the_length(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    config = json.loads((source / "config.json").read_text())
    config |= {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 16}
    (source / "config.json").write_text(json.dumps(config))
    ((key, text),) = problems(recipe_for(source, DYNAMIC))
    assert key == "model.max_seq_len"
    assert "the recipe has 32, the weights in" in text
    assert list(problems(recipe_for(source, DYNAMIC, pretrained_changes=["max_seq_len"]))) == []
    assert list(problems(recipe_for(source, with_changes(DYNAMIC, max_seq_len=16)))) == []


def test_another_family_is_all_that_is_said_of_it(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    assert [key for key, _ in problems(recipe_for(source, MPT))] == ["model.name"]


def test_what_llm_foundry_wrote_can_be_started_from(tmp_path: Path) -> None:
    """A folder of its hf_checkpointer: MPT under MPT's names, with what transformers' class has not."""
    section = with_changes(MPT, no_bias=False, attn_config__qk_ln=True, attn_config__kv_n_heads=2)
    section["attn_config"]["attn_type"] = "grouped_query_attention"
    module = build(section)
    from safetensors.torch import save_file

    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mpt", "norm_eps": 1e-5, **section}))
    save_file({name: p.detach().clone() for name, p in module.named_parameters()}, folder / "model.safetensors")
    assert list(problems(recipe_for(folder, section))) == []
    other = build(section, seed=1)
    load_pretrained(other, section, folder)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    found = dict(problems(recipe_for(folder, with_changes(section, attention_bias=False))))
    assert "model.attention_bias" in found
