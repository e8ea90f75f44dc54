"""`python -m recipes plan` as a user starts it: figures, ranges, money, deadlines, and words for what is wrong."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from recipes.config.check import check
from recipes.config.load import load
from recipes.cost.architecture import model_shape
from recipes.cost.duration import hours_of, in_words
from recipes.cost.estimate import estimate
from recipes.cost.hardware import find_gpu
from recipes.cost.scaling import scaling_law
from recipes.cost.spend import best_for
from recipes.planning.plan import Options, make_plans
from recipes.planning.plan_text import print_comparison, print_plan
from recipes.planning.purchase_text import bought_rows

from ..conftest import ROOT, Command

SEVEN_B = "yamls/pretrain/mpt-7b.yaml"
LONG = "yamls/pretrain/mpt-7b-8k.yaml"


def plan(run_command: Command, *arguments: str) -> Any:
    done = run_command("python", "-m", "recipes", "plan", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_documented_command_answers_quickly_without_torch(run_command: Command) -> None:
    arguments = [LONG, "--gpu", "h100", "--gpus", "64", "--rate", "2.5", "--budget", "200000", "--deadline", "10d"]
    begun = time.perf_counter()
    done = run_command("python", "-X", "importtime", "-m", "recipes", "plan", *arguments)
    assert time.perf_counter() - begun < 5  # about 0.5 s on an idle core
    assert done.returncode == 0, done.stderr
    assert " torch\n" not in done.stderr
    for words in (
        "6,649,286,656 in all",
        "6 N + 12 L d S",
        "matrix products",
        "238,419 steps",
        "steady state",
        "whole run",
        "GPU-hours",
        "stated: 2.5 USD",
        "700 W a GPU",
        "0.385 kg/kWh",
        "checkpointing off: activations",
        "fits",
        "tokens a parameter",
        "Besiroglu",
        "hoffmann-2022",
        "missed with 64 GPUs; 128 GPUs are the fewest",
        "$200,000: enough for this recipe",
        "--master_port 7501 train.py yamls/pretrain/mpt-7b-8k.yaml model.d_model=",
    ):
        assert words in " ".join(done.stdout.split()), words


def test_json_names_units_and_adds_up(run_command: Command) -> None:
    p = plan(run_command, SEVEN_B, "--gpu", "h100", "--gpus", "64", "--rate", "2.5")
    assert p["params_total"] == p["params_active"] == 6_649_286_656
    assert p["tokens"] == 63_900 * 1024 * 2048
    assert p["flops_per_token"] == 6 * 6_649_286_656 + 12 * 32 * 4096 * 2048
    parts = p["flops_per_token_matrix"] + p["flops_per_token_attention"] + p["flops_per_token_head"]
    assert parts == p["flops_per_token_done"]  # which leaves out norms; blocks are computed again, the head is not
    once_more = (p["flops_per_token_matrix"] + p["flops_per_token_attention"]) / 4
    assert parts - once_more == pytest.approx(p["flops_per_token"], rel=0.001)
    assert p["hfu"] / p["mfu"] == parts / p["flops_per_token"]
    assert "LLM Foundry's count" in p["mfu_counts"]
    assert 0 < p["mfu_low"] < p["mfu"] < p["mfu_high"] < 1
    steady_hours = p["tokens"] / p["tokens_per_s_per_gpu"] / 3600
    assert p["gpu_hours"] == pytest.approx(steady_hours / p["whole_run_share"])
    assert p["usd"] == pytest.approx(p["gpu_hours"] * 2.5)
    assert p["usd_low"] < p["usd"] < p["usd_high"]
    assert p["kwh"] == pytest.approx(p["gpu_hours"] * 0.7 * 1.1)
    assert p["kg_co2e"] == pytest.approx(p["kwh"] * 0.385)
    assert set(p["memory_gib_per_gpu"]) == {
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "buffers",
    }
    assert sum(p["memory_gib_per_gpu"].values()) == pytest.approx(p["memory_total_gib_per_gpu"])
    assert p["fits"] is True
    assert p["max_microbatch_sequences"] >= 8
    by_choice = p["activations_gib_by_checkpointing"]
    assert by_choice["true"] < by_choice["false"]
    assert p["predicted_loss"] == scaling_law().loss(p["params_total"], p["tokens"])
    assert p["predicted_loss_error_95"] == pytest.approx(0.0588)


@pytest.mark.parametrize(
    ("recipe", "again", "passes"),
    [
        ("finetune/mpt-7b-instruct-lora", False, (2, 3, 2)),
        ("finetune/mpt-7b-dpo", True, (4, 5, 4)),  # its scores are computed again
        ("pretrain/mpt-1b", False, (3, 3, 3)),
    ],
)
def test_flops_are_those_of_the_passes_that_are_timed(
    run_command: Command, recipe: str, again: bool, passes: tuple[int, int, int]
) -> None:
    recomputed = f"fsdp_config.activation_checkpointing={str(again).lower()}"
    words = (f"yamls/{recipe}.yaml", recomputed, "--gpu", "h100", "--gpus", "8", "--dataset-tokens", "1e8")
    p = plan(run_command, *words)
    shape = model_shape(load(ROOT / words[0])["model"] | {"max_seq_len": 2048})
    assert p["flops_per_token_head"] == passes[2] * 2 * shape.vocab_size * shape.d_model
    assert p["flops_per_token_attention"] == passes[1] * 4 * shape.n_layers * shape.d_model * 2048
    assert p["flops_per_token_matrix"] == passes[0] * 24 * shape.n_layers * shape.d_model**2
    printed = " ".join(run_command("python", "-m", "recipes", "plan", *words).stdout.split())
    assert f"{passes[0]}, {passes[1]} and {passes[2]} forward passes' worth" in printed
    assert ("with the products that are done: MFU is LLM Foundry's count" in printed) == (passes != (3, 3, 3))


def test_overrides_before_and_after_options(run_command: Command) -> None:
    p = plan(run_command, SEVEN_B, "model.n_layers=2", "--gpu", "h100", "max_duration=200ba", "--gpus", "8")
    assert p["tokens"] == 200 * 1024 * 2048
    assert p["params_total"] < 1_000_000_000
    assert p["predicted_loss_extrapolated"] is True
    assert p["predicted_loss_error_95"] is None


def test_a_row_for_every_gpu_when_none_is_named(run_command: Command) -> None:
    plans = plan(run_command, SEVEN_B)
    assert {"h100-sxm", "a100-80gb", "b200", "rtx-4090"} <= {p["gpu"] for p in plans}
    assert all(p["gpus"] == 8 for p in plans)
    done = run_command("python", "-m", "recipes", "plan", SEVEN_B)
    for words in ("h100-sxm", "GPU-hours", "v100 has no published amp_bf16 peak", "8 GPUs, one node"):
        assert words in done.stdout


def test_what_does_not_fit_says_the_smallest_change_and_the_change_works(run_command: Command) -> None:
    p = plan(run_command, SEVEN_B, "--gpu", "l4", "--gpus", "8")
    assert p["fits"] is False
    assert p["to_fit"] == f"set device_train_microbatch_size: {p['max_microbatch_sequences']}"
    change = f"device_train_microbatch_size={p['max_microbatch_sequences']}"
    assert plan(run_command, SEVEN_B, change, "--gpu", "l4", "--gpus", "8")["fits"] is True


def test_a_budget_alone_buys_the_best_model_and_its_recipe_is_sound(run_command: Command) -> None:
    p = plan(
        run_command, "--budget", "20000", "--gpu", "h100", "--gpus", "64", "--rate", "2", "--inference-tokens", "1e12"
    )
    best, serving = p["best_for_budget"], p["best_for_budget_with_inference"]
    assert best["usd_training"] == pytest.approx(20_000)
    assert best["usd_serving"] == 0
    assert serving["usd_training"] + serving["usd_serving"] == pytest.approx(20_000)
    assert serving["params_total"] < best["params_total"]  # what is served much is better small
    assert serving["loss"] > best["loss"]
    again = plan(run_command, p["recipe"], *best["overrides"], "--gpu", "h100", "--gpus", "64", "--rate", "2")
    assert again["fits"] is True
    assert again["params_total"] == best["params_total"]
    assert again["usd"] == pytest.approx(20_000, rel=0.01)
    assert again["predicted_loss"] == best["loss"]


def test_a_budget_for_rwkv_names_keys_that_it_has(run_command: Command) -> None:
    asked = "yamls/pretrain/rwkv-169m.yaml"
    best = plan(run_command, asked, "--budget", "500", "--gpu", "h100", "--gpus", "8")["best_for_budget"]
    assert any(override.startswith("model.d_model=") for override in best["overrides"])
    assert check(load(ROOT / asked, best["overrides"])) == []


def test_more_money_is_never_worse_and_a_deadline_limits_it() -> None:
    recipe, gpu = load(SEVEN_B).values, find_gpu("h100")
    losses = []
    for budget in (1e3, 1e4, 1e5):
        bought = best_for(recipe, gpu, 64, budget, 2.0)
        assert bought is not None
        losses.append(bought.loss)
    assert losses == sorted(losses, reverse=True)
    in_a_day = best_for(recipe, gpu, 64, 1e5, 2.0, deadline_hours=24)
    assert in_a_day is not None
    assert in_a_day.limited_by == "deadline"
    assert in_a_day.gpu_hours == 64 * 24
    assert best_for(recipe, gpu, 64, 1e-6, 2.0) is None  # not one step


@pytest.mark.parametrize(
    ("recipe", "gpu", "changes"),
    [
        ("yamls/pretrain/mpt-125m.yaml", "h100", {"model.expansion_ratio": 2.6666666666666665}),  # of few widths whole
        (SEVEN_B, "a100-40gb", {"fsdp_config": None}),  # which a key for checkpointing turns on
    ],
)
def test_what_is_counted_is_what_the_overrides_make(
    recipe: str, gpu: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    asked = [f"{key}={'null' if value is None else value}" for key, value in changes.items()]
    mine = tmp_path / "mine.yaml"
    mine.write_text(load(ROOT / recipe, asked).to_yaml())
    bought = best_for(load(mine).values, find_gpu(gpu), 8, 1e4, 2.0)
    assert bought is not None
    made = load(mine, bought.overrides)
    assert check(made) == []
    planned = estimate(made.values, gpu, 8, usd_per_gpu_hour=2.0)
    assert planned.fits
    assert (planned.params_total, planned.mfu) == (bought.params_total, bought.mfu)
    assert planned.usd is not None
    assert planned.usd.mid == pytest.approx(1e4, rel=0.01)


def test_what_does_not_fit_is_within_no_budget(run_command: Command) -> None:
    words = (SEVEN_B, "device_train_microbatch_size=64", "max_duration=10ba", "--gpu", "l4", "--gpus", "8")
    p = plan(run_command, *words, "--budget", "1e6")
    assert p["fits"] is False
    assert p["usd"] < 1e6
    assert p["within_budget"] is None
    printed = run_command("python", "-m", "recipes", "plan", *words, "--budget", "0.4").stdout
    assert "$0.4: this recipe does not fit; it buys" in printed


def test_a_budget_chooses_no_other_model_for_weights_that_are_given(run_command: Command) -> None:
    words = ("yamls/finetune/mpt-7b-instruct-lora.yaml", "--gpu", "h100", "--gpus", "8", "--dataset-tokens", "1e8")
    planned = run_command("python", "-m", "recipes", "plan", *words, "--budget", "500")
    assert planned.returncode == 0, planned.stderr
    assert "$500: enough for this recipe" in planned.stdout
    for wrong in ("composer train.py", "no model that fits"):
        assert wrong not in planned.stdout


def test_what_a_budget_buys_keeps_what_was_asked_for(run_command: Command) -> None:
    asked = ["global_train_batch_size=256", "precision=amp_fp16", "run_name=a b"]
    words = [SEVEN_B, *asked, "--gpu", "h100", "--gpus", "8", "--budget", "20000"]
    printed = " ".join(run_command("python", "-m", "recipes", "plan", *words).stdout.split())
    assert f"composer -n 8 train.py {SEVEN_B} global_train_batch_size=256 precision=amp_fp16 'run_name=a b'" in printed


def text_of(capsys: pytest.CaptureFixture[str], recipe: str, *overrides: str, **options: Any) -> str:
    """What a plan says, without its line breaks."""
    plans, left_out = make_plans(load(ROOT / recipe, overrides), Options(overrides=overrides, **options))
    print_plan(plans[0]) if len(plans) == 1 else print_comparison(plans, left_out)
    return " ".join(capsys.readouterr().out.split())


def test_what_a_budget_buys_is_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    said = text_of(capsys, SEVEN_B, gpu="h100", gpus=8, budget_usd=2e4)
    assert re.search(r"max_duration=\d+ba run_name=mpt-7b-as-[\d.]+b ", said)
    assert re.search(r"its learning rate and warm-up are those of \S*mpt-7b\.yaml", said)


def test_the_command_of_a_purchase_is_one_for_a_shell(tmp_path: Path) -> None:
    mine = tmp_path / "my [v2] recipe.yaml"
    mine.write_text(load(ROOT / SEVEN_B).to_yaml())

    def said(gpu: str, gpus: int) -> str:
        plans, _ = make_plans(load(mine), Options(gpu=gpu, gpus=gpus, budget_usd=1e5))
        return Text.from_markup(bought_rows("best", plans[0].best, plans[0])[1][1]).plain

    assert shlex.split(said("h100", 8))[:5] == ["composer", "-n", "8", "train.py", str(mine)]
    assert said("h100", 16).startswith("composer -n 8 --world_size 16 ")
    assert said("gh200", 8).startswith("composer -n 1 --world_size 8 ")
    assert said("h100", 12).startswith("12 GPUs do not share its batch evenly: ")


def test_gpus_that_miss_a_deadline_are_behind_those_that_meet_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = text_of(capsys, "yamls/pretrain/mpt-7b.yaml", deadline_hours=60.0)
    late = re.search(r"(\d+) of \d+ do not meet the deadline of 2 d 12 h: (\S+), ", said)
    assert late is not None
    assert int(late[1]) > 0
    assert re.search(r"[\w-]: \d+ GPUs, the fewest that meet the deadline", said)
    slow = said.index(f" {late[2]} ")
    assert said.index(" h100-sxm ") < slow
    nodes = text_of(capsys, "yamls/pretrain/mpt-125m.yaml")
    for words in ("gh200: 8 GPUs, 8 nodes", "the others: 8 GPUs, one node", "tpu-v4, tpu-v5p: 8 GPUs, 2 nodes"):
        assert words in nodes


def test_what_no_measurement_stands_behind_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    small = "no model so small was measured"
    assert small in text_of(capsys, "yamls/pretrain/mpt-quickstart.yaml", gpu="h100", gpus=1)
    assert small not in text_of(capsys, "yamls/pretrain/mpt-125m.yaml", gpu="h100", gpus=8)
    compared = text_of(capsys, SEVEN_B)
    assert "tpu-v4, tpu-v5p: nothing in this repository runs on TPUs" in compared
    assert "tpu-v5p TPU 8" in compared  # in the place of whether it fits
    assert "nothing in this repository runs on TPUs" in text_of(capsys, SEVEN_B, gpu="tpu-v4")


def test_a_peak_is_said_to_be_that_of_tf32(capsys: pytest.CaptureFixture[str]) -> None:
    said = text_of(capsys, "yamls/pretrain/mpt-125m.yaml", "precision=fp32", gpu="h100", gpus=8)
    assert "TFLOP/s (fp32, whose products Composer lets the GPU take in TF32, dense)" in said
    said = text_of(capsys, "yamls/pretrain/mpt-125m.yaml", "precision=fp32", gpu="v100", gpus=8)
    assert "TFLOP/s (fp32, dense)" in said


def test_a_stated_shard_degree_is_no_hindrance_to_a_deadline(run_command: Command) -> None:
    p = plan(run_command, SEVEN_B, "fsdp_config.data_parallel_shard_degree=8", "--gpu", "h100", "--deadline", "10d")
    assert p["gpus"] % 8 == 0
    assert p["meets_deadline"] is True


def test_degrees_that_a_run_refuses_are_not_planned(run_command: Command) -> None:
    degrees = ("fsdp_config.data_parallel_shard_degree=8", "fsdp_config.data_parallel_replicate_degree=2")
    refused = run_command("python", "-m", "recipes", "plan", SEVEN_B, *degrees, "--gpu", "h100", "--gpus", "64")
    assert refused.returncode == 1
    assert "2 replicas × 8 shards are 16 devices, the run has 64" in refused.stderr
    checked = run_command("python", "-m", "recipes", "check", SEVEN_B, *degrees, env={"WORLD_SIZE": "64"})
    assert "2 replicas × 8 shards are 16 devices, the run has 64" in checked.stderr


def test_a_budget_for_what_is_of_unknown_length_or_layers(run_command: Command) -> None:
    tuned = run_command(
        "python", "-m", "recipes", "plan", "yamls/finetune/mpt-7b-instruct.yaml", "--gpu", "h100", "--budget", "100"
    )
    assert re.search(r"\$100: it buys [\d.]+ [MB] tokens of this model", tuned.stdout)
    words = ["model.block_overrides={order: [{name: default, repeat: 32}]}", "--gpu", "h100", "--budget", "1000"]
    planned = run_command("python", "-m", "recipes", "plan", SEVEN_B, *words)
    assert planned.returncode == 0, planned.stderr
    assert "chooses no other size of a model whose block_overrides" in " ".join(planned.stdout.split())


def test_watts_are_those_that_were_counted(run_command: Command) -> None:
    p = plan(run_command, SEVEN_B, "cost.gpu=h100", "cost.watts_per_device=350")
    assert p["watts_per_gpu"] == 350
    assert p["kwh"] == pytest.approx(p["gpu_hours"] * 0.35 * p["power_usage_effectiveness"])


def test_a_source_is_cited_for_its_own_figure_alone(run_command: Command) -> None:
    words = ("python", "-m", "recipes", "plan", SEVEN_B, "--gpu", "h100", "--kg-co2e-per-kwh")
    assert "CO₂e at 0.385 kg/kWh (arXiv" in run_command(*words, "0.385").stdout
    assert re.search(r"CO₂e at 0.05 kg/kWh *\n", run_command(*words, "0.05").stdout)


def test_a_loss_that_is_no_better_than_guessing_is_not_predicted(run_command: Command) -> None:
    p = plan(run_command, "yamls/pretrain/mpt-quickstart.yaml", "--gpu", "h100", "--gpus", "1")
    assert p["predicted_loss"] is p["training_balance"] is p["predicted_loss_extrapolated"] is None
    assert set(p["predicted_loss_by_law"].values()) == {None}


def test_a_deadline_without_gpus_chooses_them(run_command: Command) -> None:
    p = plan(run_command, SEVEN_B, "--gpu", "h100", "--deadline", "2w")
    assert p["gpus"] == p["gpus_for_deadline"]
    assert p["hours"] <= p["deadline_hours"] == 336
    assert plan(run_command, SEVEN_B, "--gpu", "h100", "--gpus", str(p["gpus"] // 2), "--deadline", "2w")[
        "meets_deadline"
    ] is False  # fmt: skip


def test_prices_and_laws_of_ones_own(run_command: Command, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("h100: {on_demand: 2.0, spot: 1.0}\n")
    p = plan(run_command, SEVEN_B, "--gpu", "h100", "--prices", str(prices), "--price-kind", "spot")
    assert p["usd_per_gpu_hour"] == 1.0
    p = plan(run_command, SEVEN_B, "--gpu", "h100", "--prices", str(prices), "--rate", "3", "--law", "hoffmann-2022")
    assert p["usd_per_gpu_hour"] == 3.0
    assert p["scaling_law"] == "hoffmann-2022"
    assert p["predicted_loss_error_95"] is None


def test_the_rate_of_one_device_is_not_that_of_all(run_command: Command) -> None:
    rates = {p["gpu"]: p["usd_per_gpu_hour"] for p in plan(run_command, SEVEN_B, "cost.usd_per_device_hour=0.1")}
    assert 0.1 not in rates.values()
    other = ["cost.usd_per_device_hour=0.1", "cost.gpu=a100", "--gpu", "h100"]
    assert plan(run_command, SEVEN_B, *other)["usd_per_gpu_hour"] > 1
    assert plan(run_command, SEVEN_B, *other[:2])["usd_per_gpu_hour"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([SEVEN_B, "--rate", "-1"], "--rate: got -1, expected"),
        ([SEVEN_B, "--gpu", "h10O"], "Unknown GPU 'h10O'; did you mean h100?"),
        ([SEVEN_B, "--gpu", "cpu"], "no CPU has a row"),
        ([SEVEN_B, "--gpu", "v100"], "v100 has no published amp_bf16 peak"),
        ([SEVEN_B, "--gpus", "0"], "--gpus: got 0"),
        ([SEVEN_B, "--budget", "0"], "--budget: got 0"),
        ([SEVEN_B, "--budget", "1e300"], "--budget: got 1e+300"),
        ([SEVEN_B, "--gpu", "h100", "--budget", "100", "--rate", "1e-300"], "at $1e-300 an hour is more than 1e+12"),
        ([SEVEN_B, "--dataset-tokens", "1e300"], "--dataset-tokens: got 1e+300, expected a number from 1 to 1e+18"),
        ([SEVEN_B, "--deadline", "9" * 400], "--deadline: got inf, expected"),
        ([SEVEN_B, "--deadline", "soon"], "got 'soon', expected a length above 0 with a unit"),
        ([SEVEN_B, "--law", "kaplan"], "expected one of besiroglu-2024, hoffmann-2022"),
        ([SEVEN_B, "optimizer.lrr=1"], "did you mean lr?"),
        ([SEVEN_B, "--prices", "none.yaml"], "none.yaml does not exist"),
        ([], "got no recipe"),
        (["nothing.yaml"], "no such recipe"),
    ],
)
def test_bad_input_is_answered_in_words(run_command: Command, arguments: list[str], words: str) -> None:
    done = run_command("python", "-m", "recipes", "plan", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_without_max_duration(run_command: Command, recipe_file: Any) -> None:
    text = Path(SEVEN_B).read_text().replace("max_duration: 63900ba", "").replace("../", f"{Path('yamls').resolve()}/")
    done = run_command("python", "-m", "recipes", "plan", recipe_file(text))
    assert done.returncode == 1
    assert "max_duration: missing; the recipe needs it" in done.stderr


def test_durations() -> None:
    assert [hours_of(t) for t in ("90min", "36h", "10d", "2w", 5)] == [1.5, 36, 240, 336, 5]
    with pytest.raises(ValueError, match="got '-1d'"):
        hours_of("-1d")
    assert [in_words(s) for s in (5, 65, 3700, 90_000)] == ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]
