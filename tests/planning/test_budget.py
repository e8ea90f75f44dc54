"""What is said of a recipe's budget guard before the run: by check, by a dry run and by the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.config.load import load
from recipes.planning import budget

from ..conftest import Command

SEVEN_B = "yamls/pretrain/mpt-7b.yaml"
H100 = ("cost.gpu=h100", "cost.usd_per_device_hour=2.5")
IN_30_DAYS = "callbacks.budget_guard.deadline=30d"


@pytest.mark.parametrize("words", [("-m", "recipes", "check", SEVEN_B), ("train.py", SEVEN_B, "dry_run=true")])
def test_a_deadline_is_not_judged_by_one_gpu_where_nobody_says_how_many(
    run_command: Command, words: tuple[str, ...]
) -> None:
    words = (*words, *H100)
    alone = run_command("python", *words, IN_30_DAYS)
    assert alone.returncode == 0, alone.stderr
    assert "the plan takes 205 d" in alone.stdout
    assert f"`python -m recipes plan {SEVEN_B} --gpus N` says what N GPUs take" in alone.stdout
    launched = run_command("python", *words, IN_30_DAYS, env={"WORLD_SIZE": "1"})
    assert launched.returncode == 3
    assert "this run may not start: the plan takes 205 d" in launched.stderr
    dear = run_command("python", *words, IN_30_DAYS, "callbacks.budget_guard.budget_usd=500")
    assert dear.returncode == 3
    assert "the budget $500: shorten it" in dear.stderr


def test_a_run_of_one_process_is_refused_by_its_deadline(run_command: Command) -> None:
    refused = run_command("python", "train.py", SEVEN_B, *H100, IN_30_DAYS)
    assert refused.returncode == 3
    assert "this run may not start: the plan takes 205 d" in refused.stderr


def test_a_run_that_no_plan_judges_is_said_to_be_stopped_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(budget, "NVIDIA", tmp_path)  # no GPU
    limit = "callbacks.budget_guard.budget_usd=90000"

    def note(*words: str) -> str | None:
        refused, said = budget.verdict(load(SEVEN_B, ["cost.usd_per_device_hour=2.5", *words]), tmp_path)
        assert refused is None
        return said

    assert "(no device of the hardware table is here or in cost.gpu): it may start" in (note(limit) or "")
    assert "(its length depends on the data)" in (note(limit, "cost.gpu=h100", "max_duration=1ep") or "")
    unknown = note(limit, "cost.gpu=h100", "model.name=hf_causal_lm")
    assert "(the estimator does not count this model or precision)" in (unknown or "")
    assert note(limit, "cost.gpu=h100") is None
    assert note(limit, "callbacks.budget_guard.start_over_budget=true") is None
    assert note("callbacks.budget_guard.max_usd_per_hundredth_loss=1") is None
    assert note() is None


def test_the_plan_says_what_the_guard_of_the_recipe_would(run_command: Command) -> None:
    def said(*overrides: str, gpus: int = 64) -> str:
        words = ("plan", SEVEN_B, *H100, *overrides, "--gpus", str(gpus))
        done = run_command("python", "-m", "recipes", *words)
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    assert "budget guard" not in said()
    assert "budget guard this run may start" in said(IN_30_DAYS)
    assert "budget guard this run may not start: the plan takes 205 d" in said(IN_30_DAYS, gpus=1)
    dear = ("callbacks.budget_guard.budget_usd=500", "callbacks.budget_guard.start_over_budget=true")
    assert "this run may not start: the plan is $1" in said(dear[0])
    assert "this run may start anyway: the plan is $1" in said(*dear)
