"""Our MPT against LLM Foundry's own with its ``torch`` attention: logits, gradients, weights, generation, Composer."""

import copy
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from llmfoundry import registry
from llmfoundry.models.layers.blocks import MPTBlock
from llmfoundry.models.mpt import modeling_mpt as foundry
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding

from recipes.models import attention, mpt
from recipes.parts import register_components

pytestmark = pytest.mark.filterwarnings("ignore")

POSITIONS: dict[str, dict[str, Any]] = {
    "alibi": {"alibi": True},
    "rope": {"rope": True, "rope_impl": "hf"},
    "learned": {},
}
HEADS: dict[str, dict[str, Any]] = {
    "multi-head": {"attn_type": "multihead_attention"},
    "grouped-query": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    "multi-query": {"attn_type": "multiquery_attention"},
}
MASKS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"sliding_window_size": 5},
    "packed": {"attn_uses_sequence_id": True},
    "right-padded": {},
    "left-padded": {},
}
B, S, VOCAB = 3, 20, 50


def settings(**attn_config: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "expansion_ratio": 2,
        "max_seq_len": 32,
        "vocab_size": VOCAB,
        "learned_pos_emb": not (attn_config.get("alibi") or attn_config.get("rope")),
        "init_config": {"name": "kaiming_normal_", "emb_init_std": 1.0},
        "attn_config": attn_config,
    }


def build(module: Any, config: dict[str, Any], attn_impl: str, dtype: torch.dtype = torch.float64) -> Any:
    """Builds a model from LLM Foundry's classes or ours, with the same seed; leaves ``config`` as it is."""
    config = copy.deepcopy(config)
    config["attn_config"]["attn_impl"] = attn_impl
    torch.manual_seed(0)
    return module.MPTForCausalLM(module.MPTConfig(**config)).to(dtype)


