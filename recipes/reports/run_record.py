"""Everything a run folder says about its run, read back without torch: curve, bill, evaluation, recipe, plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from recipes.config.load import Recipe
from recipes.cost.estimate import KG_CO2E_PER_KWH, POWER_USAGE_EFFECTIVENESS, Estimate, estimate
from recipes.cost.parameters import count_parameters
from recipes.cost.rate import cost_section
from recipes.cost.scaling import is_extrapolated, predicted_loss
from recipes.cost.setup import PADDED, sequences_per_item, tokens_of_run
from recipes.reports.bill import Bill, read_bill
from recipes.reports.runs import (
    TRAIN_LOSS,
    metrics_by_step,
    not_finite_since,
    read_tasks,
    validation_loss,
    validation_scores,
)
from recipes.reports.summary import read_json
from recipes.run_files import EVALUATION, METRICS, RECIPE, SUMMARY, TASKS
from recipes.training.batches import dataset_tokens


@dataclass(frozen=True)
class Point:
    """A loss with what it had taken to get there."""

    tokens: int
    usd: float | None
    loss: float


@dataclass(frozen=True)
class RunRecord:
    name: str
    folder: Path
    bill: Bill
    summary: Mapping[str, Any]  # empty while the run goes on, or after a kill
    evaluation: Mapping[str, Any]  # results.json; empty when there is none
    tasks: tuple[Mapping[str, Any], ...]  # evaluations while it went on, by step: eval/in_loop.py
    recipe: Mapping[str, Any]
    recipe_text: str
    training: tuple[Point, ...]
    validation: tuple[Point, ...]
    by_name: Mapping[str, tuple[Point, ...]]  # of evaluations, loader by loader; loss stands for any score here
    not_finite_since: int | None  # the step from which on the training loss is none, counted from 1
    plan: Estimate | None
    no_plan: str  # why there is none
    padding: float  # tokens of its batches for each one that was counted
    planned_tokens: int | None  # these two need no hardware row
    predicted_loss: float | None
    extrapolated: bool  # outside of what the scaling law was fitted to

    @property
    def kwh(self) -> float | None:
        """At the data centre's meter."""
        overhead = _stated(self.recipe, "power_usage_effectiveness", POWER_USAGE_EFFECTIVENESS)
        return None if self.bill.total.device_kwh is None else self.bill.total.device_kwh * overhead

    @property
    def kg_co2e(self) -> float | None:
        return None if self.kwh is None else self.kwh * _stated(self.recipe, "kg_co2e_per_kwh", KG_CO2E_PER_KWH)

    @property
    def state(self) -> str:
        if self.summary.get("stopped"):
            return f"stopped early: {self.summary['stopped']}"
        if self.summary.get("ended_early"):
            return f"ended early: {self.summary['ended_early']}"
        if self.summary:
            return "finished"
        return "not finished: killed, or still running"


def read_run(folder: Path) -> RunRecord:
    """Raises ValueError, in words, for a folder that is no run's."""
    bill = read_bill(folder)
    folder = bill.folder
    try:
        text = (folder / RECIPE).read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        text, recipe = "", {}
    recipe = recipe if isinstance(recipe, dict) else {}
    tokens_per_step = _positive(recipe, "global_train_batch_size") * _positive(recipe, "max_seq_len")
    tokens_per_step *= sequences_per_item(recipe)
    summary = read_json(folder / SUMMARY)
    by_step = metrics_by_step(folder / METRICS)
    training, validation, by_name = _curves(by_step, tokens_per_step)
    plan, no_plan = _plan(recipe, bill)
    parameters, tokens = _without_hardware(recipe)
    return RunRecord(
        name=folder.resolve().name,
        folder=folder,
        bill=bill,
        summary=summary,
        evaluation=read_json(folder / EVALUATION),
        tasks=read_tasks(folder / TASKS),
        recipe=recipe,
        recipe_text=text,
        training=tuple(training),
        validation=tuple(validation),
        by_name={name: tuple(points) for name, points in by_name.items()},
        not_finite_since=not_finite_since(by_step),
        plan=plan,
        no_plan=no_plan,
        padding=_padding(recipe, summary.get("steps", max(by_step, default=0)), tokens_per_step, bill),
        planned_tokens=tokens,
        predicted_loss=_predicted_loss(recipe, parameters, tokens),
        extrapolated=bool(parameters and tokens) and is_extrapolated(parameters or 0, tokens or 0),
    )


