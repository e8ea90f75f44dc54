"""Judging a recipe before anything is built: every unknown, missing, ill-typed and contradictory key, at once.

The grammar is schema.json (see schema.py); what keys demand of one another stands in contradictions.py.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.contradictions import contradictions
from recipes.config.evaluation_rules import OF_AN_API
from recipes.config.file_names import name_of_environment
from recipes.config.keys import KeyPath, Place, Problem, RecipeError, dotted, walk
from recipes.config.load import INCLUDE, VARIABLES, Recipe, load
from recipes.config.named_files import with_named_files
from recipes.ranks import world_size
from recipes.spelling import did_you_mean

# Keys and values that older recipes carry, and what has become of them.
RETIRED_KEYS = {
    "device_mesh": "Composer 0.24 replaced it by data_parallel_shard_degree and data_parallel_replicate_degree",
    "prefix_lm": "LLM Foundry removed prefix language models",
    "dtype": "what 16-bit weights are trained in is master_weights_dtype",
    "should_save_peft_only": "`python -m recipes export --unmerged` writes the adapters alone",
    INCLUDE: "include: stands at the top of a recipe only",
}
RETIRED_VALUES = {
    ("attn_impl", "triton"): "the Triton kernel was removed; flash is the best kernel on the device, ALiBi included",
    ("shuffle_algo", "py1b"): "Streaming 0.13 has py1br in its place",
}
_ITERATIONS = re.compile(r"(?i)[\d_.e]+iter").fullmatch
# Keys whose values are names in LLM Foundry's registries, to which a recipe's own code may add.
REGISTERED = {"name", "norm_type", "fc_type", "ffn_type", "attn_type", "icl_task_type", "strategy"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
SHOWN = 40  # allowed names listed in one message


def load_checked(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a training recipe and raise RecipeError with everything that is wrong with it."""
    world_size()
    recipe = with_named_files(load(path, overrides))
    outside = [Problem(Place("environment"), key, text) for key, text in name_of_environment(recipe.values)]
    problems = [*outside, *check(recipe)]
    if problems:
        raise RecipeError(problems)
    return _variables_together(recipe)


def check(recipe: Recipe, kind: str = "train") -> list[Problem]:
    """Everything wrong with a loaded recipe, of kind `train` or `eval`; empty when it is sound."""
    if text := _of_the_other_kind(recipe.values, kind):
        return [Problem(Place(str(recipe.path)), (), text)]
    own_code = bool(recipe.get("code_paths"))  # it may register names that the schema cannot know
    found: dict[tuple[KeyPath, str], Problem] = {}
    impossible = [recipe.problem(key, text) for key, text in _beyond_numbers(recipe.values)]
    if impossible:
        return impossible
    holders = _holders(recipe, kind)
    meant = [key for key in recipe.values if key not in holders and _means_include(key, kind)]
    if meant:  # all else would be said of what the fragments have
        return [recipe.problem((key,), f"unknown key; did you mean {INCLUDE}?") for key in meant]
    for error in _validator(kind).iter_errors({k: v for k, v in recipe.values.items() if k not in holders}):
        for key, text in _explain(error, own_code):
            found.setdefault((key, text), recipe.problem(key, text))
    broken = {p.key for p in found.values()}
    for key, text in contradictions(recipe.values, kind):
        if not any(b and (key[: len(b)] == b or b[: len(key)] == key) for b in broken):
            found.setdefault((key, text), recipe.problem(key, text))
    return list(found.values())


def _of_the_other_kind(values: Mapping[str, Any], kind: str) -> str:
    if kind == "train" and "models" in values and "train_loader" not in values:
        return (
            "this is an evaluation recipe, which eval/evaluate.py takes; a training recipe has model and train_loader"
        )
    if kind == "eval" and {"train_loader", "max_duration"} <= values.keys():  # its model may be spelled out by now
        return (
            "this is a training recipe, which train.py takes; an evaluation recipe names its models (models.0.run=RUN)"
        )
    return ""