def make_inputs(mask: str) -> tuple[dict[str, Tensor], Tensor]:
    """A batch, and where its tokens are: (B, S), the same for all masks but the padded ones."""
    tokens = torch.ones(B, S, dtype=torch.bool)
    if mask in ("packed", "right-padded"):
        tokens[1, 15:], tokens[2, 11:] = False, False
    if mask == "left-padded":
        tokens[1, :5], tokens[2, :9] = False, False
    inputs = {"input_ids": torch.randint(VOCAB, (B, S), generator=torch.Generator().manual_seed(1))}
    if mask in ("packed", "right-padded", "left-padded"):
        inputs["attention_mask"] = tokens
    if mask == "packed":  # as LLM Foundry's packer numbers documents
        inputs["sequence_id"] = (torch.arange(S) // 7).repeat(B, 1).masked_fill(~tokens, -1)
    return inputs, tokens


def logits_and_gradients(model: Any, inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    logits = model(**inputs).logits[tokens]
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    found = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return found


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert got[name].isfinite().all(), name
        nothing = 1e-13  # a gradient that is 0 in exact arithmetic, such as that of a bias on every key
        assert (got[name] - tensor).abs().max() <= tolerance * tensor.abs().max() + nothing, name


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("position", POSITIONS)
def test_logits_and_gradients_are_llm_foundrys(position: str, heads: str, mask: str) -> None:
    config = settings(**POSITIONS[position], **HEADS[heads], **MASKS[mask])
    inputs, tokens = make_inputs(mask)
    found = []
    for module, attn_impl in ((mpt, "flash"), (foundry, "torch")):
        model = build(module, config, attn_impl).train(mask != "left-padded")  # training with it is refused
        found.append(logits_and_gradients(model, inputs, tokens))
    assert_same(*found)


@pytest.mark.parametrize(
    "attn_config",
    [
        {"alibi": True, "attn_logit_softcapping": 2.0},
        {"alibi": True, "clip_qkv": 0.5, "qk_ln": True, "softmax_scale": 0.2},
        {"rope": True, "rope_impl": "hf", "qk_gn": True, "fused_qkv": False},
        {"alibi": True, "alibi_bias_max": 4},
    ],
    ids=["softcap", "clipped, normalised, scaled", "group norm, split", "alibi_bias_max"],
)
def test_other_attention_settings_are_llm_foundrys(attn_config: dict[str, Any]) -> None:
    inputs, tokens = make_inputs("right-padded")
    ours = build(mpt, settings(**attn_config), "flash").train()
    theirs = build(foundry, settings(**attn_config), "torch").train()
    assert_same(logits_and_gradients(ours, inputs, tokens), logits_and_gradients(theirs, inputs, tokens))


def test_slopes_of_a_number_of_heads_that_is_no_power_of_two() -> None:
    config = settings(alibi=True) | {"d_model": 48, "n_heads": 12}
    inputs, tokens = make_inputs("full")
    found = [logits_and_gradients(build(m, config, a), inputs, tokens) for m, a in ((mpt, "flash"), (foundry, "torch"))]
    assert_same(*found, tolerance=1e-6)  # LLM Foundry adds slope x position in float32, a rounding apart from ours


def overrides(*layers: dict[str, Any]) -> dict[str, Any]:
    names = [f"layer{i}" for i in range(len(layers))]
    return {
        "n_layers": len(layers),
        "block_overrides": {
            "order": [{"name": name if layer else "default"} for name, layer in zip(names, layers, strict=True)],
            "overrides": {n: {"attn_config": layer} for n, layer in zip(names, layers, strict=True) if layer},
        },
    }


def test_layers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and reused keys a layer, as in LLM Foundry; one mask is built for each window, not for each layer."""
    config = settings(alibi=True) | overrides(
        {}, {"sliding_window_size": 4}, {"reuse_kv_layer_idx": -1, "sliding_window_size": 4}, {}
    )
    built = []
    bands = attention.bands
    monkeypatch.setattr(attention, "bands", lambda *args: built.append(args[1]) or bands(*args))
    inputs, tokens = make_inputs("right-padded")
    ours = logits_and_gradients(build(mpt, config, "flash").train(), inputs, tokens)
    assert sorted(built) == [-1, 4]
    assert_same(ours, logits_and_gradients(build(foundry, config, "torch").train(), inputs, tokens))


def test_flex_in_the_model(flex_on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``flash`` means on a GPU, with the dense reference in the kernel's place: one block mask for each window."""
    config = settings(alibi=True, attn_uses_sequence_id=True, **HEADS["grouped-query"])
    config |= overrides({}, {"sliding_window_size": 4}, {}, {"sliding_window_size": 4})
    built = []
    block_mask = attention.block_mask
    monkeypatch.setattr(attention, "block_mask", lambda *args: built.append(args[1]) or block_mask(*args))
    monkeypatch.setattr(attention, "_choose", lambda *_: "flex")
    inputs, tokens = make_inputs("packed")
    ours = logits_and_gradients(build(mpt, config, "flash").train(), inputs, tokens)
    assert sorted(built) == [-1, 4]
    assert_same(ours, logits_and_gradients(build(foundry, config, "torch").train(), inputs, tokens))


def test_layers_without_positions() -> None:
    """``nope`` layers: with RoPE against LLM Foundry's; with ALiBi, which it refuses there, against no positions."""
    inputs, tokens = make_inputs("full")
    rope = settings(rope=True, rope_impl="hf") | overrides({}, {"nope": True})
    ours, theirs = build(mpt, rope, "flash"), build(foundry, rope, "torch")
    assert_same(logits_and_gradients(ours, inputs, tokens), logits_and_gradients(theirs, inputs, tokens))
    alibi = settings(alibi=True) | overrides({"nope": True}, {"nope": True})
    none = settings() | {"learned_pos_emb": False}
    ours, theirs = build(mpt, alibi, "flash"), build(foundry, none, "torch")
    assert_same(logits_and_gradients(ours, inputs, tokens), logits_and_gradients(theirs, inputs, tokens))


def test_attn_impl_torch_is_llm_foundrys_untouched() -> None:
    inputs, tokens = make_inputs("packed")
    config = settings(alibi=True, attn_uses_sequence_id=True)
    ours, theirs = build(mpt, config, "torch").train(), build(foundry, config, "torch").train()
    assert_same(logits_and_gradients(ours, inputs, tokens), logits_and_gradients(theirs, inputs, tokens), tolerance=0)


@pytest.mark.parametrize("position", POSITIONS)
def test_weights_and_their_names_are_llm_foundrys(position: str) -> None:
    config = settings(**POSITIONS[position]) | {"tie_word_embeddings": position == "alibi"}
    ours, theirs = build(mpt, config, "flash").state_dict(), build(foundry, config, "torch").state_dict()
    assert list(ours) == list(theirs)
    same = {name for name in theirs if torch.equal(ours[name], theirs[name])}
    assert theirs.keys() - same == ({"lm_head.weight"} if "lm_head.weight" in theirs else set())  # see the next test
    build(foundry, config, "torch").load_state_dict(ours, strict=True)
    build(mpt, config, "flash").load_state_dict(theirs, strict=True)


def test_first_weights_are_alike_wherever_a_model_is_built() -> None:
    wide = settings(rope=True) | {"d_model": 128, "n_layers": 1, "tie_word_embeddings": False}
    here = build(mpt, wide, "flash", torch.float32)
    later = build(mpt, wide | {"init_device": "meta"}, "flash", torch.float32)
    later.to_empty(device="cpu")
    later.apply(later.param_init_fn)
    expected = dict(later.named_parameters())
    for name, parameter in here.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(expected[name].std().item(), rel=0.05), name


def test_mpt_7b_8k_has_the_published_number_of_parameters() -> None:
    config = mpt.MPTConfig(
        d_model=4096,
        n_heads=32,
        n_layers=32,
        expansion_ratio=4,
        max_seq_len=8192,
        vocab_size=50432,
        no_bias=True,
        init_device="meta",
        attn_config={"alibi": True},
    )
    assert sum(p.numel() for p in mpt.MPTForCausalLM(config).parameters()) == 6_649_286_656


def test_a_model_built_on_meta_is_initialised_later() -> None:
    config = settings(alibi=True) | {"init_device": "meta"}
    model = build(mpt, config, "flash", torch.float32)
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    model.apply(model.param_init_fn)
    inputs, _ = make_inputs("full")
    assert model(**inputs).logits.isfinite().all()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    model = build(mpt, settings(alibi=True), "flash").eval()
    inputs, tokens = make_inputs("left-padded")
    together = model(**inputs).logits
    for b in range(B):
        alone = model(input_ids=inputs["input_ids"][b : b + 1, tokens[b]]).logits[0]
        torch.testing.assert_close(together[b, tokens[b]], alone, rtol=1e-10, atol=1e-10)


def test_dropout_acts_in_training_only() -> None:
    inputs, _ = make_inputs("full")
    model = build(mpt, settings(alibi=True, attn_pdrop=0.5), "flash")
    plain = build(mpt, settings(alibi=True), "flash")
    assert torch.equal(model.eval()(**inputs).logits, plain.eval()(**inputs).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_training_with_left_padding_is_refused() -> None:
    inputs, _ = make_inputs("left-padded")
    with pytest.raises(NotImplementedError, match="training with left padding"):
        build(mpt, settings(alibi=True), "flash").train()(**inputs)


@pytest.mark.parametrize(("position", "attn_impl"), itertools.product(POSITIONS, ["flash", "torch"]))
def test_generation_is_the_same_with_and_without_a_cache(position: str, attn_impl: str) -> None:
    model = build(mpt, settings(**POSITIONS[position], sliding_window_size=6), attn_impl).eval()
    inputs, _ = make_inputs("left-padded")
    inputs = {name: tensor[:, :12] for name, tensor in inputs.items()}
    lengths = []
    model.transformer.blocks[0].register_forward_hook(lambda _, args, __: lengths.append(args[0].shape[1]))
    how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(**inputs, **how, use_cache=True)
    assert lengths == [12] + [1] * 11
    assert torch.equal(cached, model.generate(**inputs, **how, use_cache=False))
    beams = [model.generate(**inputs, **how, num_beams=3, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(*beams)
    alone = model.generate(inputs["input_ids"][2:, 9:], **how)  # row 2 without its padding
    assert torch.equal(alone[0], cached[2, 9:])


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "no_scaling"},
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda scaling: scaling["type"],
)
def test_rope_rotates_by_llamas_angles(scaling: dict[str, Any]) -> None:
    model = build(mpt, settings(rope=True, rope_impl="hf", rope_hf_config=scaling), "flash", torch.float32)
    llama = {"rope_type": scaling["type"].replace("no_scaling", "default")} | scaling
    del llama["type"]  # LLM Foundry's name for rope_type
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=32, rope_scaling=llama)
    positions, x = torch.arange(40)[None], torch.zeros(1)
    got, want = model.transformer.rotary_embedding(x, positions), LlamaRotaryEmbedding(config)(x, positions)
    torch.testing.assert_close(got, want)
    inputs, _ = make_inputs("full")
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.skipif(foundry.is_flash_v2_installed(), reason="flash-attn rotates then")
def test_rope_dail_without_flash_attn_rotates_the_two_halves() -> None:
    """RotaryEmbedding(interleaved=False) of flash-attn: (x1 cos - x2 sin, x2 cos + x1 sin), angle p / theta^(2i/D)."""
    model = build(mpt, settings(rope=True, rope_theta=500), "flash")
    seen: dict[str, Tensor] = {}
    layer = model.transformer.blocks[0].attn
    rotate, attend = layer._apply_rotary_embeddings, layer.attn_fn
    layer._apply_rotary_embeddings = lambda info, q, k, v: seen.update(q=q, k=k) or rotate(info, q, k, v)
    layer.attn_fn = lambda q, k, v, **kwargs: seen.update(q_rotated=q, k_rotated=k) or attend(q, k, v, **kwargs)
    inputs, _ = make_inputs("full")
    model(**inputs)
    angles = torch.arange(S)[:, None] / 500 ** (torch.arange(0, 8, 2) / 8)  # (S, D / 2)
    for name in ("q", "k"):
        x1, x2 = seen[name].view(B, S, 4, 8).transpose(1, 2).chunk(2, dim=-1)  # (B, H, S, D / 2)
        want = torch.cat([x1 * angles.cos() - x2 * angles.sin(), x2 * angles.cos() + x1 * angles.sin()], -1)
        torch.testing.assert_close(seen[f"{name}_rotated"], want.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("attn_config", "words"),
    [
        ({"attn_impl": "flesh"}, "expected one of flash, flex, flash2, flash4, sdpa, torch; did you mean flash?"),
        ({"attn_impl": "sdpa", "attn_logit_softcapping": 30.0}, "sdpa cannot do soft-capped scores"),
        ({"attn_impl": "flex", "attn_pdrop": 0.1}, "flex cannot do attention dropout"),
        ({"rope": True, "rope_dail_config": {"type": "xpos"}}, "xpos needs the flash-attn package"),
    ],
)
def test_what_cannot_run_is_refused_when_it_is_configured(attn_config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        mpt.MPTConfig(d_model=128, n_heads=4, attn_config=attn_config)
    assert words in str(refused.value)


def test_a_configuration_keeps_what_it_was_given() -> None:
    config = mpt.MPTConfig(d_model=128, n_heads=4, attn_config={"attn_impl": "sdpa", "rope": True})
    mpt.MPTForCausalLM(config)
    assert config.attn_config["attn_impl"] == "sdpa"
    assert config.attn_config["rope_impl"] == "dail"
    assert config.attn_config["rope_hf_config"] == {"type": "no_scaling", "factor": 1.0}


def test_positions_are_warned_about_only_when_they_contradict() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mpt.MPTConfig(d_model=128, n_heads=4, attn_config={"alibi": True}).learned_pos_emb is False
    with pytest.warns(UserWarning, match="setting `learned_pos_emb` to `False"):
        mpt.MPTConfig(d_model=128, n_heads=4, learned_pos_emb=True, attn_config={"alibi": True})


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    inputs, _ = make_inputs("full")
    model = build(mpt, settings(rope=True), "flash", torch.float32).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mpt"
    again = mpt.MPTForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def composer_model(cls: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return cls(tokenizer=None, **(settings(alibi=True, attn_impl=more.pop("attn_impl", "flash")) | more))


def test_the_composer_model_is_llm_foundrys() -> None:
    """Same loss, FLOPs, FSDP wrapping and activation checkpointing; the default loss runs without flash-attn."""
    ours = composer_model(mpt.ComposerMPTCausalLM)
    theirs = composer_model(foundry.ComposerMPTCausalLM, attn_impl="torch", loss_fn="torch_crossentropy")
    inputs, _ = make_inputs("full")
    batch = {**inputs, "labels": inputs["input_ids"]}
    torch.testing.assert_close(ours.loss(ours(batch), batch), theirs.loss(theirs(batch), batch))
    assert ours.flops_per_batch(batch) == theirs.flops_per_batch(batch)
    for mine, its in zip(ours.model.modules(), theirs.model.modules(), strict=True):
        # LLM Foundry's mark beside its function, ours in the function alone
        marked = getattr(its, "_fsdp_wrap", False) and any(True for _ in its.parameters())
        assert ours.model.fsdp_wrap_fn(mine) == (marked or theirs.model.fsdp_wrap_fn(its))
        assert ours.model.activation_checkpointing_fn(mine) == theirs.model.activation_checkpointing_fn(its)
        assert isinstance(its, MPTBlock) == isinstance(mine, MPTBlock)


def test_register_replaces_llm_foundrys_model() -> None:
    register_components()
    assert registry.models.get("mpt_causal_lm") is mpt.ComposerMPTCausalLM
