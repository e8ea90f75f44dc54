"""Everything that a sound training recipe would stop at on this machine."""

from __future__ import annotations

from recipes.config.keys import KeyPath, Problem
from recipes.config.load import Recipe
from recipes.config.sections import loaders
from recipes.preflight.data import data_problems
from recipes.preflight.evaluation import task_file_problems
from recipes.preflight.machine import device_problems, disk_problems, memory_problems
from recipes.preflight.packages import package_problems
from recipes.preflight.resuming import resume_problems
from recipes.preflight.weights import (
    pretrained_problems,
    sharded_problems,
    tokenizer_problems,
    vocabulary_problems,
    weight_problems,
)
from recipes.training.batches import plan_batches, too_little_data, too_little_to_evaluate


def preflight(recipe: Recipe) -> list[Problem]:
    """Everything that a run of this recipe would stop at on this machine. Each says how to get what is missing."""
    found: list[tuple[KeyPath, str]] = []
    for key, loader in loaders(recipe.values):
        found += data_problems(key, loader, recipe)
    batches = plan_batches(recipe)
    if too_little := too_little_data(recipe, batches):
        found.append((("train_loader",), too_little))
    for key, loader in loaders(recipe.values, ["eval_loader"]):
        if too_little := too_little_to_evaluate(recipe, batches, loader):
            found.append((key, too_little))
    found += tokenizer_problems(recipe.get("tokenizer", {}), bool(recipe.get("code_paths")))
    found += vocabulary_problems(recipe.values)
    found += weight_problems(recipe.values)
    found += sharded_problems(recipe)
    found += pretrained_problems(recipe)
    found += device_problems(recipe)
    found += memory_problems(recipe)
    found += disk_problems(recipe)
    found += resume_problems(recipe)
    found += task_file_problems(recipe)
    found += package_problems(recipe)
    return [recipe.problem(key, text) for key, text in found]
