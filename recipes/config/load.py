"""Reading a recipe: fragments, the recipe, the command line, interpolation; and where every key was written.

Order of precedence: `include:` files in order < the recipe < `key=value` on the command line. Nothing here knows what
a key means (see check.py) and nothing imports torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from recipes.config.keys import COMMAND_LINE, KeyPath, Place, Problem, RecipeError, walk
from recipes.config.yaml_files import DEEPEST, Dumper, Layer, Loader, read_layer, refuse_bombs

INCLUDE = "include"  # the key of a recipe's fragments
VARIABLES = "variables"  # the key of what others refer to


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

    def problem(self, key: KeyPath, text: str) -> Problem:
        """What is wrong with a key, at its place."""
        return Problem(self.place(key), key, text)

    def to_yaml(self) -> str:
        return yaml.dump(dict(self.values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


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
        merged = merge(merged, layer.values, merged)
        places.update(layer.places)
    referred = {name for layer in layers for _, value in walk(layer.values) for name in _referred(value)}
    variables = frozenset(referred.union(*(layer.anchored for layer in layers)))
    return Recipe(path, _resolve(merged, places, path), places, variables)


def _layers(path: Path) -> tuple[list[Layer], list[Problem]]:
    recipe = read_layer(path)
    included = recipe.values.pop(INCLUDE, None) or []
    where = recipe.places.pop((INCLUDE,), Place(str(path), 1))
    layers: list[Layer] = []
    problems: list[Problem] = []
    names = [included] if isinstance(included, str) else included
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems.append(Problem(where, (INCLUDE,), f"got {included!r}, expected a path or a list of paths"))
        names = []
    for name in names:
        fragment = Path(os.path.normpath(path.parent / str(name)))
        if not os.path.isfile(fragment):
            problems.append(Problem(where, (INCLUDE,), f"no such file: {fragment} (paths are relative to the recipe)"))
            continue
        try:
            layer = read_layer(fragment)
        except RecipeError as error:
            problems += error.problems
            continue
        if INCLUDE in layer.values:
            text = "a fragment may not include others: include it from the recipe, so that one file shows all of them"
            problems.append(Problem(layer.places[(INCLUDE,)], (INCLUDE,), text))
        layers.append(layer)
    layers.append(recipe)
    return layers, problems


def _overrides(arguments: Iterable[str]) -> tuple[Layer, list[Problem]]:
    values: dict[str, Any] = {}
    places: dict[KeyPath, Place] = {}
    problems: list[Problem] = []
    for argument in arguments:
        if not argument.isascii() and any(0xD800 <= ord(letter) < 0xE000 for letter in argument):
            problems.append(Problem(COMMAND_LINE, (), f"got {argument!r}, whose bytes are no UTF-8"))
            continue
        name, equals, text = argument.partition("=")
        keys = tuple(name.strip().lstrip("-").split("."))
        if not equals or not all(keys) or len(keys) > DEEPEST:
            problems.append(
                Problem(COMMAND_LINE, (), f"got {argument!r}, expected key=value, such as optimizer.lr=2e-4")
            )
            continue
        try:
            value = _value(text)
            if keys == ("run_name",) and value is not None:
                value = text  # 010 is a name, not 8
        except ValueError as error:
            problems.append(Problem(COMMAND_LINE, keys, str(error)))
            continue
        section = values
        for key in keys[:-1]:
            inner = section.get(key)
            section[key] = inner if isinstance(inner, dict) else {}
            section = section[key]
        section[keys[-1]] = value
        # what only leads to the overridden key keeps its place in the file
        numbered = tuple(int(key) if key.isdigit() else key for key in keys)  # as places in a list are known
        places |= dict.fromkeys([numbered, *(path for path, _ in walk(value, numbered))], COMMAND_LINE)
    return Layer(values, places), problems


def _value(text: str) -> Any:
    """What the right side of an override means: YAML, or plain text where it is none. Raises ValueError in words."""
    try:
        node = yaml.compose(text, Loader)
        refuse_bombs(node)
        value = yaml.load(text, Loader) if text else None
    except (yaml.YAMLError, RecursionError):
        return text
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"got {text[:80]!r}, which is no value: {error}") from None
    if any(not isinstance(v, (str, int, float, bool, list, dict, type(None))) for _, v in [((), value), *walk(value)]):
        raise ValueError(f"got {text[:80]!r}, expected a number, text, list or section")
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Mappings are merged key by key; anything else replaces what was there.

    Null takes a key of a section away, as if nothing below had said it: what another optimizer does not know, or a
    callback. At the top, where keys are sections, it stays as what takes the section's defaults away too, and below
    `variables`, as the value of those that refer to it.
    A list is replaced whole, unless every key over it is one of its numbers: `models.0.run=…` changes one entry.
    root: where the section is looked up for which a `${key}` stands that a mapping is merged with.
    """
    merged = dict(base)
    keeps_null = root is not None and (base is root or base is root.get(VARIABLES))
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and root is not None:
            below = _section_named(below, root)
        if (
            isinstance(below, list)
            and isinstance(value, Mapping)
            and value
            and all(i.isdigit() and int(i) < len(below) for i in map(str, value))
        ):
            by_index = merge({str(i): entry for i, entry in enumerate(below)}, value, root)
            merged[key] = list(by_index.values())
        elif isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value, root)
        elif value is None and below is not None and not keeps_null:
            del merged[key]
        else:
            merged[key] = value
    return merged


