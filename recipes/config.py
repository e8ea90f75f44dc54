"""Reading a recipe: fragments, the recipe, the command line, interpolation; and where every key was written.

Order of precedence: `include:` files in order < the recipe < `key=value` on the command line. Nothing here knows what
a key means (see check.py) and nothing imports torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

KeyPath = tuple[Any, ...]  # ("model", "attn_config", "alibi") or ("streams", 0, "local")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a key was written: a file and line, or the command line (line 0)."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


COMMAND_LINE = Place("command line")
LARGEST_FILE = 1_000_000  # bytes
DEEPEST = 20  # sections in sections
MOST_KEYS = 20_000  # with every alias spelled out


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

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.place.file, p.place.line, dotted(p.key)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A resolved recipe: plain nested dicts and lists, and the place of each key. Not to be changed after loading."""

    path: Path
    values: Mapping[str, Any]
    places: Mapping[KeyPath, Place]
    # Top-level keys that others refer to by `${key}` or by a YAML anchor. LLM Foundry's older files keep their
    # variables there instead of under `variables:`.
    variables: frozenset[str] = frozenset()

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Value at a dotted key such as `model.attn_config.alibi`; `default` where it or a parent is absent or null."""
        value: Any = self.values
        for part in key.split("."):
            if not isinstance(value, Mapping) or value.get(part) is None:
                return default
            value = value[part]
        return value

    def place(self, key: KeyPath) -> Place:
        """Place of a key, or of the nearest section above it that was written down."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, Place(str(self.path), 1))

    def to_yaml(self) -> str:
        return yaml.dump(dict(self.values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dotted(key: KeyPath) -> str:
    return ".".join(map(str, key))


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe with its fragments and overrides.

    Raises RecipeError naming file and line: a file that is missing or is no YAML mapping, a key given twice, an
    override that is not `key=value`, an interpolation that leads nowhere.
    """
    path = Path(path)
    layers, problems = _layers(path)
    command_line, more = _overrides(overrides)
    if problems or more:
        raise RecipeError([*problems, *more])
    layers.append(command_line)

    places: dict[KeyPath, Place] = {}
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer.values)
        places.update(layer.places)
    referred = {name.split(".")[0] for _, value in walk(merged) for name in _names_in(value)}
    variables = frozenset(referred.union(*(layer.anchored for layer in layers)))
    return Recipe(path, _resolve(merged, places, path), places, variables)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One file, or the command line: its keys, where they stand, and top-level keys that only hold a YAML anchor."""

    values: dict[str, Any]
    places: dict[KeyPath, Place]
    anchored: frozenset[str] = frozenset()


def _layers(path: Path) -> tuple[list[_Layer], list[Problem]]:
    recipe = _read(path)
    included = recipe.values.pop("include", None) or []
    where = recipe.places.pop(("include",), Place(str(path), 1))
    layers: list[_Layer] = []
    problems: list[Problem] = []
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems.append(Problem(where, ("include",), f"got {included!r}, expected a path or a list of paths"))
        names = []
    for name in names:
        fragment = Path(os.path.normpath(path.parent / str(name)))
        if not fragment.is_file():
            problems.append(
                Problem(where, ("include",), f"no such file: {fragment} (paths are relative to the recipe)")
            )
            continue
        try:
            layer = _read(fragment)
        except RecipeError as error:
            problems += error.problems
            continue
        if "include" in layer.values:
            text = "a fragment may not include others: include it from the recipe, so that one file shows all of them"
            problems.append(Problem(layer.places[("include",)], ("include",), text))
        layers.append(layer)
    layers.append(recipe)
    return layers, problems


class _Loader(yaml.SafeLoader):
    """YAML as its users mean it: `1e-4` is a number, and a date stays text."""


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads back the same: text that looks like `1e3` is quoted."""


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def _read(path: Path) -> _Layer:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        if path.stat().st_size > LARGEST_FILE:
            raise OSError(f"{path.stat().st_size:,} bytes are more than a recipe's {LARGEST_FILE:,}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; {path.parent} has {', '.join(near)}" if near else ""
        raise RecipeError([Problem(Place(str(path)), (), f"no such recipe{hint}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(Place(str(path)), (), f"cannot be read: {error}")]) from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_bombs(node)
        problems = list(_duplicates(node, (), str(path)))
        values = loader.construct_document(node) if node is not None else {}
        problems += [
            Problem(Place(str(path), 1), key, f"got {type(value).__name__}, which no key of a recipe takes")
            for key, value in walk(values)
            if not isinstance(value, (str, int, float, bool, list, dict, type(None)))
            or not isinstance(key[-1], (str, int))
        ]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(str(path), mark.line + 1 if mark else 1)
        raise RecipeError([Problem(place, (), f"not valid YAML: {error.problem}")]) from None
    except RecursionError:
        raise RecipeError(
            [Problem(Place(str(path), 1), (), "not a recipe: it contains itself, or nests too deep")]
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecipeError(
            [Problem(Place(str(path), 1), (), f"not valid YAML: {' '.join(str(error).split())}")]
        ) from None
    if problems:
        raise RecipeError(problems)
    if not isinstance(values, dict):
        raise RecipeError(
            [Problem(Place(str(path), 1), (), f"a recipe is a mapping of keys, got {type(values).__name__}")]
        )
    anchored = frozenset(re.findall(r"^([\w-]+):[ \t]*&", text, re.MULTILINE))
    return _Layer(values, {(): Place(str(path), 1), **dict(_marks(node, (), str(path)))}, anchored)


def _refuse_bombs(node: yaml.Node | None) -> None:
    """Raise ValueError where aliases stand for more than MOST_KEYS keys."""
    waiting, seen = [node], 0
    while waiting:
        current = waiting.pop()
        seen += 1
        if seen > MOST_KEYS:
            raise ValueError(f"more than {MOST_KEYS:,} keys and values, aliases spelled out")
        if isinstance(current, yaml.MappingNode):
            waiting += [inner for pair in current.value for inner in pair]
        elif isinstance(current, yaml.SequenceNode):
            waiting += current.value


def _duplicates(node: yaml.Node | None, prefix: KeyPath, file: str) -> Iterator[Problem]:
    """Keys that stand twice in one mapping: YAML would silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        first: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in first and key.tag != "tag:yaml.org,2002:merge":
                yield Problem(
                    Place(file, line), (*prefix, key.value), f"stands twice, first on line {first[key.value]}"
                )
            first.setdefault(key.value, line)
            yield from _duplicates(value, (*prefix, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _duplicates(value, (*prefix, index), file)


def _marks(node: yaml.Node | None, prefix: KeyPath, file: str) -> Iterator[tuple[KeyPath, Place]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, key.value)
            yield path, Place(file, key.start_mark.line + 1)
            yield from _marks(value, path, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*prefix, index), Place(file, value.start_mark.line + 1)
            yield from _marks(value, (*prefix, index), file)


def _overrides(arguments: Iterable[str]) -> tuple[_Layer, list[Problem]]:
    values: dict[str, Any] = {}
    places: dict[KeyPath, Place] = {}
    problems: list[Problem] = []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        keys = tuple(name.strip().lstrip("-").split("."))
        if not equals or not all(keys) or len(keys) > DEEPEST:
            problems.append(
                Problem(COMMAND_LINE, (), f"got {argument!r}, expected key=value, such as optimizer.lr=2e-4")
            )
            continue
        try:
            value = _value(text)
        except ValueError as error:
            problems.append(Problem(COMMAND_LINE, keys, str(error)))
            continue
        section = values
        for index, key in enumerate(keys):
            places[keys[: index + 1]] = COMMAND_LINE
            if index + 1 == len(keys):
                section[key] = value
            else:
                inner = section.get(key)
                section[key] = inner if isinstance(inner, dict) else {}
                section = section[key]
        for path, _ in walk(value, keys):
            places[path] = COMMAND_LINE
    # a section that only leads to the overridden key keeps its place in the file
    for way in [k for k in places if any(len(o) > len(k) and o[: len(k)] == k for o in places)]:
        del places[way]
    return _Layer(values, places), problems


def _value(text: str) -> Any:
    """What the right side of an override means: YAML, or plain text where it is none. Raises ValueError in words."""
    try:
        node = yaml.compose(text, _Loader)
        _refuse_bombs(node)
        value = yaml.load(text, _Loader) if text else None
    except (yaml.YAMLError, RecursionError):
        return text
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"got {text[:80]!r}, which is no value: {error}") from None
    if any(not isinstance(v, (str, int, float, bool, list, dict, type(None))) for _, v in [((), value), *walk(value)]):
        raise ValueError(f"got {text[:80]!r}, expected a number, text, list or section")
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else replaces what was there.

    A list is replaced whole, unless every key over it is an index: `models.0.run=…` changes one entry.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if (
            isinstance(below, list)
            and isinstance(value, Mapping)
            and value
            and all(i.isdigit() for i in map(str, value))
        ):
            by_index = merge({str(i): entry for i, entry in enumerate(below)}, value)
            merged[key] = list(by_index.values())
        elif isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


OUTSIDE = "which would be saved with it: write the value, or give it on the command line"
_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")


def _resolve(merged: Mapping[str, Any], places: Mapping[KeyPath, Place], path: Path) -> dict[str, Any]:
    """Replace every `${key}` by its value; raise RecipeError naming all that cannot be."""

    def problem(key: KeyPath, text: str) -> Problem:
        return Problem(places.get(key, Place(str(path), 1)), key, text)

    problems = []
    for key, value in walk(merged):
        if value == "???":
            problems.append(problem(key, "missing: ??? stands for a value that must be given"))
        if isinstance(value, str) and value.count("${") != len(_names_in(value)):
            problems.append(problem(key, f"got {value!r}, expected ${{key}} wherever ${{ stands"))
        outside = [name for name in _names_in(value) if ":" in name]
        problems += [problem(key, f"${{{name}}} reads something outside the recipe, {OUTSIDE}") for name in outside]
    try:
        config = OmegaConf.create(dict(merged))
        for key, value in walk(merged):
            for name in _names_in(value):
                found, reason = (True, "") if ":" in name else _lookup(config, name)
                if not found:
                    problems.append(problem(key, f"${{{name}}} {reason}"))
        if not problems:
            return dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        problems = problems or [Problem(Place(str(path), 1), (), str(error).splitlines()[0])]
    raise RecipeError(problems)


def _names_in(value: Any) -> list[str]:
    return _INTERPOLATION.findall(value) if isinstance(value, str) else []


def _lookup(config: Any, name: str) -> tuple[bool, str]:
    missing = object()
    try:
        return OmegaConf.select(config, name, default=missing) is not missing, "is not a key of this recipe"
    except OmegaConfBaseException as error:
        return False, f"cannot be resolved: {str(error).splitlines()[0]}"


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
