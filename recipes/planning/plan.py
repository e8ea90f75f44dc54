"""What a recipe will take before anything is paid for: the numbers behind `python -m recipes plan`. No torch.

The estimate itself is recipes/cost; this module chooses what to estimate (which GPUs, how many), compares it with a
budget and a deadline, and names every figure with its unit for `--json`. plan_text.py prints it for a person.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.check import load_checked
from recipes.config.load import Recipe
from recipes.cost.estimate import WHOLE_RUN_MID, Estimate, estimate
from recipes.cost.flops import causal_flops_per_token
from recipes.cost.hardware import find_gpu, load_hardware
from recipes.cost.memory import MemoryEstimate, largest_microbatch, memory
from recipes.cost.rate import cost_section
from recipes.cost.scaling import DEFAULT_LAW, optimal_with_inference, scaling_law
from recipes.cost.setup import CHECKPOINTING, Recompute
from recipes.cost.spend import Purchase, best_for, gpu_hours_for
from recipes.planning.budget import said_before
from recipes.training.batches import dataset_tokens

GPUS = 8  # where neither --gpus nor --deadline says how many
MOST_GPUS = 4096
DEFAULT_RECIPE = Path(__file__).parents[2] / "yamls" / "pretrain" / "mpt-7b.yaml"  # what --budget starts from
SMALLEST, LARGEST = 1e-9, 1e18  # of what is said in numbers
MFU_COUNTS = "LLM Foundry's count, three passes through every weight and over every key"


@dataclass(frozen=True)
class Options:
    """What the command line says besides the recipe. None: not said.

    Raises:
        ValueError: a number that cannot be right, such as a negative rate.
    """

    gpu: str | None = None
    gpus: int | None = None
    usd_per_gpu_hour: float | None = None
    prices_file: str | None = None
    price_kind: str | None = None
    budget_usd: float | None = None
    deadline_hours: float | None = None
    inference_tokens: float | None = None
    inference_mfu: float | None = None
    dataset_tokens: float | None = None
    law: str = DEFAULT_LAW
    power_usage_effectiveness: float | None = None
    kg_co2e_per_kwh: float | None = None
    overrides: Sequence[str] = ()  # of the recipe's keys

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("--gpus", self.gpus, 1, LARGEST),
            ("--rate", self.usd_per_gpu_hour, 0, LARGEST),
            ("--budget", self.budget_usd, SMALLEST, LARGEST),
            ("--deadline", self.deadline_hours, SMALLEST, LARGEST),
            ("--inference-tokens", self.inference_tokens, 0, LARGEST),
            ("--inference-mfu", self.inference_mfu, SMALLEST, 1),
            ("--dataset-tokens", self.dataset_tokens, 1, LARGEST),
            ("--pue", self.power_usage_effectiveness, 1, LARGEST),
            ("--kg-co2e-per-kwh", self.kg_co2e_per_kwh, 0, LARGEST),
        ):
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name}: got {value:g}, expected a number from {least:g} to {most:g}.")
        scaling_law(self.law)


@dataclass(frozen=True)
class Plan:
    """One GPU type's plan, and what a budget, a deadline and tokens to serve make of it."""

    recipe: str
    estimate: Estimate
    flops_causal_per_token: float
    memory_by_checkpointing: Mapping[Recompute, tuple[MemoryEstimate, int]]  # and the largest micro-batch
    options: Options
    assumed: tuple[str, ...]  # what the plan took for granted because nobody said
    guard: str | None = None  # what the recipe's own budget guard says
    within_budget: bool | None = None
    tokens_for_budget: int | None = None  # that the money buys for this very model
    meets_deadline: bool | None = None
    gpus_for_deadline: int | None = None  # fewest that divide the batch, fit and finish in time
    model_is_given: bool = False  # its weights were trained before: the budget chooses no other
    best: Purchase | None = None  # for the budget, nothing to serve
    best_serving: Purchase | None = None  # for the budget, training and serving
    same_loss_serving: tuple[float, float] | None = None  # (parameters, tokens) of least FLOPs with serving


def load_recipe(path: str | None, overrides: list[str]) -> Recipe:
    """The recipe with train.py's overrides, checked as there; without a path, the one that --budget starts from."""
    return load_checked(path or os.path.relpath(DEFAULT_RECIPE), overrides)


def make_plans(recipe: Recipe, options: Options) -> tuple[list[Plan], list[str]]:
    """Plans for the named GPU, or for every GPU of the hardware table; and why some have none.

    Raises:
        ValueError: a GPU, price, batch or budget that cannot be used.
    """
    if str(options.gpu).lower() == "cpu":
        raise ValueError(
            "--gpu: got cpu, expected a GPU: no CPU has a row in the hardware table, so none is predicted."
        )
    named = options.gpu or _recipe_gpu(recipe)
    if named is not None:
        return [_plan(recipe, find_gpu(named).name, options)], []
    precision = str(recipe.get("precision", "amp_bf16"))
    can = {name: gpu.peak(precision) is not None for name, gpu in load_hardware().items()}
    left_out = [f"{name} has no published {precision} peak" for name, has_peak in can.items() if not has_peak]
    return [_plan(recipe, name, options) for name, has_peak in can.items() if has_peak], left_out


def _recipe_gpu(recipe: Recipe) -> str | None:
    gpu = cost_section(recipe.values).get("gpu")
    return None if gpu is None or str(gpu).lower() == "cpu" else str(gpu)