def _section_named(value: Any, root: Mapping[str, Any]) -> Any:
    """The section or list for which `${key.of.it}` stands; anything else as it is."""
    for _ in range(DEEPEST):
        whole = _WHOLE.fullmatch(value) if isinstance(value, str) else None
        if not whole:
            return value
        found: Any = root
        for part in whole[1].split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        value = found
    return value


OUTSIDE = "which would be saved with it: write the value, or give it on the command line"
_WHOLE = re.compile(r"\$\{\s*([\w-]+(?:\.[\w-]+)*)\s*\}")


def _resolve(merged: Mapping[str, Any], places: Mapping[KeyPath, Place], path: Path) -> dict[str, Any]:
    """Replace every `${key}` by its value, as OmegaConf does; raise RecipeError naming all that cannot be."""
    problems = [
        (key, "missing: ??? stands for a value that must be given") for key, value in walk(merged) if value == "???"
    ]
    references = [(key, value) for key, value in walk(merged) if isinstance(value, str) and "${" in value]
    ill_written = [(key, text) for key, value in references for text in _ill_written(value)]
    problems += ill_written
    if not ill_written:
        config = OmegaConf.create(dict(merged))
        problems += [(key, text) for key, value in references for text in _leads_nowhere(config, key, value)]
    if problems:
        where = Place(str(path), 1)
        raise RecipeError([Problem(places.get(key, where), key, text) for key, text in problems])
    return dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def _ill_written(value: str) -> Iterator[str]:
    if "\\${" in value:
        yield f"got {value!r}, whose ${{ would be read as a reference where the recipe is saved: leave it out"
    else:
        try:
            OmegaConf.create({"value": value})
        except OmegaConfBaseException:
            yield f"got {value!r}, expected ${{key}} wherever ${{ stands"


def _leads_nowhere(config: Any, key: KeyPath, value: str) -> Iterator[str]:
    if re.search(r"\$\{\s*oc\.env\s*:", value):
        yield f"{value} reads something outside the recipe, {OUTSIDE}"
        return
    try:
        found = config
        for part in key:
            found = found[part]
    except InterpolationKeyError as error:
        name = re.search(r"'(.*)'", str(error).splitlines()[0])
        yield f"${{{name[1]}}} is not a key of this recipe" if name else str(error).splitlines()[0]
    except (OmegaConfBaseException, RecursionError) as error:
        yield f"{value} cannot be resolved: {(str(error).splitlines() or ['it leads to itself'])[0]}"


def _referred(value: Any) -> list[str]:
    """The keys at the top of a recipe to which a value's references may lead."""
    return re.findall(r"\$\{\s*(?:oc\.\w+\s*:\s*)?([\w-]+)", value) if isinstance(value, str) else []