def _padding(recipe: Mapping[str, Any], steps: Any, tokens_per_step: int, bill: Bill) -> float:
    """Tokens of the batches, as plans count them, for each that Composer counts: more than 1 where rows are padded.

    steps: that were done, by the summary, or where there is none yet by the last that was logged.
    """
    loader = recipe.get("train_loader")
    is_padded = isinstance(loader, dict) and loader.get("name") in PADDED
    if not is_padded or not isinstance(steps, int) or not bill.total.tokens:
        return 1.0
    return max(1.0, steps * tokens_per_step / bill.total.tokens)


def _predicted_loss(recipe: Mapping[str, Any], parameters: int | None, tokens: int | None) -> float | None:
    """By the scaling law, where it says anything: not of pretrained weights."""
    if not parameters or not tokens or recipe.get("pretrained"):
        return None
    model = recipe.get("model")
    vocabulary = model.get("vocab_size") if isinstance(model, dict) else None
    return predicted_loss(parameters, tokens, vocabulary if isinstance(vocabulary, int) else None)


def _curves(
    steps: Mapping[int, Mapping[str, float]], tokens_per_step: int
) -> tuple[list[Point], list[Point], dict[str, list[Point]]]:
    """Losses by step: that of step s was logged at s, when s steps were paid for, and is known after s + 1."""
    counted = {step: values["time/token"] for step, values in steps.items() if is_number(values.get("time/token"))}
    last = max(counted, default=0)
    each = counted[last] / last if last else tokens_per_step  # behind the last step that was logged

    def tokens_at(step: int) -> int:
        return round(counted[step] if step in counted else counted.get(last, 0) + (step - last) * each)

    found = {step: values.get("cost/usd") for step, values in steps.items()}
    usd = {step: value if is_number(value) else None for step, value in found.items()}
    training, validation = [], []
    by_name: dict[str, list[Point]] = {}
    for step, values in steps.items():
        if is_number(values.get(TRAIN_LOSS)):
            training.append(Point(tokens_at(step + 1), usd.get(step + 1, usd[step]), values[TRAIN_LOSS]))
        loss = validation_loss(values)
        if loss is not None and is_number(loss):
            validation.append(Point(tokens_at(step), usd.get(step), loss))
        for name, value in validation_scores(values).items():
            if is_number(value):
                by_name.setdefault(name, []).append(Point(tokens_at(step), usd.get(step), value))
    return training, validation, by_name


def _stated(recipe: Mapping[str, Any], key: str, default: float) -> float:
    """A number of the recipe's `cost:` section."""
    try:
        value = cost_section(recipe).get(key)
    except ValueError:  # a section that cannot be read
        value = None
    return float(value) if is_number(value) else default


def _plan(recipe: Mapping[str, Any], bill: Bill) -> tuple[Estimate | None, str]:
    last = next((s for s in reversed(bill.segments) if s.gpu), bill.segments[-1])  # one that was built
    if last.gpu is None:
        return None, "there is no plan of its time and money: its device has no row in the hardware table"
    try:
        rate = last.usd_per_device_hour
        tokens = _dataset_tokens(recipe)
        return estimate(recipe, last.gpu, last.devices, usd_per_gpu_hour=rate, dataset_tokens=tokens), ""
    except (ValueError, KeyError, TypeError) as error:
        return None, f"there is no plan: {error}"


def _without_hardware(recipe: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Parameters and tokens of the recipe, where they can be counted."""
    try:
        tokens = tokens_of_run(recipe, _dataset_tokens(recipe))
        return count_parameters({"max_seq_len": recipe["max_seq_len"], **recipe["model"]}).total, tokens
    except (ValueError, KeyError, TypeError):
        return None, None


def _dataset_tokens(recipe: Mapping[str, Any]) -> int | None:
    """Tokens of an epoch, where the run's data is here still."""
    return dataset_tokens(Recipe(Path(RECIPE), recipe, {}))


def _positive(recipe: Mapping[str, Any], key: str) -> int:
    value = recipe.get(key)
    return value if isinstance(value, int) and value > 0 else 1


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value can be drawn: a run that has diverged logs NaN and infinities."""
    return isinstance(value, (int, float)) and math.isfinite(value)
