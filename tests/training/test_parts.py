"""What a run builds by name, and where it lets it write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes import parts
from recipes.config.load import load


def test_loggers_write_into_the_run_folder(
    recipe_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(parts.builders, "build_logger", built.__setitem__)  # neither package is here
    monkeypatch.delenv("WANDB_DIR", raising=False)
    recipe = load(recipe_file("loggers: {tensorboard: {}, wandb: {init_kwargs: {mode: offline}}, mlflow: {}}\n"))
    parts.build_loggers(recipe, recipe.values, tmp_path)
    assert built == {
        "tensorboard": {"log_dir": str(tmp_path / "tensorboard")},
        "wandb": {"init_kwargs": {"dir": str(tmp_path), "mode": "offline"}},
        "mlflow": {},
    }
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    recipe = load(recipe_file("loggers: {tensorboard: {log_dir: mine}, wandb: {}}\n"))
    parts.build_loggers(recipe, recipe.values, tmp_path)
    assert (built["tensorboard"], built["wandb"]) == ({"log_dir": "mine"}, {})
