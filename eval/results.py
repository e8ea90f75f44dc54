"""From Composer's metrics to results a person can compare: scores with their uncertainty, and where they are kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recipes.config import Recipe
from recipes.runs import write_whole

LOSS = "LanguageCrossEntropy"


def results_path(recipe: Recipe, run: str | None) -> Path:
    """`results:` of the recipe, else evaluation.json in the run folder that is judged, else in runs/eval-<recipe>."""
    if recipe.get("results"):
        return Path(recipe["results"])
    return (Path(run) if run else Path("runs") / f"eval-{recipe.path.stem}") / "evaluation.json"


def digest(recipe: Recipe) -> str:
    """SHA-256 over the recipe and the size and age of the files it reads, so that a changed one is evaluated anew."""
    files: dict[str, tuple[int, int]] = {}
    paths = [model.get("load_path") for model in recipe["models"]]
    tasks = recipe.get("icl_tasks", [])
    paths += [task.get("dataset_uri") for task in tasks] if isinstance(tasks, list) else [tasks]
    for path in paths:
        if path and Path(path).is_file():
            stat = Path(path).stat()
            files[path] = (stat.st_size, stat.st_mtime_ns)
    text = json.dumps([dict(recipe.values), files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def finished(path: Path, wanted: str) -> dict[str, Any] | None:
    """The results that this very evaluation wrote before, or None."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) and results.get("digest") == wanted else None


def collect(
    model: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, int],
    tasks: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """One model's results.

    metrics: by evaluator label, Composer's metric objects by name. sizes: examples by evaluator label.
    A score is a share from 0 to 1; its 95 % interval is ± 1.96 standard errors of a share.
    """
    chances = {task["label"]: task.get("random_baseline") for task in tasks}
    result: dict[str, Any] = {"name": model["model_name"], "checkpoint": model.get("load_path"), "tasks": []}
    for label, by_name in metrics.items():
        for name, metric in by_name.items():
            value = float(metric.compute())
            if name == LOSS:
                result["loss"] = value
                result["perplexity"] = math.exp(value)
            elif "InContextLearning" in name and label in sizes:
                examples = sizes[label]
                result["tasks"].append(
                    {
                        "label": label,
                        "metric": name,
                        "score": value,
                        "examples": examples,
                        "interval_95": 1.96 * math.sqrt(value * (1 - value) / examples),
                        "chance": chances.get(label.split("/")[0]),
                    }
                )
    return result


def write(path: Path, recipe: Recipe, models: list[dict[str, Any]]) -> None:
    content = {"digest": digest(recipe), "recipe": str(recipe.path), "models": models}
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def show(path: Path, results: Mapping[str, Any]) -> None:
    """Print a table a model: loss, perplexity, scores with their intervals, samples."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for model in results["models"]:
        table = Table("task", "score", "± 95 %", "chance", "examples", title=model["name"], title_justify="left")
        if "loss" in model:
            table.add_row("validation loss", f"{model['loss']:.3f}", "", "", "")
            if model.get("unigram_entropy"):
                table.add_row("  of single tokens", f"{model['unigram_entropy']:.3f}", "", "", "")
            table.add_row("validation perplexity", f"{model['perplexity']:,.1f}", "", "", "")
        for task in model["tasks"]:
            chance = "" if task["chance"] is None else f"{task['chance']:.1%}"
            table.add_row(
                task["label"], f"{task['score']:.1%}", f"{task['interval_95']:.1%}", chance, f"{task['examples']:,}"
            )
        console.print(table)
        for sample in model.get("samples", []):
            console.print("", Text.assemble((sample["prompt"], "dim"), sample["text"]), sep="\n")
    console.print(f"\nresults: {path}")
