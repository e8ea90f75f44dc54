"""`python -m recipes keys`: what a recipe may say, from the grammar that it is checked against."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from recipes.config.check import LIMITS, choices_in_words, grammar, types_in_words
from recipes.config.load import INCLUDE
from recipes.console import console
from recipes.cost.architecture import MPT

Schema = Mapping[str, Any]
ANY = "*"  # in the place of a list's numbers, and of names that the recipe gives
INCLUDED = "a path of a YAML file, relative to the recipe, or a list of them"
STARTS_FROM = "what the recipe starts from; a later file is over an earlier one, and the recipe over all"
USUAL = (MPT, "text")  # of models and of loaders: what a key without their name is looked up in


def print_keys(key: str, kind: str) -> None:
    """The keys of a section, each with what it does and what it takes; of one key, that alone.

    key: dotted, such as `model.attn_config`; empty for the whole recipe; or a word, for all keys that have it in their
    name or in what they do. kind: `train` or `eval`.
    Raises ValueError for a key that no recipe has.
    """
    from rich.table import Table
    from rich.text import Text

    try:
        rows = list(keys(key, kind))
    except ValueError:
        rows = [] if "." in key else list(find(key, kind))
        if not rows:
            raise
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, takes, meaning in rows:
        table.add_row(name, Text.assemble(*([meaning, "\n"] if meaning else []), (takes, "dim")))
    console().print(table)


def keys(key: str, kind: str = "train") -> Iterator[tuple[str, str, str]]:
    """(dotted key, what it takes, what it does) of every key of a section; nothing is said of what a section does."""
    root = grammar(kind)
    if not key or key == INCLUDE:  # which is no key any more once the recipe is read
        yield INCLUDE, INCLUDED, STARTS_FROM
    if key == INCLUDE:
        return
    schema, way, which = _section(root, root), "", ""
    for part in key.split(".") if key else ():
        inner = _named(schema).get(part)
        which = schema["required"][0] if inner is not None else ""  # the key that has said it already
        if inner is None:
            inside = _properties(schema)
            inner = inside.get(part, inside.get(ANY))
        if inner is None:
            known = [*_named(schema), *inside]
            near = difflib.get_close_matches(part, known, n=1)
            guess = f"did you mean {way}{near[0]}? " if near else ""
            where = way.removesuffix(".") or "a recipe"
            if kind == "train" and part in grammar("eval")["properties"] and not way:
                guess = f"one for eval/evaluate.py has: python -m recipes keys {key} --eval. "
            raise ValueError(f"{key}: {where} has no key {part}; {guess}It has {', '.join(known) or 'none'}.")
        before, schema, way = schema, _section(inner, root), f"{way}{part}."
    while set(_properties(schema)) == {ANY}:  # entries that are all alike: the keys of one
        schema, way = _section(_properties(schema)[ANY], root), f"{way}{'0' if schema['type'] == 'array' else 'NAME'}."
    inside, names = _properties(schema), _named(schema)
    if not inside and not names:
        only = before["properties"][part] if part in before.get("properties", {}) else schema
        yield key, _takes(only, root), only.get("description", "")
    if names:
        one = next(iter(sorted(names, key=lambda name: name not in USUAL)))
        text = f"{choices_in_words(names)}; the keys of one: python -m recipes keys {way}{one}"
        yield f"{way}{schema['required'][0]}", text, ""
        return
    for name, inner in inside.items():
        needed = "; needed" if name in schema.get("required", ()) else ""
        if name != which:
            yield f"{way}{name}", _takes(inner, root) + needed, inner.get("description", "")


def find(word: str, kind: str = "train") -> Iterator[tuple[str, str, str]]:
    """As `keys`, every key at any depth that has a word in its name or in what it does; alike ones of variants once."""
    root, seen = grammar(kind), set()
    for way, inner, which in _below(_section(root, root), root):
        name, meaning = way.rpartition(".")[2], inner.get("description", "")
        key = way.replace("eval_loader.", "train_loader.")
        if word.lower() in f"{name} {meaning}".lower() and key not in seen:
            seen.add(key)
            yield way, _takes(inner, root) + (f"; of {which}" if which else ""), meaning


def _below(schema: Schema, root: Schema, way: str = "", which: str = "") -> Iterator[tuple[str, Schema, str]]:
    """Every key below a section with its schema, the usual variants first. which: the variant, where it is another."""
    variants = _named(schema)
    for name in sorted(variants, key=lambda name: (name not in USUAL, name)):
        yield from _below(variants[name], root, way, "" if name in USUAL else name)
    for name, inner in {} if variants else _properties(schema).items():
        shown = {ANY: "0" if schema.get("type") == "array" else "NAME"}.get(name, name)
        yield f"{way}{shown}", inner, which
        yield from _below(_section(inner, root), root, f"{way}{shown}.", which)


def _takes(schema: Schema, root: Schema) -> str:
    default = schema.get("default")
    said = default if isinstance(default, str) else json.dumps(default)
    return _what(schema, root) + ("" if default is None else f"; default {said}")


def _what(schema: Schema, root: Schema) -> str:
    section = _section(schema, root)
    others = [inner for inner in schema.get("anyOf", ()) if not _is_section(_section(inner, root))]
    if _is_section(section) and any(inner.get("type") != "null" for inner in others):  # null takes any section away
        return f"{_in_words({'anyOf': others})}, or {_what(section, root)}"
    if _named(section):
        several = ", or a list of them" if "then" in schema else ""
        return f"a section whose {section['required'][0]} is {choices_in_words(_named(section))}{several}"
    if ANY in _properties(section):
        return "a list of sections" if section["type"] == "array" else "sections of any name"
    if section.get("properties"):
        return f"a section of {', '.join(section['properties'])}"
    return _in_words(schema)


def _in_words(schema: Schema) -> str:
    if "enum" in schema:
        return choices_in_words(schema["enum"])
    if "const" in schema:
        return choices_in_words([schema["const"]])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_in_words(inner) for inner in schema["anyOf"]))
    if "pattern" in schema or "not" in schema:
        return str(schema["errorMessage"])
    limits = [f"{words} {schema[name]}" for name, words in LIMITS.items() if name in schema]
    text = types_in_words(schema["type"]) if "type" in schema else "anything"
    return ", ".join([text, *limits])


def _section(schema: Schema, root: Schema) -> Schema:
    """What a reference, an alternative to null, a list's items or an array's alternative comes to."""
    while True:
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
        elif "else" in schema:
            schema = schema["else"]
        elif "anyOf" in schema:
            sections = [
                inner for inner in schema["anyOf"] if "$ref" in inner or "properties" in inner or "items" in inner
            ]
            if not sections:
                return schema
            schema = sections[0]
        elif "items" in schema and ("$ref" in schema["items"] or "properties" in schema["items"]):
            return {"type": "array", "properties": {ANY: schema["items"]}}
        else:
            return schema


def _is_section(schema: Schema) -> bool:
    return bool(_named(schema) or _properties(schema))


def _named(schema: Schema) -> dict[str, Schema]:
    """The variants of a section that says by one of its keys which it is."""
    found = {}
    for variant in schema.get("allOf", ()):
        if "if" in variant and "then" in variant:
            ((_, chosen),) = variant["if"]["properties"].items()
            if "const" in chosen:
                found[str(chosen["const"])] = variant["then"]
    return found


def _properties(schema: Schema) -> dict[str, Schema]:
    """The keys of a section; of one with variants, those of the usual one first, then what others have."""
    variants = _named(schema)
    if not variants:
        others = schema.get("additionalProperties")
        return {**schema.get("properties", {}), **({ANY: others} if isinstance(others, Mapping) else {})}
    order = sorted(variants, key=lambda name: (name not in USUAL, name))
    found: dict[str, Schema] = {}
    for name in order:
        for key, inner in variants[name]["properties"].items():
            found.setdefault(key, inner)
    return found
