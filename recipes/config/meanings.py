"""What the keys of a recipe do, from meanings.yaml into the grammar, whose `description` of a key editors show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from recipes.config.grammar import Schema

Meanings = Mapping[str, Mapping[str, str]]  # by section, then key
PATH = Path(__file__).with_name("meanings.yaml")
TRAIN, EVAL = "recipe", "eval_recipe"
ALSO = {EVAL: TRAIN, "cost_monitor": "cost"}  # sections whose keys mean what they mean in another one as well
ANYWHERE = "anywhere"


def read_meanings() -> Meanings:
    return yaml.safe_load(PATH.read_text(encoding="utf-8"))


def explained(schema: Schema, meanings: Meanings, sections: tuple[str, ...] = (TRAIN,)) -> Schema:
    """The same grammar with a `description` of every key that has a meaning.

    sections: whose keys these are, by the names of a definition, a variant of it, or the key that has the section; what
    the first of them says counts.
    """
    found: Schema = {}
    for word, inner in schema.items():
        if word == "properties":
            found[word] = {key: _key(key, key_of, meanings, sections) for key, key_of in inner.items()}
        elif word == "$defs":
            found[word] = {name: explained(of, meanings, _with_others(name)) for name, of in inner.items()}
        elif isinstance(inner, dict):
            found[word] = explained(inner, meanings, sections)
        elif isinstance(inner, list):
            found[word] = [
                explained(each, meanings, (*_variant(each), *sections)) if isinstance(each, dict) else each
                for each in inner
            ]
        else:
            found[word] = inner
    return found


def _key(key: str, schema: Schema, meanings: Meanings, sections: tuple[str, ...]) -> Schema:
    said = (meanings.get(section, {}).get(key) for section in (*sections, ANYWHERE))
    meaning = next((text for text in said if text), None)
    inside = explained(schema, meanings, _with_others(key))
    return {**inside, "description": meaning} if meaning else inside


def _with_others(section: str) -> tuple[str, ...]:
    return (section, ALSO[section]) if section in ALSO else (section,)


def _variant(schema: Schema) -> list[str]:
    """The name of the model or loader whose keys these are; none where the section has no variants."""
    return [str(key["const"]) for key in schema.get("if", {}).get("properties", {}).values() if "const" in key]
