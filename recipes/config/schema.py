"""Writing `schema.json`, the grammar that every recipe is checked against, from the code that reads recipes.

Every key a recipe may set is an argument of some constructor in Composer, LLM Foundry, streaming or this project.
Walking those signatures takes seconds and torch; reading the file that comes of it takes neither. Regenerate it after
changing a dependency or a constructor:

    python -m recipes.config.schema            # writes recipes/config/schema.json
    python -m recipes.config.schema --check    # exits 1 when the file is out of date

Editors understand the file too: `# yaml-language-server: $schema=../../recipes/config/schema.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recipes.config import components, top_level
from recipes.config.meanings import EVAL, explained, read_meanings

SCHEMA_PATH = Path(__file__).with_name("schema.json")


def generate() -> dict[str, Any]:
    """The whole grammar, read from the installed packages. Imports torch; takes seconds."""
    grammar = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe for composer train.py",
        **top_level.train_recipe(),
        "$defs": {**components.definitions(), EVAL: top_level.eval_recipe()},
    }
    return explained(grammar, read_meanings())


def main(arguments: list[str]) -> int:
    text = json.dumps(generate(), indent=1, sort_keys=True) + "\n"
    if "--check" in arguments:
        if SCHEMA_PATH.read_text() == text:
            return 0
        print(
            f"{SCHEMA_PATH} is out of date: run `python -m recipes.config.schema` and commit the result",
            file=sys.stderr,
        )
        return 1
    SCHEMA_PATH.write_text(text)
    print(f"wrote {SCHEMA_PATH}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
