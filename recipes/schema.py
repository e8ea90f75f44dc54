"""The grammar of a recipe, as JSON Schema, derived from the code that reads it.

Every key a recipe may set is an argument of some constructor in Composer, LLM Foundry, streaming or this project. This
module walks those signatures and writes `schema.json`, so that a recipe is checked at every depth in well under a
second, without importing torch. Regenerate it after changing a dependency or a constructor:

    python -m recipes.schema            # writes recipes/schema.json
    python -m recipes.schema --check    # exits 1 when the file is out of date

Editors understand the file too: `# yaml-language-server: $schema=../../recipes/schema.json`.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

SCHEMA_PATH = Path(__file__).with_name("schema.json")

Schema = dict[str, Any]

# A duration or interval: a whole number with a unit, a fraction only of the whole run, or a bare whole number.
TIME: Schema = {"type": ["integer", "string"], "pattern": r"^(\d[\d_]*(ep|ba|sp|tok|iter|sec)|\d*\.?\d+dur)$"}
FREE: Schema = {"type": ["object", "null"]}

# What signatures do not say: the values that the code behind a key accepts.
CHOICES: dict[str, list[Any]] = {
    "init_device": ["cpu", "meta", "mixed"],
    "loss_fn": ["fused_crossentropy", "torch_crossentropy"],
    "master_weights_dtype": ["bf16", "bfloat16", "f16", "float16", None],
    "rope_impl": ["dail", "hf"],
    "clipping_type": ["norm", "value", "adaptive"],
    "sharding_strategy": ["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2", "NO_SHARD"],
    "state_dict_type": ["full", "sharded"],
    "shuffle_algo": ["naive", "py1b", "py1br", "py1e", "py1s", "py2s"],
    "batching_method": ["random", "stratified", "per_stream", "device_per_stream"],
    "sampling_method": ["balanced", "fixed"],
    "partition_algo": ["orig", "relaxed"],
    "target_prompts": ["all", "none"],
    "target_responses": ["all", "last"],
    "python_log_level": ["debug", "info", "warning", "error", "critical", None],
    "price_kind": ["on_demand", "reserved", "spot"],
}

_NUMBERS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def type_of(annotation: Any, default: Any = inspect.Parameter.empty) -> Schema:
    """JSON Schema for one annotation; `{}` (anything) where the annotation says nothing a YAML file could break."""
    names: set[str] = set()
    has_time = False
    for part in _union_members(annotation):
        origin = typing.get_origin(part) or part
        if part is type(None):
            names.add("null")
        elif origin in _NUMBERS:
            names.add(_NUMBERS[origin])
        elif getattr(origin, "__name__", "") == "Time":
            has_time = True
        elif inspect.isclass(origin) and issubclass(origin, (list, tuple, set)):
            names.add("array")
        elif inspect.isclass(origin) and issubclass(origin, Mapping):
            names.add("object")
        elif getattr(origin, "__name__", "") in ("Sequence", "Iterable"):
            names.add("array")
        elif getattr(origin, "__name__", "") in ("Path", "Literal") or origin is typing.Literal:
            names.add("string")
        else:
            return {}
    if default is None:
        names.add("null")
    if has_time:
        return {**TIME, "type": sorted({*TIME["type"], *names})}
    return {"type": sorted(names)} if len(names) > 1 else {"type": names.pop()} if names else {}


def _union_members(annotation: Any) -> Iterable[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def section(properties: Mapping[str, Schema], required: Iterable[str] = (), closed: bool = True) -> Schema:
    """A mapping in the recipe with these keys and, when closed, no others."""
    chosen = {k: ({**v, "enum": CHOICES[k]} if k in CHOICES and "enum" not in v else v) for k, v in properties.items()}
    schema: Schema = {"type": "object", "properties": dict(sorted(chosen.items()))}
    if required := sorted(required):
        schema["required"] = required
    if closed:
        schema["additionalProperties"] = False
    return schema


def from_signature(constructor: Callable[..., Any], without: Iterable[str] = (), **extra: Schema) -> Schema:
    """The section whose keys are the keyword arguments of `constructor`.

    A class that passes `**kwargs` on is followed up its bases, so that its keys are closed as well where they can be.
    """
    properties: dict[str, Schema] = {}
    required: list[str] = []
    layers = inspect.getmro(constructor) if inspect.isclass(constructor) else (constructor,)
    is_open = True
    for layer in layers:
        function = layer.__init__ if inspect.isclass(layer) else layer
        if inspect.isclass(layer) and "__init__" not in vars(layer):
            continue
        parameters = _parameters(function)
        for parameter, annotation in parameters:
            if parameter.name in without or parameter.name in properties:
                continue
            properties[parameter.name] = type_of(annotation, parameter.default)
            if parameter.default is inspect.Parameter.empty:
                required.append(parameter.name)
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        is_open = inspect.Parameter.VAR_KEYWORD in kinds
        if not is_open or layer is object:
            break
    return section({**properties, **extra}, [r for r in required if r not in extra], closed=not is_open)


def _parameters(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # an annotation that only a type checker can resolve
        hints = {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        (p, hints.get(p.name, Any))
        for p in inspect.signature(function).parameters.values()
        if p.kind in named and p.name != "self"
    ]


def from_defaults(defaults: Mapping[str, Any], **extra: Schema) -> Schema:
    """The section whose keys and types are those of a dictionary of defaults."""
    properties: dict[str, Schema] = {}
    for key, value in defaults.items():
        if isinstance(value, Mapping):
            properties[key] = {**from_defaults(value), "type": ["object", "null"]}
        elif value is None:
            properties[key] = {}
        else:
            name = _NUMBERS[type(value)]
            properties[key] = {"type": "number" if name == "integer" and not isinstance(value, bool) else name}
    return section({**properties, **extra})


def named(variants: Mapping[str, Schema], key: str = "name") -> Schema:
    """A section that says which of `variants` it is under `key`; its other keys depend on that."""
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": sorted(variants)}},
        "allOf": [
            {
                "if": {"properties": {key: {"const": name}}, "required": [key]},
                "then": {**schema, "properties": {**schema["properties"], key: {"type": "string"}}},
            }
            for name, schema in sorted(variants.items())
        ],
    }


def keyed(variants: Mapping[str, Schema]) -> Schema:
    """A section whose keys are names of registered components and whose values are their arguments."""
    optional = {k: {**v, "type": ["object", "null"]} if not v.get("required") else v for k, v in variants.items()}
    return {**section(optional), "type": ["object", "null"]}


def generate() -> Schema:
    """The whole grammar, read from the installed packages. Imports torch; takes seconds."""
    from recipes import components

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe for composer train.py",
        **components.train_recipe(),
        "$defs": {**components.definitions(), "eval_recipe": components.eval_recipe()},
    }


def main(arguments: list[str]) -> int:
    text = json.dumps(generate(), indent=1, sort_keys=True) + "\n"
    if "--check" in arguments:
        if SCHEMA_PATH.read_text() == text:
            return 0
        print(f"{SCHEMA_PATH} is out of date: run `python -m recipes.schema` and commit the result", file=sys.stderr)
        return 1
    SCHEMA_PATH.write_text(text)
    print(f"wrote {SCHEMA_PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
