"""Tasks that the project generates, on the corpus of the tests, and the tiny model that the tests trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import Command
from .twins import Twins, twins_of

EXAMPLES = 40


@pytest.fixture(scope="session")
def suite(shards: Path, run_command: Command) -> Path:
    """The folder of the generated tasks."""
    folder = shards / "tasks"
    documents = shards / "val" / "documents.jsonl"
    made = run_command("python", "-m", "eval.tasks.generate", documents, "--out", folder, "--examples", EXAMPLES)
    assert made.returncode == 0, made.stderr
    assert "cloze.jsonl: 40 examples, chance 25%" in made.stdout
    return folder


@pytest.fixture(scope="session")
def twins(whole: Path) -> Twins:
    return twins_of(whole)
