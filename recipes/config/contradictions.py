"""What keys of a recipe demand of one another. Each rule is a small function that yields (key, words).

Rules see plain nested dicts and may meet any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recipes.config.evaluation_rules import EVALUATION_RULES, RULES_OF_ITS_OWN, RULES_OF_TRAINING
from recipes.config.file_names import names_of_files
from recipes.config.keys import KeyPath
from recipes.config.model_rules import MODEL_RULES, size
from recipes.config.run_rules import RUN_RULES
from recipes.config.sections import Finding, section
from recipes.cost.architecture import MPT, OURS
from recipes.cost.hardware import find_gpu

Rule = Callable[[Mapping[str, Any]], Iterator[Finding]]


def contradictions(recipe: Mapping[str, Any], kind: str = "train") -> list[Finding]:
    """All contradictions in a resolved recipe, of kind `train` or `eval`."""
    of_kind: tuple[Rule, ...] = (*RUN_RULES, *RULES_OF_TRAINING) if kind == "train" else RULES_OF_ITS_OWN
    rules: tuple[Rule, ...] = (*of_kind, *EVALUATION_RULES, names_of_files, _cost)
    found = [finding for rule in rules for finding in _findings(rule, recipe)]
    for key, model in _models(recipe, kind):
        if isinstance(model, Mapping) and model.get("name") in OURS:
            of_model: tuple[Rule, ...] = MODEL_RULES if model["name"] == MPT else ()
            in_it = [finding for rule in of_model for finding in _findings(rule, model)]
            # the recipe's own code may register layers that cannot be counted here
            if not in_it and not recipe.get("code_paths"):
                in_it = _findings(size, model)
            found += [((*key, *inner), text) for inner, text in in_it]
    return found


def _findings(rule: Rule, section: Mapping[str, Any]) -> list[Finding]:
    """A rule that meets a value of a shape it does not know finds nothing: the grammar reports the shape."""
    try:
        return list(rule(section))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError):
        return []


def _models(recipe: Mapping[str, Any], kind: str) -> list[tuple[KeyPath, Any]]:
    if kind == "train":
        return [(("model",), recipe.get("model"))]
    models = recipe.get("models")
    if not isinstance(models, list):
        return []
    return [(("models", i, "model"), m.get("model")) for i, m in enumerate(models) if isinstance(m, Mapping)]


def _cost(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    sections: dict[KeyPath, Mapping[str, Any]] = {
        ("cost",): section(recipe, "cost"),
        ("callbacks", "cost_monitor"): section(section(recipe, "callbacks"), "cost_monitor"),
    }
    for key, inner in sections.items():
        gpu = inner.get("gpu")
        if isinstance(gpu, str) and gpu.strip().lower() != "cpu":
            try:
                find_gpu(gpu)
            except ValueError as error:
                yield (*key, "gpu"), str(error)
