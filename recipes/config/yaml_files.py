"""One YAML file of a recipe: its keys, the line of each, and what hostile or mistaken files are refused for."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from recipes.config.keys import KeyPath, Place, Problem, RecipeError, walk
from recipes.run_files import RECIPE

RECIPES = Path(__file__).parents[2] / "yamls"
LARGEST_FILE = 1_000_000  # bytes
MOST_KEYS = 20_000  # with every alias spelled out
DEEPEST = 20  # sections in sections


@dataclasses.dataclass(frozen=True)
class Layer:
    """One file, or the command line: its keys, where they stand, and top-level keys whose YAML anchor others use."""

    values: dict[str, Any]
    places: dict[KeyPath, Place]
    anchored: frozenset[str] = frozenset()


MERGE = "tag:yaml.org,2002:merge"
MERGE_KEY = "<<"


class Loader(yaml.SafeLoader):
    """YAML as its users mean it: `1e-4` is a number, and a date stays text."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Puts what `<<` names before a mapping's own keys, of which the last counts.

        PyYAML 6.0.4 takes keys for the same where their text is one object, as all of one letter are, such as `r`.
        """
        merged: list[Any] = []
        for key, value in node.value:
            if key.tag == MERGE:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in reversed(sources):  # of several, the first counts
                    if not isinstance(source, yaml.MappingNode):
                        words = f"<< merges mappings, got {source.id}"
                        raise yaml.constructor.ConstructorError(None, None, words, source.start_mark)
                    self.flatten_mapping(source)
                    merged += source.value
            elif key.tag == "tag:yaml.org,2002:value":  # a key named =
                key.tag = "tag:yaml.org,2002:str"
        node.value = merged + [pair for pair in node.value if pair[0].tag != MERGE]


class Dumper(yaml.SafeDumper):
    """Writes what Loader reads back the same: text that looks like `1e3` is quoted."""


for _class in (Loader, Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def read_layer(path: Path) -> Layer:
    """Read one file. Raises RecipeError: it is missing, too large, no YAML mapping, or has a key twice."""

    def refused(text: str, line: int = 1) -> RecipeError:
        return RecipeError(Problem(Place(str(path), line), (), text))

    try:
        if path.is_dir() and (path / RECIPE).is_file():
            raise OSError(f"it is a run folder; its recipe is {path / RECIPE}")
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        if path.stat().st_size > LARGEST_FILE:
            raise OSError(f"{path.stat().st_size:,} bytes are more than a recipe's {LARGEST_FILE:,}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise refused(f"no such recipe{_hint(path)}", 0) from None
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"cannot be read: {error}", 0) from None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        refuse_bombs(node)
        problems = list(_duplicates(node, str(path)))
        values = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refused(f"not valid YAML: {error.problem}", mark.line + 1 if mark else 1) from None
    except RecursionError:
        raise refused("not a recipe: it contains itself, or nests too deep") from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise refused(f"not valid YAML: {' '.join(str(error).split())}") from None
    problems += [
        Problem(Place(str(path), 1), key, f"got {type(value).__name__}, which no key of a recipe takes")
        for key, value in walk(values)
        if not isinstance(value, (str, int, float, bool, list, dict, type(None))) or not isinstance(key[-1], (str, int))
    ]
    if problems:
        raise RecipeError(problems)
    if not isinstance(values, dict):
        raise refused(f"a recipe is a mapping of keys, got {type(values).__name__}")
    places = {key: Place(str(path), written.start_mark.line + 1) for key, written in _keys(node)}
    used = {event.anchor for event in yaml.parse(text, Loader) if isinstance(event, yaml.AliasEvent)}
    anchors = re.findall(r"^([\w-]+):[ \t]*&([^\s,\[\]{}]+)", text, re.MULTILINE)
    anchored = frozenset(key for key, anchor in anchors if anchor in used)
    return Layer(values, {(): Place(str(path), 1), **places}, anchored)


def _hint(path: Path) -> str:
    """The recipe that a name such as `list` prints may mean; else what stands beside the path."""
    name = path.with_suffix("").as_posix()
    meant = sorted({*RECIPES.glob(f"{name}.yaml"), *RECIPES.glob(f"*/{name}.yaml")}) if not path.is_absolute() else []
    if meant:
        return f"; did you mean {' or '.join(os.path.relpath(recipe) for recipe in meant)}?"
    near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f"; {path.parent} has {', '.join(near)}" if near else ""


def refuse_bombs(node: yaml.Node | None) -> None:
    """Raise ValueError where aliases stand for more than MOST_KEYS keys, or sections lie deeper than DEEPEST."""
    waiting, seen = [(node, 0)], 0
    while waiting:
        current, depth = waiting.pop()
        seen += 1
        if seen > MOST_KEYS:
            raise ValueError(f"more than {MOST_KEYS:,} keys and values, aliases spelled out")
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} sections in each other")
        if isinstance(current, yaml.MappingNode):
            waiting += [(inner, depth + 1) for pair in current.value for inner in pair]
        elif isinstance(current, yaml.SequenceNode):
            waiting += [(inner, depth + 1) for inner in current.value]


def _duplicates(node: yaml.Node | None, file: str) -> Iterator[Problem]:
    """Keys that stand twice in one mapping: YAML would silently keep the last."""
    first: dict[KeyPath, int] = {}
    twice: set[KeyPath] = set()
    for path, written in _keys(node):
        line = written.start_mark.line + 1
        if path in first and MERGE_KEY not in path:
            if path[:-1] not in twice:  # else said of the section
                yield Problem(Place(file, line), path, f"stands twice, first on line {first[path]}")
            twice.add(path)
        first.setdefault(path, line)


def _keys(node: yaml.Node | None, prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, yaml.Node]]:
    """Every key path below a node, with the node that is written there: a mapping's key, a list's entry."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*prefix, key.value), key
            yield from _keys(value, (*prefix, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*prefix, index), value
            yield from _keys(value, (*prefix, index))