def _beyond_numbers(values: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    for key, value in walk(values):
        if isinstance(value, float) and not math.isfinite(value):
            yield key, f"got {value}, expected a finite number"
        elif isinstance(value, int) and value.bit_length() > 63:
            yield key, f"got a whole number of {value.bit_length():,} bits, expected one that has room in 64"


def _means_include(key: str, kind: str) -> bool:
    known = _validator(kind).schema["properties"]
    return key not in (*known, INCLUDE) and did_you_mean(key, [*known, INCLUDE]) == did_you_mean(INCLUDE, [INCLUDE])


def _holders(recipe: Recipe, kind: str) -> set[str]:
    """The keys at the top that only hold a value for others."""
    return set(recipe.variables - set(_validator(kind).schema["properties"]))


def _variables_together(recipe: Recipe) -> Recipe:
    """The recipe with its holders under `variables:`: where it is saved, nothing refers to them any more."""
    holders = _holders(recipe, "train") & set(recipe.values)
    if not holders:
        return recipe
    values = {key: value for key, value in recipe.values.items() if key not in holders}
    values[VARIABLES] = {**(values.get(VARIABLES) or {}), **{key: recipe.values[key] for key in sorted(holders)}}
    return dataclasses.replace(recipe, values=values)


@functools.cache
def grammar(kind: str) -> Mapping[str, Any]:
    """JSON Schema of recipes, of kind `train` or `eval`."""
    schema = json.loads(Path(__file__).with_name("schema.json").read_text())
    if kind == "eval":
        schema = {"$schema": schema["$schema"], "$defs": schema["$defs"], **schema["$defs"]["eval_recipe"]}
    return dict(schema)


@functools.cache
def _validator(kind: str) -> Any:
    from jsonschema import Draft202012Validator, validators

    def is_whole(_: Any, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)  # 100.0 is no whole number to torch

    schema = grammar(kind)
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", is_whole)
    return validators.extend(Draft202012Validator, type_checker=types)(schema)


def _explain(error: Any, own_code: bool) -> Iterator[tuple[KeyPath, str]]:
    """Turn one jsonschema error into (key, words)."""
    key: KeyPath = tuple(error.absolute_path)
    value = error.instance
    if error.validator == "additionalProperties":
        if not (own_code and key in {("callbacks",), ("algorithms",), ("loggers",)}):
            allowed = sorted(error.schema["properties"])
            unknown = [name for name in value if name not in error.schema["properties"]]
            for name in unknown[:SHOWN]:
                yield (*key, name), _unknown(str(name), allowed)
            if len(unknown) > SHOWN:
                yield (*key, unknown[SHOWN]), f"unknown key, and so are {len(unknown) - SHOWN - 1:,} more"
    elif error.validator == "required":
        for name in error.validator_value:
            if name not in value:
                yield (*key, name), f"missing; {dotted(key) or 'the recipe'} needs it"
    elif error.validator == "anyOf":
        yield from _best_branch(error, own_code)
    elif error.validator in ("enum", "const"):
        choices = error.validator_value if error.validator == "enum" else [error.validator_value]
        is_name = bool(key) and key[-1] in REGISTERED
        if (own_code and is_name) or value in OF_AN_API:  # of which a rule says what they are
            return
        retired = RETIRED_VALUES.get((str(key[-1]) if key else "", str(value)))
        yield (
            key,
            f"got {_show(value)}, expected {choices_in_words(choices)}{did_you_mean(str(value), choices)}"
            + (f" ({retired})" if retired else ""),
        )
    elif error.validator == "type":
        yield key, f"got {_show(value)}, expected {types_in_words(error.validator_value)}"
    elif error.validator in ("pattern", "not"):
        never = (
            " (iterations are not counted here, so that would never come: use ba)" if _ITERATIONS(str(value)) else ""
        )
        yield key, f"got {_show(value)}, expected {error.schema['errorMessage']}{never}"
    elif error.validator in LIMITS:
        yield key, f"got {_show(value)}, expected {LIMITS[error.validator]} {error.validator_value}"
    elif error.validator == "minItems":
        yield key, "got an empty list, expected at least one"
    else:
        yield key, error.message


def _best_branch(error: Any, own_code: bool) -> Iterator[tuple[KeyPath, str]]:
    """Of several alternatives, explain the one whose type the value has; else name them all."""
    depth = len(error.absolute_path)
    branches: dict[int, list[Any]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)
    for errors in branches.values():
        wrong_type = any(e.validator in ("type", "const", "enum") and len(e.absolute_path) == depth for e in errors)
        if not wrong_type:
            for inner in errors:
                yield from _explain(inner, own_code)
            return
    if own_code and isinstance(error.instance, str) and error.absolute_path[-1] in REGISTERED:
        return
    wanted = []
    for inner in error.context:
        if inner.validator == "type":
            wanted.append(types_in_words(inner.validator_value))
        elif inner.validator in ("enum", "const"):
            wanted.append(
                choices_in_words(inner.validator_value if inner.validator == "enum" else [inner.validator_value])
            )
    yield tuple(error.absolute_path), f"got {_show(error.instance)}, expected {' or '.join(dict.fromkeys(wanted))}"


def _unknown(name: str, allowed: list[str]) -> str:
    if name in RETIRED_KEYS:
        return f"unknown key ({RETIRED_KEYS[name]}). Allowed: {_list(allowed)}"
    guess = did_you_mean(name, allowed)
    return f"unknown key{guess}{'' if guess.endswith('?') else '.'} Allowed: {_list(allowed)}"


def _list(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def choices_in_words(choices: Iterable[Any]) -> str:
    names = ["null" if c is None else str(c) for c in choices]
    return names[0] if len(names) == 1 else f"one of {_list(names)}"


def types_in_words(types: str | list[str]) -> str:
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "array": "a list",
        "object": "a section of keys",
        "null": "null",
    }
    return " or ".join(words[t] for t in ([types] if isinstance(types, str) else types))


def _show(value: Any) -> str:
    kind = "text " if isinstance(value, str) else ""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(dict(value)) if isinstance(value, Mapping) else repr(value)
    return kind + (text if len(text) <= 80 else text[:77] + "...")
