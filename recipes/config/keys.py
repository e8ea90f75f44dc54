"""Keys of a recipe: their paths, where they were written, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

KeyPath = tuple[Any, ...]  # ("model", "attn_config", "alibi") or ("streams", 0, "local")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a key was written: a file and line, or the command line (line 0)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


COMMAND_LINE = Place("command line")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe, in words, with the place to mend it."""

    place: Place
    key: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.key)}: {self.text}" if self.key else f"{self.place}: {self.text}"


class RecipeError(ValueError):
    """A recipe that cannot be used. Carries every problem found, not only the first."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        found = [problems] if isinstance(problems, Problem) else problems
        self.problems = sorted(found, key=lambda p: (p.place.file, p.place.line, dotted(p.key)))
        super().__init__("\n".join(map(str, self.problems)))


def dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def walk(value: Any, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key path below a value, with what it leads to; the inner ones first."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from walk(inner, (*prefix, key))
            yield (*prefix, key), inner
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from walk(inner, (*prefix, index))
            yield (*prefix, index), inner