def _plan(recipe: Recipe, gpu: str, options: Options) -> Plan:
    assumed: list[str] = []
    values = _rate_of_this_gpu(recipe, gpu, options, assumed)
    tokens = dataset_tokens(recipe) if options.dataset_tokens is None else int(options.dataset_tokens)

    def on(gpus: int) -> Estimate:
        return estimate(
            values,
            gpu,
            gpus,
            usd_per_gpu_hour=options.usd_per_gpu_hour,
            prices_file=options.prices_file,
            price_kind=options.price_kind,
            dataset_tokens=tokens,
            law=options.law,
            power_usage_effectiveness=options.power_usage_effectiveness,
            kg_co2e_per_kwh=options.kg_co2e_per_kwh,
        )

    in_time = None
    if options.deadline_hours is not None:
        batch = int(recipe["global_train_batch_size"])
        in_time = next((n for n in _divisors(batch) if _can_be_in_time(on, n, options.deadline_hours)), None)
    gpus = options.gpus
    if gpus is None:
        gpus = in_time or max(n for n in _divisors(int(recipe["global_train_batch_size"])) if n <= GPUS)
        why = "the fewest that meet the deadline" if in_time else _nodes(gpus, find_gpu(gpu).gpus_per_node)
        assumed.append(f"{gpus} GPUs, {why}: --gpus N for others")
    plan = on(gpus)
    made = Plan(
        recipe=str(recipe.path),
        estimate=plan,
        flops_causal_per_token=causal_flops_per_token(plan.setup.model, plan.setup.seq_len),
        memory_by_checkpointing={recompute: _memory(plan, recompute) for recompute in CHECKPOINTING},
        options=options,
        assumed=tuple(assumed),
        gpus_for_deadline=in_time,
        guard=said_before(recipe, plan),
    )
    if options.deadline_hours is not None and plan.hours is not None:
        made = dataclasses.replace(made, meets_deadline=_in_time(plan, options.deadline_hours))
    if options.budget_usd is not None:
        made = _with_budget(made, values, options)
    if options.inference_tokens and plan.predicted_loss is not None:
        same = optimal_with_inference(plan.predicted_loss, options.inference_tokens, options.law)
        made = dataclasses.replace(made, same_loss_serving=same)
    return made


def _rate_of_this_gpu(recipe: Recipe, gpu: str, options: Options, assumed: list[str]) -> dict[str, Any]:
    """The recipe's values; without its own rate where that was stated for another device."""
    values = {key: value for key, value in recipe.values.items() if key != "callbacks"}
    section = cost_section(recipe.values)
    stated_for = section.get("gpu")
    other = stated_for is not None and (str(stated_for).lower() == "cpu" or find_gpu(str(stated_for)).name != gpu)
    compared = options.gpu is None and _recipe_gpu(recipe) is None
    if other or compared:
        section.pop("watts_per_device", None)
    rate = section.get("usd_per_device_hour")
    asked_here = options.usd_per_gpu_hour is not None or options.prices_file or options.price_kind
    if rate is not None and not asked_here:
        if other or compared:
            del section["usd_per_device_hour"]
            device = stated_for or "one kind of device"
            assumed.append(f"cost.usd_per_device_hour {rate:g} of the recipe is for {device}: --rate for {gpu}")
        elif stated_for is None:
            assumed.append(f"the recipe's cost.usd_per_device_hour {rate:g} is taken for {gpu}: --rate for another")
    values["cost"] = section
    return values


def _with_budget(plan: Plan, values: Mapping[str, Any], options: Options) -> Plan:
    rate, budget = plan.estimate.rate.usd_per_device_hour, options.budget_usd
    assert budget is not None
    if not rate:
        return dataclasses.replace(
            plan, assumed=(*plan.assumed, f"no budget without a rate: {plan.estimate.rate.source}")
        )

    model_is_given = bool(values.get("pretrained")) or plan.estimate.setup.is_frozen
    if values["model"].get("block_overrides") and not model_is_given:
        model_is_given = True
        note = "the budget chooses no other size of a model whose block_overrides name its layers one by one"
        plan = dataclasses.replace(plan, assumed=(*plan.assumed, note))

    def best(inference_tokens: float) -> Purchase | None:
        if model_is_given:
            return None
        hardware, gpus = plan.estimate.hardware, plan.estimate.gpus
        more = (options.inference_mfu, options.deadline_hours, options.law)
        return best_for(values, hardware, gpus, budget, rate, inference_tokens, *more)

    tokens = int(gpu_hours_for(budget, rate) * 3600 * plan.estimate.tokens_per_s_per_gpu * WHOLE_RUN_MID)
    usd = plan.estimate.usd
    return dataclasses.replace(
        plan,
        within_budget=None if usd is None or not plan.estimate.fits else usd.mid <= budget,
        tokens_for_budget=tokens,
        model_is_given=model_is_given,
        best=best(0.0),
        best_serving=best(options.inference_tokens) if options.inference_tokens else None,
    )


def _memory(plan: Estimate, recompute: Recompute) -> tuple[MemoryEstimate, int]:
    setup = dataclasses.replace(plan.setup, recompute=recompute)
    return memory(setup, plan.hardware), largest_microbatch(setup, plan.hardware)


def _in_time(plan: Estimate, deadline_hours: float) -> bool:
    return plan.hours is not None and plan.hours.mid <= deadline_hours and plan.fits


def _can_be_in_time(on: Callable[[int], Estimate], gpus: int, deadline_hours: float) -> bool:
    try:
        return _in_time(on(gpus), deadline_hours)
    except ValueError:  # so many cannot be shared out as fsdp_config says
        return False


def _nodes(gpus: int, of_a_node: int) -> str:
    if gpus == of_a_node:
        return "one node"
    return "part of a node" if gpus < of_a_node else f"{-(-gpus // of_a_node)} nodes"


def _divisors(batch: int) -> list[int]:
    return [n for n in range(1, min(batch, MOST_GPUS) + 1) if batch % n == 0]
