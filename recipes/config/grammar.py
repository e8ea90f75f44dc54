"""From a Python signature to the JSON Schema of a section: the words that the grammar is written in."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from omegaconf import MISSING

Schema = dict[str, Any]

# `errorMessage`, which editors know too, is what was expected. Without Composer's iterations: it counts them only where
# code sets their length, which no recipe can, so nothing in `iter` ever comes.
_UNITS = "(ep|ba|sp|tok|sec)"
_WHOLE = r"\d+(_\d+)*"
_MANY = r"0*[1-9]\d*(_\d+)*(\.0+)?|0*[1-9]\d*(\.\d+)?e\d+"  # 2000000, 2_000_000, 2000000.0 or 2e6
# An interval or a part of a run: a whole number with a unit, a fraction of the whole run, or a bare whole number.
TIME: Schema = {
    "type": ["integer", "string"],
    "pattern": rf"(?i)^(({_WHOLE}|{_MANY}){_UNITS}|\d*\.?\d+dur)$",
    "minimum": 0,
    "errorMessage": "a whole number with a unit, such as 100ba, 1ep, 2000000tok or 0.1dur",
}
# How often a line is printed.
STEPS: Schema = {
    "type": ["integer", "string"],
    "pattern": r"^0*[1-9]\d*(_\d+)*(ep|ba)$",
    "minimum": 1,
    "errorMessage": "at least 1, in steps or epochs, such as 100ba or 1ep",
}
# The length of a run.
DURATION: Schema = {
    "type": ["integer", "string"],
    "pattern": rf"(?i)^({_MANY})(ep|ba|sp|tok)$",  # Composer takes no seconds here
    "minimum": 1,
    "errorMessage": "more than nothing, as a whole number with a unit, such as 100ba, 1ep, 2000000tok or 2e9tok",
}
FREE: Schema = {"type": ["object", "null"]}
STRINGS: Schema = {"type": ["array", "null"], "items": {"type": "string"}}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
INTEGER_OR_NULL: Schema = {"type": ["integer", "null"]}

# What signatures do not say: the values that the code behind a key accepts.
CHOICES: dict[str, list[Any]] = {
    "init_device": ["cpu", "meta", "mixed"],
    "master_weights_dtype": ["bf16", "bfloat16", "f16", "float16", None],
    "rope_impl": ["dail", "hf"],
    "clipping_type": ["norm", "value", "adaptive"],
    "sharding_strategy": ["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2", "NO_SHARD"],
    "state_dict_type": ["full", "sharded"],
    "batching_method": ["random", "stratified", "per_stream", "device_per_stream"],
    "sampling_method": ["balanced", "fixed"],
    "partition_algo": ["orig", "relaxed"],
    "price_kind": ["on_demand", "reserved", "spot"],
}

# The smallest value that the code behind a key accepts: `minimum` itself, or more than `exclusiveMinimum`.
_COUNT: Schema = {"minimum": 1}
_NOT_NEGATIVE: Schema = {"minimum": 0}
_POSITIVE: Schema = {"exclusiveMinimum": 0}
_SUBSET: Schema = {"minimum": -1, "not": {"const": 0}, "errorMessage": "-1 (all) or at least 1"}
RANGES: dict[str, Schema] = {
    **dict.fromkeys(("num_canonical_nodes", "prefetch_factor", "sampling_granularity", "shuffle_block_size"), _COUNT),
    **dict.fromkeys(("window_size", "tensor_parallel_degree", "batch_interval", "batch_log_interval"), _COUNT),
    "prompts": {"minItems": 1},
    **dict.fromkeys(("alpha_f", "eps", "init_std", "norm_eps", "num_workers", "predownload", "timeout"), _NOT_NEGATIVE),
    **dict.fromkeys(("download_retry", "weight_decay"), _NOT_NEGATIVE),
    **dict.fromkeys(("usd_per_device_hour", "watts_per_device", "kg_co2e_per_kwh"), _NOT_NEGATIVE),
    **dict.fromkeys(("budget_usd", "max_usd_per_hundredth_loss"), _POSITIVE),
    "power_usage_effectiveness": {"minimum": 1},
    **dict.fromkeys(
        ("alibi_bias_max", "clip_qkv", "clipping_threshold", "dist_timeout", "download_timeout"), _POSITIVE
    ),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "rope_theta", "softmax_scale"), _POSITIVE),
    "embedding_fraction": {"exclusiveMinimum": 0, "maximum": 1},
    "label_smoothing": {"minimum": 0, "exclusiveMaximum": 1},
    "z_loss": _NOT_NEGATIVE,
    "save_num_checkpoints_to_keep": {"minimum": -1},
    "seed": {"minimum": 0, "maximum": 2**32 - 1},
    "eval_subset_num_batches": _SUBSET,
    "subset_num_batches": _SUBSET,
    "train_subset_num_batches": _SUBSET,
    "cache_limit": {
        "pattern": r"(?i)^\d+(b|(\.\d+)?[kmgtpezy]b)?$",
        "errorMessage": "bytes, such as 500mb or 2tb",
        **_COUNT,
    },
    "epoch_size": {
        "pattern": r"(?i)^(\d+|\d+(\.\d+)?[kmbt])$",
        "errorMessage": "samples, such as 5000 or 2.5m",
        **_COUNT,
    },
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


def default_of(value: Any) -> Schema:
    """`default` for a key whose constructor has this one; nothing where it has none, or none that YAML could say."""
    if isinstance(value, (list, tuple)):
        return {"default": list(value)} if value and all(map(default_of, value)) else {}
    is_said = isinstance(value, (bool, int, float)) or (isinstance(value, str) and value not in ("", MISSING))
    return {"default": value} if is_said else {}


def over(properties: Mapping[str, Schema], own: Mapping[str, Schema]) -> dict[str, Schema]:
    """The same keys with what is said of some in place of what their constructor says, but for its defaults."""
    kept = {key: {"default": schema["default"]} for key, schema in properties.items() if "default" in schema}
    return {**properties, **{key: {**kept.get(key, {}), **schema} for key, schema in own.items()}}


def _union_members(annotation: Any) -> Iterable[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def section(properties: Mapping[str, Schema], required: Iterable[str] = (), closed: bool = True) -> Schema:
    """A mapping in the recipe with these keys and, when closed, no others."""
    schema: Schema = {"type": "object", "properties": {k: _narrowed(k, v) for k, v in sorted(properties.items())}}
    if required := sorted(required):
        schema["required"] = required
    if closed:
        schema["additionalProperties"] = False
    return schema


def _narrowed(key: str, schema: Schema) -> Schema:
    """The schema of a key with what CHOICES and RANGES say about it, where it says nothing of its own."""
    choices = {"enum": CHOICES[key]} if key in CHOICES else {}
    ranges = RANGES.get(key, {}) if "type" in schema else {}
    return {**choices, **ranges, **schema}


def from_signature(constructor: Callable[..., Any], without: Iterable[str] = (), **extra: Schema) -> Schema:
    """The section whose keys are the keyword arguments of `constructor`.

    A class that passes `**kwargs` on is followed up its bases, so that its keys are closed as well where they can be.
    """
    properties: dict[str, Schema] = {}
    required: list[str] = []
    layers = inspect.getmro(constructor) if inspect.isclass(constructor) else (constructor,)
    is_open = True
    for layer in layers:
        function = _behind_a_warning(layer.__init__) if inspect.isclass(layer) else layer
        if inspect.isclass(layer) and "__init__" not in vars(layer):
            continue
        parameters = _parameters(function)
        for parameter, annotation in parameters:
            if parameter.name in without or parameter.name in properties:
                continue
            properties[parameter.name] = {**type_of(annotation, parameter.default), **default_of(parameter.default)}
            # what a base class needs, the class itself may give it
            if parameter.default is inspect.Parameter.empty and layer is layers[0]:
                required.append(parameter.name)
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        is_open = inspect.Parameter.VAR_KEYWORD in kinds
        if not is_open or layer is object:
            break
    return section(over(properties, extra), [r for r in required if r not in extra], closed=not is_open)


def _behind_a_warning(constructor: Callable[..., Any]) -> Callable[..., Any]:
    """The constructor itself, where LLM Foundry's `experimental_class` has put one before it that only warns."""
    if not inspect.isfunction(constructor):
        return constructor
    return inspect.getclosurevars(constructor).nonlocals.get("original_init", constructor)


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
            kind = "number" if name == "integer" and not isinstance(value, bool) else name
            properties[key] = {"type": kind, **default_of(value)}
    return section(over(properties, extra))


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


def from_dataclass(config: type, without: Iterable[str]) -> dict[str, Schema]:
    """The fields of a dataclass, to be put into a section."""
    hints = typing.get_type_hints(config)
    skip = set(without)
    fields = [f for f in dataclasses.fields(config) if f.name not in skip]
    return {f.name: {**type_of(hints[f.name], f.default), **default_of(f.default)} for f in fields}


def ref(name: str) -> Schema:
    """The section of that name among the definitions that recipes share."""
    return {"$ref": f"#/$defs/{name}"}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [{"type": "null"}, schema]} if "$ref" in schema else {**schema, "type": [schema["type"], "null"]}


def names(layer_registry: Any, *optional: str) -> Schema:
    """The names that are registered, and those that only are where an optional package is installed."""
    return {"enum": sorted({*layer_registry.get_all(), *optional})}
