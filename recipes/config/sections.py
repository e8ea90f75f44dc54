"""Reading a recipe's values, whatever their shape: rules run beside the grammar, which reports wrong shapes itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recipes.config.keys import KeyPath

Finding = tuple[KeyPath, str]  # a key, and what is wrong with it
LOADERS = ("train_loader", "eval_loader")


def section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = mapping.get(key)
    return inner if isinstance(inner, Mapping) else {}


def is_number(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def contamination_shards(recipe: Mapping[str, Any]) -> list[str]:
    """The folders of `contamination.shards`, which may be one or a list; none where a recipe has no such section."""
    shards = section(recipe, "contamination").get("shards") or []
    return [shards] if isinstance(shards, str) else list(shards)


def loaders(recipe: Mapping[str, Any], names: Sequence[str] = LOADERS) -> Iterator[tuple[KeyPath, Any]]:
    """Sections of loaders with their keys, whether a recipe has one under a name, a list of them, or none."""
    for name in names:
        loader = recipe.get(name)
        if isinstance(loader, Mapping):
            yield (name,), loader
        elif isinstance(loader, list):
            yield from (((name, i), inner) for i, inner in enumerate(loader) if isinstance(inner, Mapping))
