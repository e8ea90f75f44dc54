"""`python -m recipes keys`: what it says is what the grammar takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from recipes.config.check import grammar, load_checked
from recipes.config.meanings import read_meanings
from recipes.config.reference import find, keys

from ..conftest import ROOT, Command


def takes(key: str, kind: str = "train") -> dict[str, str]:
    return {name: text for name, text, _ in keys(key, kind)}


def test_sections_names_limits_defaults_and_what_is_needed() -> None:
    top = takes("")
    assert top["max_seq_len"] == "a whole number, at least 1; needed"
    assert top["precision"] == "one of fp32, amp_fp16, amp_bf16, amp_fp8; default amp_bf16"
    assert top["autoresume"] == "true or false"  # LLM Foundry's default is false, and not this project's
    assert top["cost"].startswith("a section of gpu, kg_co2e_per_kwh")
    assert top["callbacks"].startswith("a section of async_eval, budget_guard")
    (names,) = keys("optimizer")
    assert names[0] == "optimizer.name"
    assert "decoupled_adamw" in names[1]
    adamw = takes("optimizer.decoupled_adamw")
    assert adamw["optimizer.decoupled_adamw.eps"] == "a number, at least 0; default 1e-08"
    assert adamw["optimizer.decoupled_adamw.betas"] == "a list; default [0.9, 0.95]"
    assert takes("model.attn_config.alibi") == {"model.attn_config.alibi": "true or false; default false"}
    assert takes("model")["model.name"].endswith("python -m recipes keys model.mpt_causal_lm")
    assert takes("dpo") == {"dpo.beta": "a number, more than 0; needed"}
    assert "train_loader.dataset.streams.NAME.proportion" in takes("train_loader.dataset.streams")
    assert top["icl_tasks"] == "text or null, or a list of sections"
    assert top["eval_loader"].endswith("or a list of them")
    assert top["include"] == takes("include", "eval")["include"]
    assert takes("models.0", "eval")["models.0.run"] == "text"
    assert takes("models", "eval")["models.0.folder"] == "text"


def test_keys_mean_what_their_section_says() -> None:
    meanings = {name: meaning for kind in ("train", "eval") for name, _, meaning in keys("", kind)}
    assert meanings["max_seq_len"] == "tokens that a model reads at most"  # of the second kind
    assert meanings["precision"].startswith("the type in which products are computed")
    (rwkv,) = (text for name, _, text in keys("model.rwkv_causal_lm") if name.endswith("expansion_ratio"))
    (mpt,) = (text for name, _, text in keys("model.mpt_causal_lm") if name.endswith("expansion_ratio"))
    assert "channel mixing" in rwkv
    assert "feed-forward" in mpt
    (rate,) = (text for name, _, text in keys("callbacks.cost_monitor") if name.endswith("usd_per_device_hour"))
    assert rate == {name: text for name, _, text in keys("cost")}["cost.usd_per_device_hour"]


def test_every_key_has_a_meaning_and_a_default_that_it_takes() -> None:
    unsaid, refused = [], []
    for section, key, schema in _keys_of(grammar("train")):
        if "description" not in schema:
            unsaid.append(f"{section}: {key}")
        if "default" in schema and not Draft202012Validator(schema).is_valid(schema["default"]):
            refused.append(f"{section}: {key}: {schema['default']!r}")
    assert not unsaid
    assert not refused


def test_no_meaning_is_of_a_key_that_is_not_there() -> None:
    said = {schema.get("description") for _, _, schema in _keys_of(grammar("train"))}
    orphans = [text for section in read_meanings().values() for text in section.values() if text not in said]
    assert not orphans


def _keys_of(schema: Any, section: str = "recipe") -> Iterator[tuple[str, str, Any]]:
    if isinstance(schema, list):
        for each in schema:
            yield from _keys_of(each, section)
    elif isinstance(schema, dict):
        for word, inner in schema.items():
            if word == "properties":
                for key, of_key in inner.items():
                    yield section, key, of_key
                    yield from _keys_of(of_key, key)
            elif word != "if":  # which asks for a key that is described where it is allowed
                yield from _keys_of(inner, word if word.islower() else section)


def test_a_word_finds_keys_at_any_depth() -> None:
    found = {name: text for name, text, _ in find("dropout")}
    assert found["model.attn_config.attn_pdrop"] == "a number; default 0.0"
    assert "model.resid_pdrop" in found
    prompts = [(name, text) for name, text, _ in find("target_prompts")]
    assert prompts == [("eval_loader.dataset.target_prompts", "text; default none; of finetuning")]
    assert not list(find("alibbi"))
    assert [name for name, *_ in find("prompts", "eval")][-1] == "samples.prompts"


def test_a_key_of_evaluations_alone_is_said_to_be_one() -> None:
    with pytest.raises(ValueError, match=r"one for eval/evaluate\.py has: python -m recipes keys models\.run --eval"):
        list(keys("models.run"))


@pytest.mark.parametrize("recipe", ["pretrain/mpt-7b-8k", "pretrain/rwkv-169m", "finetune/llama-3-8b-chat-lora"])
def test_every_key_of_a_recipe_is_known(recipe: str) -> None:
    values = load_checked(ROOT / "yamls" / f"{recipe}.yaml").values
    for section in ("model", "optimizer", "scheduler", "fsdp_config", "callbacks", "algorithms"):
        name = values[section].get("name")
        way = f"{section}.{name}" if name else section
        known = takes(way)
        assert {f"{way}.{key}" for key in OmegaConf.create(dict(values[section])) if key != "name"} <= known.keys()


def test_the_command(run_command: Command) -> None:
    done = run_command("python", "-X", "importtime", "-m", "recipes", "keys", "callbacks.budget_guard")
    assert "callbacks.budget_guard.budget_usd" in done.stdout
    assert "dollars for the whole run" in done.stdout
    assert " torch\n" not in done.stderr
    assert "emb_pdrop" in run_command("python", "-m", "recipes", "keys", "dropout").stdout
    refused = run_command("python", "-m", "recipes", "keys", "model.attn_config.alibbi")
    assert refused.returncode == 1
    assert "did you mean model.attn_config.alibi?" in refused.stderr
