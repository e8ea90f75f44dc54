"""What an evaluation recipe asks for and cannot be done here, before anything is loaded. Pure Python, no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from eval.models import longest
from recipes.config.keys import KeyPath, Problem
from recipes.config.load import Recipe
from recipes.cost.parameters import OURS


def refusals(recipe: Recipe) -> list[Problem]:
    """Of a well-formed evaluation recipe whose models are spelled out."""
    found: list[tuple[KeyPath, str]] = []
    for index, entry in enumerate(recipe["models"]):
        if entry["model"].get("name") in OURS and not entry.get("load_path"):
            text = "is missing, and without a checkpoint the weights of such a model are random: name one, or a run"
            found.append((("models", index, "load_path"), text))
        found += [(key, text) for key, text in _long_loaders(recipe, entry)]
    if recipe.get("callbacks"):
        text = "an evaluation has no callbacks: nothing would call them; leave them out"
        found.append((("callbacks",), text))
    found += [(("eval_gauntlet",), text) for text in gauntlet_refusals(recipe.get("eval_gauntlet"))]
    return [Problem(recipe.place(key), key, text) for key, text in found]


def gauntlet_refusals(gauntlet: Any) -> Iterator[str]:
    """LLM Foundry's averages take names apart at each /, and would not find these, or mix them up."""
    section = gauntlet if isinstance(gauntlet, Mapping) else {}
    categories = [c for c in section.get("categories") or [] if isinstance(c, Mapping)]
    names = [category.get("name") for category in categories]
    names += [b.get("name") for c in categories for b in c.get("benchmarks") or [] if isinstance(b, Mapping)]
    names += section.get("averages") or {}
    for name in names:
        if "/" in str(name):
            yield f"got {name}, expected a name without /, which averages are taken apart at: give it another"


def _long_loaders(recipe: Recipe, entry: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    reads = longest(entry, sys.maxsize)
    loaders = recipe.get("eval_loader")
    for index, loader in enumerate(loaders if isinstance(loaders, list) else [loaders] if loaders else []):
        length = (loader.get("dataset") or {}).get("max_seq_len") or recipe["max_seq_len"]
        if length > reads:
            key: KeyPath = ("eval_loader", index) if isinstance(loaders, list) else ("eval_loader",)
            text = (
                f"its sequences have {length} tokens, and {entry['model_name']} reads {reads}: set it to that or less"
            )
            yield (*key, "dataset", "max_seq_len"), text
