"""In: weights of a Hugging Face folder in the model here, bit for bit, and out again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from recipes.talking.loading import load_model, model_of_folder
from recipes.weights.export import export
from recipes.weights.hf_architecture import architecture_of_folder
from recipes.weights.pretrained import load_pretrained, problems
from recipes.weights.tensor_files import safetensors_folder
from recipes.weights.trained import folder_config_of

from ..tiny import LLAMA, MPT, RWKV, build, with_changes, write_run

pytestmark = pytest.mark.filterwarnings("ignore")

GQA = with_changes(LLAMA, attn_config__attn_type="grouped_query_attention", attn_config__kv_n_heads=2)


def folder_of(path: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    """A folder that transformers itself wrote."""
    torch.manual_seed(3)
    if family == "mpt":
        config = MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=32, vocab_size=512)
        model = MptForCausalLM(config)
    elif family == "rwkv":
        model = RwkvForCausalLM(RwkvConfig(hidden_size=32, num_hidden_layers=2, context_length=32, vocab_size=512))
    else:
        llama = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, max_position_embeddings=32, rms_norm_eps=1e-6,
        )  # fmt: skip
        model = LlamaForCausalLM(llama)
    model.to(dtype).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("family", "section"), [("mpt", MPT), ("llama", GQA), ("rwkv", RWKV)], ids=["mpt", "llama", "rwkv"]
)
def test_in_and_out_is_bit_exact(
    family: str, section: dict[str, Any], dtype: torch.dtype, shards: Path, tmp_path: Path
) -> None:
    source = folder_of(tmp_path / "hf", family, dtype)
    module = build(section)
    recipe = {"pretrained": str(source), "model": {"name": "mpt_causal_lm", **section}, "max_seq_len": 32}
    assert list(problems(recipe)) == []
    assert load_pretrained(module, section, source) == len(list(module.parameters()))
    run = write_run(tmp_path / "run", section, module, shards / "tokenizer")
    export(run, tmp_path / "out", "fp32" if dtype == torch.float32 else "bf16")
    with safetensors_folder(source) as before, safetensors_folder(tmp_path / "out") as after:
        assert before.shapes() == after.shapes()
        for name in before.shapes():
            assert before.entries[name].dtype == after.entries[name].dtype
            assert torch.equal(before.rows(name), after.rows(name)), name


def test_rwkv_folders_as_others_write_them(shards: Path, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "rwkv")
    AutoTokenizer.from_pretrained(shards / "tokenizer").save_pretrained(source)
    state = load_file(source / "model.safetensors")
    halves = {name: tensor if "time_" in name else tensor.bfloat16() for name, tensor in state.items()}
    save_file(halves, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))

    def written(**changes: Any) -> Path:
        kept = {key: value for key, value in {**config, **changes}.items() if value is not None}
        (source / "config.json").write_text(json.dumps(kept))
        return source

    loaded = load_model(written(context_length=None))
    assert loaded.max_seq_len == 1024
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.generation_config.eos_token_id == [5, 7]
    for changes, words in (
        ({"attention_hidden_size": 64}, "an RWKV model with attention_hidden_size 64 beside hidden_size 32"),
        ({"tie_word_embeddings": True}, "an RWKV model with tie_word_embeddings: true"),
        ({"hidden_size": "32"}, "of another kind than expected (hidden_size '32')"),
    ):
        written(**changes)
        for load in (load_model, model_of_folder):
            with pytest.raises(ValueError, match=re.escape(f"{source} holds ")) as error:
                load(source)
            assert words in str(error.value)
    written()
    found = list(problems({"pretrained": str(source), "model": {"name": "mpt_causal_lm", **MPT}, "max_seq_len": 32}))
    assert [key for key, _ in found if key != "pretrained"] == ["model.name"]


def recipe_for(source: Path, section: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"pretrained": str(source), "model": {"name": "mpt_causal_lm", **section}, "max_seq_len": 32, **more}


def test_rope_as_transformers_5_writes_it_counts(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    config = json.loads((source / "config.json").read_text())
    config |= {"rope_theta": 50000.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    newer = {**config, "rope_parameters": {"rope_theta": 50000.0, "rope_type": "linear", "factor": 2.0}}
    del newer["rope_theta"], newer["rope_scaling"]
    ids = torch.arange(1, 20)[None]
    logits, architectures = [], []
    for written in (config, newer):
        (source / "config.json").write_text(json.dumps(written))
        logits.append(model_of_folder(source)(ids).logits)
        architectures.append(architecture_of_folder(folder_config_of(source)))
    assert torch.equal(*logits)
    assert architectures[0] == architectures[1]
    assert dict(problems(recipe_for(source, GQA)))["model.attn_config.rope_theta"].endswith(
        "add it to pretrained_changes"
    )
    newer["rope_parameters"] = {"rope_theta": 50000.0, "rope_type": "default"}
    (source / "config.json").write_text(json.dumps(newer))
    assert folder_config_of(source)["rope_theta"] == 50000.0
    newer["rope_parameters"] = {"full_attention": {"rope_theta": 50000.0}}
    (source / "config.json").write_text(json.dumps(newer))
    assert (
        "expected one rope_theta and rope_type for all layers" in dict(problems(recipe_for(source, GQA)))["pretrained"]
    )


def test_a_folder_with_more_than_the_model_computes_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "mpt")
    config = json.loads((source / "config.json").read_text())
    config["attn_config"]["qk_ln"] = True
    (source / "config.json").write_text(json.dumps(config))
    weights = load_file(source / "model.safetensors")
    weights |= {f"transformer.blocks.{n}.attn.q_ln.weight": torch.ones(32) for n in range(2)}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    found = dict(problems(recipe_for(source, MPT)))
    assert "the recipe has None, the weights in" in found["model.attn_config.qk_ln"]
    text = "has transformer.blocks.0.attn.q_ln.weight and 1 more tensors that this model has no place for"
    assert text in found["pretrained"]
    taller = {
        **{k: v for k, v in weights.items() if "q_ln" not in k},
        "transformer.blocks.2.norm_1.weight": torch.ones(32),
    }
    save_file(taller, source / "model.safetensors", {"format": "pt"})
    config |= {"n_layers": 3, "attn_config": {**config["attn_config"], "qk_ln": False}}
    (source / "config.json").write_text(json.dumps(config))
    assert list(problems(recipe_for(source, MPT, pretrained_changes=["n_layers"]))) == []


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        (LLAMA, {"norm_type": "low_precision_layernorm"}, "norm_type"),
        (LLAMA, {"attn_config__softmax_scale": 0.5}, "attn_config.softmax_scale"),
        (MPT, {"ffn_config__ffn_act_fn": {"name": "elu"}}, "ffn_config.ffn_act_fn"),
        (MPT, {"ffn_config__ffn_act_fn": {"name": "gelu", "approximate": "tanh"}}, "ffn_config.ffn_act_fn"),
        (with_changes(MPT, attn_config__alibi=False), {"learned_pos_emb": False}, "learned_pos_emb"),
    ],
)
def test_what_decides_the_numbers_is_compared(
    family: dict[str, Any], changes: dict[str, Any], key: str, shards: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", family, build(family), shards / "tokenizer")
    assert list(problems(recipe_for(run, family))) == []
    assert f"model.{key}" in dict(problems(recipe_for(run, with_changes(family, **changes))))


def test_what_llm_foundry_wrote_is_not_taken_for_what_transformers_computes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "mpt")
    config = json.loads((source / "config.json").read_text())
    for more, key in (
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"norm_type": "rmsnorm"}, "norm_type"),
        ({"norm_eps": 1e-2}, "norm_eps"),
        ({"attn_config": {**config["attn_config"], "alibi": False, "rope": True}}, "attn_config.rope"),
        ({"attn_config": {**config["attn_config"], "sliding_window_size": 8}}, "attn_config.sliding_window_size"),
        ({"ffn_config": {"ffn_type": "mptmlp", "ffn_act_fn": {"name": "relu"}}}, "ffn_config.ffn_act_fn"),
    ):
        (source / "config.json").write_text(json.dumps({**config, **more}))
        with pytest.raises(ValueError, match=f"config.json has .*{key}.*does not compute: give the run"):
            model_of_folder(source)
    untied = {**config, "tie_word_embeddings": False}
    (source / "config.json").write_text(json.dumps(untied))
    with pytest.raises(ValueError, match=r"the model lacks lm_head\.weight"):
        model_of_folder(source)


def test_tensors_of_another_size_are_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    weights = load_file(source / "model.safetensors")
    for name, rows in (("model.layers.0.self_attn.q_proj.weight", 64), ("model.layers.1.input_layernorm.weight", 16)):
        other = weights[name].new_zeros(rows, *weights[name].shape[1:])
        save_file({**weights, name: other}, source / "model.safetensors", {"format": "pt"})
        assert (
            f"has {name} of the shape {tuple(other.shape)}, the model (32"
            in dict(problems(recipe_for(source, GQA)))["pretrained"]
        )


def test_resizing_the_vocabulary_is_explicit(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    larger = with_changes(GQA, vocab_size=520)
    ((key, text),) = problems(recipe_for(source, larger))
    assert key == "model.vocab_size"
    assert "the recipe has 520" in text
    assert "pretrained_changes: [vocab_size]" in text
    assert list(problems(recipe_for(source, larger, pretrained_changes=["vocab_size"]))) == []
    for size in (520, 500):
        module = build(with_changes(GQA, vocab_size=size))
        load_pretrained(module, with_changes(GQA, vocab_size=size), source)
        with safetensors_folder(source) as files:
            for ours, theirs in ((module.transformer.wte, "model.embed_tokens"), (module.lm_head, "lm_head")):
                there = files.rows(f"{theirs}.weight")
                kept = min(size, 512)
                assert torch.equal(ours.weight[:kept], there[:kept])
                torch.testing.assert_close(ours.weight[kept:], there.mean(0).expand(size - kept, -1))


def test_another_model_is_refused_in_words(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "mpt")
    found = dict(problems(recipe_for(source, with_changes(MPT, d_model=64, attn_config__clip_qkv=6))))
    assert "that is another model" in found["model.d_model"]
    assert "add it to pretrained_changes" in found["model.attn_config.clip_qkv"]
    (text,) = dict(problems(recipe_for(tmp_path / "none", MPT))).values()
    assert "does not exist" in text
    (tmp_path / "empty").mkdir()
    assert "is neither a Hugging Face folder" in dict(problems(recipe_for(tmp_path / "empty", MPT)))["pretrained"]
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    (text,) = dict(problems(recipe_for(tmp_path / "gpt2", MPT))).values()
    assert "a model of type 'gpt2'; expected mpt or llama" in text
    assert "both set" in dict(problems(recipe_for(source, MPT, load_path="x.pt")))["pretrained"]


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "hf", "llama")
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    (text,) = dict(problems(recipe_for(source, GQA))).values()
    assert "is no whole safetensors file" in text
    weights.write_bytes(whole[:4])
    assert "is no whole safetensors file" in dict(problems(recipe_for(source, GQA)))["pretrained"]
    weights.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    assert "save it as safetensors first" in dict(problems(recipe_for(source, GQA)))["pretrained"]


def test_a_run_can_be_started_from(shards: Path, tmp_path: Path) -> None:
    first = build(MPT, seed=1)
    run = write_run(tmp_path / "run", MPT, first, shards / "tokenizer")
    assert list(problems(recipe_for(run, MPT))) == []
    second = build(MPT, seed=2)
    load_pretrained(second, MPT, run)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    learned = with_changes(MPT, no_bias=False, attn_config={})  # no folder of transformers can hold this one
    first = build(learned, seed=1)
    other = write_run(tmp_path / "learned", learned, first, shards / "tokenizer")
    assert list(problems(recipe_for(other, learned))) == []
    second = build(learned, seed=2)
    load_pretrained(second, learned, other)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert "model.attn_config.alibi" in dict(problems(recipe_for(other, MPT)))
    longer = build(with_changes(learned, max_seq_len=64))
    with pytest.raises(ValueError, match=r"is of the shape \(32, 32\) in .*, of \(64, 32\) in the model"):
        load_pretrained(longer, with_changes(learned, max_seq_len=64), other)
    shutil.rmtree(run / "checkpoints")
    assert "holds no whole checkpoint" in dict(problems(recipe_for(run, MPT)))["pretrained"]
