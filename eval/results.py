"""Results a person can compare: scores with standard error and interval, where they are kept, the table."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.durable import write_whole
from eval import metrics
from eval.digests import file_digest
from recipes.config.load import Recipe
from recipes.console import console
from recipes.reports.page import write_page
from recipes.reports.scores import interval, number
from recipes.run_files import EVALUATION, RUNS, SUMMARY

EXAMPLES = "examples.jsonl"  # beside the results: one line an example


def results_path(recipe: Recipe, run: str | None) -> Path:
    """`results:` of the recipe, else results.json in the run folder that is judged, else in runs/eval-<recipe>."""
    if recipe.get("results"):
        return Path(recipe["results"])
    return (Path(run) if run else Path(RUNS) / f"eval-{recipe.path.stem}") / EVALUATION


def by_path(recipe: Recipe, runs: Sequence[str | None]) -> dict[Path, Recipe]:
    """The recipe taken apart by where its results go: each run's to its own folder, all to `results:` where it has one.

    runs: for each of its models the run folder that it is of, or None.
    """
    models: dict[Path, list[Any]] = {}
    for model, run in zip(recipe["models"], runs, strict=True):
        models.setdefault(results_path(recipe, run), []).append(model)
    return {
        path: dataclasses.replace(recipe, values={**recipe.values, "models": some}) for path, some in models.items()
    }


def examples_path(results: Path) -> Path:
    """results.json → results.examples.jsonl beside it."""
    return results.with_name(f"{results.stem}.{EXAMPLES}")


def digest(recipe: Recipe, models: Iterable[str], files: Iterable[Path]) -> str:
    """SHA-256 over the recipe, the models' digests and the content of the files it reads."""
    contents = {str(path): file_digest(path) for path in files if path.is_file()}
    values = {k: v for k, v in recipe.values.items() if k not in ("results", "loggers", "dry_run")}
    text = json.dumps([values, list(models), contents], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def task_entry(
    label: str,
    metric: str,
    score: float | None,
    outcomes: Sequence[float] | None,
    chance: float | None,
    examples: int,
    **more: Any,
) -> dict[str, Any]:
    """A task's entry in results.json. outcomes: one an example, where the score is their mean."""
    said = {"label": label, "metric": metric, "score": score, **uncertainty(outcomes), "chance": chance}
    return {**said, "examples": examples, **more}


def uncertainty(outcomes: Sequence[float] | None) -> dict[str, float | None]:
    """Standard error, the 95 % interval, and half its width."""
    if not outcomes:
        return dict.fromkeys(("stderr", "low", "high", "interval_95"))
    low, high = metrics.interval(outcomes)
    return {"stderr": metrics.standard_error(outcomes), "low": low, "high": high, "interval_95": (high - low) / 2}


def finished(path: Path, wanted: str) -> dict[str, Any] | None:
    """The results that this very evaluation wrote before, with their examples, or None."""
    if not examples_path(path).is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(results, dict) or results.get("digest") != wanted:
        return None
    models = results.get("models")
    return results if isinstance(models, list) and all(isinstance(m, dict) and "name" in m for m in models) else None


def write(path: Path, content: Mapping[str, Any], examples: Iterable[Mapping[str, Any]]) -> None:
    """The examples first: where results.json is whole, all is. A finished run's report is made anew with them."""
    lines = (json.dumps(example, ensure_ascii=False) for example in examples)
    write_whole(examples_path(path), "".join(f"{line}\n" for line in lines))
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if path.name == EVALUATION and (path.parent / SUMMARY).is_file():
        with contextlib.suppress(ValueError):  # the files of the run are damaged: the results are not
            write_page([path.parent])


def show(path: Path, results: Mapping[str, Any]) -> None:
    """Print a table a model: loss, perplexity, scores with their intervals beside chance, averages, samples."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    for model in results["models"]:
        table = Table(title=model["name"], title_justify="left")
        table.add_column("task", overflow="fold")
        for column in ("score", "stderr", "95 %", "chance", "examples"):
            table.add_column(column, justify="right", no_wrap=True)
        if "loss" in model:
            table.add_row("validation loss", f"{model['loss']:.3f}")
            losses = model.get("losses", {})
            for label, loss in losses.items() if len(losses) > 1 else ():
                table.add_row(f"  {label}", f"{loss:.3f}")
            if model.get("unigram_entropy"):
                table.add_row("  of single tokens", f"{model['unigram_entropy']:.3f}")
            table.add_row("validation perplexity", f"{model['perplexity']:,.1f}")
        for task in model.get("tasks", []):
            table.add_row(*_row(task))
        for name, value in model.get("gauntlet", {}).items():
            table.add_row(f"gauntlet: {name}", f"{value:.3f}")
        out.print(table)
        for task in model.get("tasks", []):
            if task.get("truncated"):
                text = f"{task['truncated']} of {task['examples']} examples are longer than the context"
                out.print(f"{task['label']}: {text} and lost their beginning")
            if task.get("twice"):
                text = f"{task['twice']} of {task['examples']} examples have their right choice twice"
                out.print(f"{task['label']}: {text}, and the first, which is taken, counts as wrong")
        for found in model.get("contamination", []):
            out.print(contamination_line(found))
        if model.get("contamination_left_out"):
            out.print(f"contamination is left out: {model['contamination_left_out']}", markup=False)
        for sample in model.get("samples", []):
            out.print("", Text.assemble((sample["prompt"], "dim"), sample["text"]), sep="\n")
    out.print(f"\nresults: {path}")


def contamination_line(found: Mapping[str, Any]) -> str:
    share = f"{found['contaminated']:,} of {found['examples']:,} examples"
    whole = f" ({found['too_short']:,} shorter, compared whole)" if found["too_short"] else ""
    return f"{found['label']}: {share} share {found['tokens']} tokens in a row with {found['shards']}{whole}"


def _row(task: Mapping[str, Any]) -> list[str]:
    score, stderr, chance = (
        "" if task.get(key) is None else number(task, task[key]) for key in ("score", "stderr", "chance")
    )
    return [task["label"], score, stderr, interval(task), chance, f"{task['examples']:,}"]
