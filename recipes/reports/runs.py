"""A run's name, its folder, and its metrics read back. What else lies there: recipes/run_files.py. Pure Python."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes import json_lines
from recipes.config.file_names import RUN_NAMES, is_remote
from recipes.config.load import Recipe
from recipes.run_files import CHECKPOINTS, RUNS

TRAIN_LOSS = "loss/train/total"
SCORES = {
    "LanguageCrossEntropy": "validation loss",
    "PairLoss": "validation loss of pairs",
    "PairAccuracy": "pair accuracy",
}
_TAIL_BYTES = 1 << 16  # in which there is a whole line


def run_name(recipe: Recipe) -> str:
    """The recipe's run_name, else $RUN_NAME or $COMPOSER_RUN_NAME, else the name of the recipe's file."""
    from_environment = next(filter(None, map(os.environ.get, RUN_NAMES)), None)
    return str(recipe.get("run_name") or from_environment or recipe.path.stem)


def run_folder(recipe: Recipe) -> Path:
    """The folder around a local `save_folder` called checkpoints, else that folder, else runs/<run name>."""
    save_folder = recipe.get("save_folder")
    if not save_folder or is_remote(save_folder):
        return Path(RUNS) / run_name(recipe)
    folder = Path(save_folder.replace("{run_name}", run_name(recipe)))
    return folder.parent if folder.name == CHECKPOINTS else folder


def metrics_by_step(path: Path) -> dict[int, dict[str, float]]:
    """All metrics of each step, in order; without those of steps that a later start did again, or never came to."""
    steps: dict[int, dict[str, float]] = {}
    for record in read_metrics(path):
        try:
            step = int(record["step"])
        except (KeyError, TypeError, ValueError):
            continue
        if steps and step < next(reversed(steps)):
            # the steps before it stand, but a run that begins anew goes on from none
            steps = {done: values for done, values in steps.items() if done <= step} if step else {}
        steps.setdefault(step, {}).update(record)
    return steps


def validation_loss(metrics: Mapping[str, Any]) -> float | None:
    """The cross entropy of an evaluation; of several `eval_loader`s their mean. None where there is none."""
    names = [name for name in metrics if re.fullmatch(r"metrics/eval/(.+/)?LanguageCrossEntropy", name)]
    return math.fsum(float(metrics[name]) for name in names) / len(names) if names else None


def validation_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What evaluations measured, by name: losses, and of preferences how often the right answer gained more.

    With several `eval_loader`s each has its label in the name, as in `validation loss (books)`.
    """
    found: dict[str, float] = {}
    for name, words in SCORES.items():
        for metric, value in metrics.items():
            label = re.fullmatch(rf"metrics/eval/(?:(.+)/)?{name}", metric)
            if label:
                found[words + (f" ({label[1]})" if label[1] else "")] = float(value)
    return found


def not_finite_since(by_step: Mapping[int, Mapping[str, float]]) -> int | None:
    """The step, counted from 1, from which on the training loss is NaN or infinite to the end; None where it is not."""
    since = None
    for step, values in by_step.items():
        if TRAIN_LOSS in values:
            is_finite = math.isfinite(values[TRAIN_LOSS])
            since = None if is_finite else since or step + 1  # the loss of the first step stands at 0
    return since


def perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:  # of a model that has diverged
        return math.inf


def last_step(path: Path) -> int:
    """The step that the last readable line of a metrics file is about; 0 where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def read_metrics(path: Path) -> Iterator[Mapping[str, float]]:
    """The lines of a metrics file in the order written; NaN for null. A line torn by a kill is left out."""
    for record in json_lines.read(path):
        if record and isinstance(record.get("step"), int):
            known = {name: math.nan if value is None else value for name, value in record.items()}
            yield {name: value for name, value in known.items() if isinstance(value, (int, float))}


def read_tasks(path: Path) -> tuple[Mapping[str, Any], ...]:
    """One record a step, the last one written; without those of steps that a later start did again, or never came to.

    What these had cost is added to the record that came after them. A line torn by a kill is left out.
    """
    by_step: dict[int, Mapping[str, Any]] = {}
    for record in json_lines.read(path):
        try:
            if record is None:
                continue
            step = int(record["step"])
            undone = [done for done in by_step if done >= step]
            paid = {
                key: sum((by_step[done].get(key) or 0 for done in undone), start=record[key])
                for key in ("seconds", "usd")
                if record.get(key)
            }
            kept = {**record, **paid, "tasks": list(record["tasks"])}
        except (ValueError, KeyError, TypeError):
            continue
        by_step = {done: each for done, each in by_step.items() if done < step} | {step: kept}
    return tuple(by_step.values())
