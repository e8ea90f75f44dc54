"""The learning rate at a step, by a recipe alone: what Composer's schedulers will say. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from recipes.config.load import Recipe
from recipes.cost.run_length import read_duration
from recipes.cost.setup import steps_of_run
from recipes.training.batches import dataset_tokens

# By scheduler: the factor of optimizer.lr, from that at the peak, that at the end, and the share of the decay done.
SHAPES: Mapping[str, Callable[[float, float, float], float]] = {
    "constant_with_warmup": lambda first, last, part: first,
    "linear_decay_with_warmup": lambda first, last, part: first + (last - first) * part,
    "cosine_with_warmup": lambda first, last, part: last + (first - last) * (1 + math.cos(math.pi * part)) / 2,
}


def learning_rate(recipe: Recipe, step: int) -> float | None:
    """The learning rate after a number of optimizer steps, as Composer's scheduler gives it.

    None for a scheduler that is not in SHAPES, and where the number of steps depends on data that is not here.
    """
    scheduler, peak = recipe.get("scheduler", {}), recipe.get("optimizer.lr")
    shape = SHAPES.get(str(scheduler.get("name")))
    warmup, whole = (
        _steps(recipe, scheduler.get(key, usual)) for key, usual in (("t_warmup", "0ba"), ("t_max", "1dur"))
    )
    if shape is None or warmup is None or whole is None or not isinstance(peak, (int, float)):
        return None
    first, last = scheduler.get("alpha_i", scheduler.get("alpha", 1.0)), scheduler.get("alpha_f", 0.0)
    if step < warmup:
        return float(peak * first * step / warmup)
    part = min(1.0, (step - warmup) / (whole - warmup)) if whole > warmup else 0.0
    return float(peak * shape(first, last, part))


def warmup_is_longer(recipe: Recipe) -> bool:
    """Whether the run ends before its warm-up; False where steps depend on data that is not here."""
    warmup, whole = (_steps(recipe, written) for written in (recipe.get("scheduler.t_warmup"), "1dur"))
    if warmup is not None and whole is not None:
        return warmup > whole
    first, length = read_duration(recipe.get("scheduler.t_warmup")), read_duration(recipe["max_duration"])
    return bool(first and length and first.unit == length.unit and first.amount > length.amount)


def _steps(recipe: Recipe, written: object) -> float | None:
    """The steps that a length in a recipe is."""
    length = read_duration(written)
    if length is None:
        return None
    is_part = length.unit == "dur"
    values = recipe.values if is_part else {**recipe.values, "max_duration": written}
    try:
        steps = steps_of_run(values, dataset_tokens(recipe))
    except ValueError:
        return None
    return steps * length.amount if is_part and steps is not None else steps
