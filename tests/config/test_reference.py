"""`python -m recipes keys`: what it says is what the grammar takes."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from recipes.config.check import load_checked
from recipes.config.reference import keys

from ..conftest import ROOT, Command


def test_sections_names_limits_and_what_is_needed() -> None:
    top = dict(keys(""))
    assert top["max_seq_len"] == "a whole number, at least 1; needed"
    assert top["precision"] == "one of fp32, amp_fp16, amp_bf16, amp_fp8"
    assert top["cost"].startswith("a section of gpu, kg_co2e_per_kwh")
    assert top["callbacks"].startswith("a section of async_eval, budget_guard")
    (names,) = keys("optimizer")
    assert names[0] == "optimizer.name"
    assert "decoupled_adamw" in names[1]
    assert dict(keys("optimizer.decoupled_adamw"))["optimizer.decoupled_adamw.eps"] == "a number, at least 0"
    assert dict(keys("model.attn_config.alibi")) == {"model.attn_config.alibi": "true or false"}
    assert dict(keys("dpo")) == {"dpo.beta": "a number, more than 0; needed"}
    assert "train_loader.dataset.streams.NAME.proportion" in dict(keys("train_loader.dataset.streams"))
    assert top["icl_tasks"] == "text or null, or a list of sections"
    assert top["eval_loader"].endswith("or a list of them")
    assert top["include"] == dict(keys("include", "eval"))["include"]
    assert dict(keys("models.0", "eval"))["models.0.run"] == "text"
    assert dict(keys("models", "eval"))["models.0.folder"] == "text"


def test_a_key_of_evaluations_alone_is_said_to_be_one() -> None:
    with pytest.raises(ValueError, match=r"one for eval/evaluate\.py has: python -m recipes keys models\.run --eval"):
        list(keys("models.run"))


@pytest.mark.parametrize("recipe", ["pretrain/mpt-7b-8k", "pretrain/rwkv-169m", "finetune/llama-3-8b-chat-lora"])
def test_every_key_of_a_recipe_is_known(recipe: str) -> None:
    values = load_checked(ROOT / "yamls" / f"{recipe}.yaml").values
    for section in ("model", "optimizer", "scheduler", "fsdp_config", "callbacks", "algorithms"):
        name = values[section].get("name")
        way = f"{section}.{name}" if name else section
        known = dict(keys(way))
        assert {f"{way}.{key}" for key in OmegaConf.create(dict(values[section])) if key != "name"} <= known.keys()


def test_the_command(run_command: Command) -> None:
    done = run_command("python", "-X", "importtime", "-m", "recipes", "keys", "callbacks.budget_guard")
    assert "callbacks.budget_guard.budget_usd" in done.stdout
    assert " torch\n" not in done.stderr
    refused = run_command("python", "-m", "recipes", "keys", "model.attn_config.alibbi")
    assert refused.returncode == 1
    assert "did you mean model.attn_config.alibi?" in refused.stderr
