"""Whole estimates: published runs, famous dollar figures, energy, and the numbers' own consistency."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recipes.cost.estimate import Range, estimate, usd_of_flops
from recipes.cost.published import GPT_3_FLOPS, compare, gpt_3

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {
    "model": {
        "name": "mpt_causal_lm",
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": 32,
        "vocab_size": 50432,
        "no_bias": True,
        "attn_config": {"alibi": True},
    },
    "max_seq_len": 2048,
    "global_train_batch_size": 1760,
    "device_train_microbatch_size": "auto",
    "max_duration": "1000000000000tok",
    "precision": "amp_bf16",
    "fsdp_config": {"mixed_precision": "PURE", "activation_checkpointing": True},
}


def test_published_runs_lie_within_the_range() -> None:
    comparisons = compare()
    inside = [c.run for c in comparisons if c.inside]
    assert len(inside) >= 0.8 * len(comparisons), [c for c in comparisons if not c.inside]


def test_mpt_7b_cost_what_was_said() -> None:
    """MosaicML: 440 A100-40GB, 9.5 days, about 200 thousand dollars at 2 dollars an hour."""
    plan = estimate(RECIPE, "a100-40gb", 440, usd_per_gpu_hour=2.0)
    assert plan.usd is not None
    assert plan.hours is not None
    assert 200_000 in plan.usd
    assert 9.5 * 24 in plan.hours
    assert plan.mfu_low < 0.383 < plan.mfu_high  # 6 N D and attention over 440 GPUs * 9.5 days * 312 TFLOP/s


def test_gpt_3_from_its_true_assumptions() -> None:
    assert usd_of_flops(3.14e23, 28e12, 1.5) == pytest.approx(4.6e6, rel=0.02)
    gpu_years = usd_of_flops(3.14e23, 28e12, 1.0) / 24 / 365
    assert gpu_years == pytest.approx(355, rel=0.01)
    (_, famous), (_, cheapest), (_, dearest) = gpt_3()
    assert famous == pytest.approx(4.6e6, rel=0.02)
    assert cheapest < dearest < famous  # a real MFU on a later GPU
    with pytest.raises(ValueError, match="expected both above 0"):
        usd_of_flops(GPT_3_FLOPS, 0, 1)


def test_energy_as_the_llama_paper_counts_it() -> None:
    """Table 15: LLaMA-7B took 82,432 GPU-hours, 36 MWh and 14 tCO2e."""
    plan = estimate(RECIPE, "a100-80gb", 8)
    assert plan.gpu_hours is not None
    assert plan.kwh is not None
    assert plan.kg_co2e is not None
    per_hour = plan.kwh.mid / plan.gpu_hours.mid
    assert 82_432 * per_hour / 1000 == pytest.approx(36, abs=0.5)
    assert plan.kg_co2e.mid / plan.kwh.mid * 82_432 * per_hour / 1000 == pytest.approx(14, abs=0.1)


def test_figures_agree_with_each_other() -> None:
    plan = estimate(RECIPE, "h100", 64, usd_per_gpu_hour=3)
    assert plan.hours is not None
    assert plan.gpu_hours is not None
    assert plan.usd is not None
    assert plan.params_total == 6_649_286_656
    assert plan.flops_per_token == 6 * plan.params_active + 12 * 32 * 4096 * 2048
    assert plan.steps == -(-(10**12) // (1760 * 2048))
    assert plan.tokens == plan.steps * 1760 * 2048  # the last batch is a whole one
    assert plan.mfu == pytest.approx(plan.flops_per_token * plan.tokens_per_s_per_gpu / 989.5e12)
    for r in (plan.hours, plan.gpu_hours, plan.usd):
        assert r.low < r.mid < r.high
    assert plan.gpu_hours.mid == pytest.approx(plan.hours.mid * 64)
    assert plan.usd.mid == pytest.approx(plan.gpu_hours.mid * 3)
    assert plan.mfu_low < plan.mfu < plan.mfu_high
    hours_at_low = plan.flops_per_token * plan.tokens / (plan.mfu_low * 989.5e12) / 3600
    assert plan.gpu_hours.high == pytest.approx(hours_at_low)
    assert plan.fits
    assert plan.to_fit is None
    assert plan.microbatch_sequences == plan.max_microbatch_sequences
    assert sum(plan.memory.by_part().values()) == pytest.approx(plan.memory_gib_per_gpu)
    assert plan.training_balance is not None


def test_list_prices_widen_the_dollars() -> None:
    plan = estimate(RECIPE, "h100", 64)
    assert plan.usd is not None
    assert plan.gpu_hours is not None
    assert plan.rate.low is not None
    assert plan.usd.low == pytest.approx(plan.gpu_hours.low * plan.rate.low)
    spot = estimate(RECIPE, "gb200", 72, price_kind="spot")
    assert spot.usd is None
    assert spot.rate.source.startswith("no rate known")


def test_the_cost_section_is_read_and_arguments_beat_it() -> None:
    recipe = RECIPE | {"cost": {"gpu": "a100-40gb", "usd_per_device_hour": 1.1}}
    assert estimate(recipe, gpus=8).rate.usd_per_device_hour == 1.1
    assert estimate(recipe, gpus=8).gpu == "a100-40gb"
    assert estimate(recipe, "h100", 8, usd_per_gpu_hour=2.2).rate.usd_per_device_hour == 2.2
    with pytest.raises(ValueError, match="gpu: missing; name one"):
        estimate(RECIPE)
    with pytest.raises(ValueError, match="did you mean h100"):
        estimate(RECIPE, "h10O")


def test_watts_of_the_recipe_and_prices_that_are_asked_for_count() -> None:
    recipe = RECIPE | {"cost": {"watts_per_device": 350, "usd_per_device_hour": 2.5}}
    table, stated = estimate(RECIPE, "h100", 8), estimate(recipe, "h100", 8)
    assert table.kwh is not None
    assert stated.kwh is not None
    assert stated.kwh.mid == pytest.approx(table.kwh.mid / 2)
    assert stated.rate.usd_per_device_hour == 2.5
    spot = estimate(RECIPE, "h100", 8, price_kind="spot").rate
    assert estimate(recipe, "h100", 8, price_kind="spot").rate == spot


def test_the_recipe_says_what_its_electricity_is_and_arguments_beat_it() -> None:
    recipe = RECIPE | {"cost": {"power_usage_effectiveness": 1.5, "kg_co2e_per_kwh": 0.05}}
    default, stated = estimate(RECIPE, "h100", 8), estimate(recipe, "h100", 8)
    assert (default.power_usage_effectiveness, default.kg_co2e_per_kwh) == (1.1, 0.385)
    assert (stated.power_usage_effectiveness, stated.kg_co2e_per_kwh) == (1.5, 0.05)
    assert stated.kwh is not None
    assert stated.kg_co2e is not None
    assert default.kwh is not None
    assert stated.kwh.mid == pytest.approx(default.kwh.mid * 1.5 / 1.1)
    assert stated.kg_co2e.mid == pytest.approx(stated.kwh.mid * 0.05)
    assert estimate(recipe, "h100", 8, kg_co2e_per_kwh=0.0).kg_co2e == Range(0, 0, 0)
    assert estimate(RECIPE | {"cost": {"watts_per_device": 0}}, "h100", 8).kwh == Range(0, 0, 0)


def test_what_is_not_known_is_none_and_said() -> None:
    plan = estimate(RECIPE | {"max_duration": "1ep"}, "h100", 8)
    nothing = (plan.tokens, plan.steps, plan.hours, plan.gpu_hours, plan.usd, plan.kwh, plan.predicted_loss)
    assert nothing == (None,) * 7
    assert plan.no_tokens is not None
    assert "max_duration 1ep depends on the data: --dataset-tokens N" in plan.no_tokens
    assert estimate(RECIPE | {"max_duration": "2ep"}, "h100", 8, dataset_tokens=10**9).tokens == 2 * 278 * 1760 * 2048
    assert any("was not measured" in note for note in estimate(RECIPE, "b200", 8).notes)
    tpu = estimate(RECIPE, "tpu-v5p", 8)
    assert tpu.kwh is None
    assert any("does not divide by 7 GPUs" in note for note in estimate(RECIPE, "h100", 7).notes)


def test_what_is_asked_for_would_help() -> None:
    dropping = RECIPE | {"max_duration": "1ep", "train_loader": {"drop_last": True}}
    few = estimate(dropping, "h100", 8, dataset_tokens=1000)
    assert few.no_tokens == "max_duration 1ep is not one step: a batch is 3,604,480 tokens, the data 1,000"
    padded = estimate(RECIPE | {"train_loader": {"name": "finetuning"}}, "h100", 8)
    assert padded.no_tokens is not None
    assert "counts no padding, of which only the data knows" in padded.no_tokens
    assert "--dataset-tokens" not in padded.no_tokens
    assert estimate(RECIPE, "h100", 8).no_tokens is None


def test_nodes_that_are_not_whole_are_said() -> None:
    hybrid = RECIPE | {"global_train_batch_size": 96, "fsdp_config": {"sharding_strategy": "HYBRID_SHARD"}}
    said = "HYBRID_SHARD has 8 shards a model, which do not divide 12 GPUs"
    assert any(said in note for note in estimate(hybrid, "h100", 12).notes)
    assert not any("shards a model" in note for gpus in (4, 16) for note in estimate(hybrid, "h100", gpus).notes)


def test_a_recipe_that_does_not_fit_says_what_would() -> None:
    plan = estimate(RECIPE | {"device_train_microbatch_size": 220}, "a100-40gb", 8)
    assert not plan.fits
    assert plan.to_fit == f"set device_train_microbatch_size: {plan.max_microbatch_sequences}"
    alone = estimate(RECIPE, "l4", 1)
    assert (alone.fits, alone.max_microbatch_sequences) == (False, 0)
    assert alone.to_fit is not None
    assert "GPUs with fsdp_config.sharding_strategy: FULL_SHARD" in alone.to_fit


def test_range_holds_its_ends() -> None:
    assert 1.0 in Range(1, 2, 3)
    assert 3.5 not in Range(1, 2, 3)


def test_an_estimate_is_quick() -> None:
    estimate(RECIPE, "h100", 64)
    begun = time.perf_counter()
    estimate(RECIPE, "h100", 64)
    assert time.perf_counter() - begun < 0.1


@pytest.mark.parametrize("command", [["recipes.cost.published"], ["recipes.cost.fit", "--check"]])
def test_commands_print(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "inside" in done.stdout or "held_out" in done.stdout
