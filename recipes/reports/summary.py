"""What a run came to: written when it ends, printed for a person, read back by the next start. No torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.durable import write_whole
from recipes.config.file_names import is_remote
from recipes.config.load import Recipe
from recipes.console import console
from recipes.cost.duration import in_words
from recipes.cost.figures import number
from recipes.reports.runs import (
    TRAIN_LOSS,
    metrics_by_step,
    not_finite_since,
    perplexity,
    read_tasks,
    validation_loss,
    validation_scores,
)
from recipes.reports.scores import score_with_interval
from recipes.run_files import CHECKPOINTS, EVALUATION, METRICS, RECIPE, REPORT, SUMMARY, TASKS
from recipes.training.checkpoints import is_of, starts_anew

# Keys that change what is printed or where, not what is trained.
COSMETIC = {"progress_bar", "log_to_console", "console_log_interval", "loggers", "python_log_level", "dry_run", "cost"}


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 over everything in the recipe that decides what is trained."""
    deciding = {k: v for k, v in recipe.values.items() if k not in COSMETIC}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether this very recipe ran to its end in this folder and its last checkpoint is still there.

    A recipe that says to start anew (`autoresume: false`, `save_overwrite: true`) is never finished before.
    """
    if starts_anew(recipe.values):
        return False
    summary = read_json(folder / SUMMARY)
    if summary.get("recipe_sha256") != recipe_digest(recipe) or summary.get("stopped"):
        return False
    checkpoint = summary.get("checkpoint")
    return checkpoint is None or (isinstance(checkpoint, str) and (is_remote(checkpoint) or Path(checkpoint).exists()))


def write_summary(
    folder: Path,
    recipe: Recipe,
    cost: Any,
    last_step: int,
    checkpoint: str | None,
    stopped: str | None = None,
    ended: str | None = None,
) -> None:
    """Write summary.json from the metrics file and the meter.

    cost: the frozen dataclass that CostMonitor.summary() returns. stopped: why the run ended before its time, if it may
    go on. ended: what ended it before its time, for good.
    """
    by_step = metrics_by_step(folder / METRICS)
    losses = {step: loss for step, r in by_step.items() if (loss := validation_loss(r)) is not None}
    train = {step: r[TRAIN_LOSS] for step, r in by_step.items() if TRAIN_LOSS in r}
    summary = {
        "recipe_sha256": recipe_digest(recipe),
        "recipe": str(folder / RECIPE),
        "checkpoint": checkpoint,
        "steps": last_step,
        "stopped": stopped,
        "ended_early": ended,
        "train_loss_start": _at(train, 0),
        "train_loss_end": _at(train, -1),
        "train_loss_not_finite_since": not_finite_since(by_step),
        "eval_loss_start": _at(losses, 0),
        "eval_loss_end": _at(losses, -1),
        "validation": _first_and_last(by_step),
        **dataclasses.asdict(cost),
    }
    # JSON has no NaN
    known = {k: _finite(v) for k, v in summary.items()}
    write_whole(folder / SUMMARY, json.dumps(known, indent=2, default=str) + "\n")


def _first_and_last(by_step: Mapping[int, Mapping[str, float]]) -> dict[str, tuple[float | None, float | None]]:
    """Each thing that evaluations measured, as the first and the last of them found it."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for metrics in by_step.values():
        for name, value in validation_scores(metrics).items():
            found[name] = (found[name][0] if name in found else _finite(value), _finite(value))
    return found


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summary(folder: Path) -> None:
    """A screenful for a person: what was learned, how fast, at what price, and where the files are."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    summary = read_json(folder / SUMMARY)
    if not summary:
        is_there = (folder / SUMMARY).exists()
        why = "cannot be read, or is no JSON" if is_there else f"does not exist: no run has ended in {folder}"
        raise FileNotFoundError(f"{folder / SUMMARY} {why}")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    try:
        rows = [*_learned(summary), *_in_the_loop(folder), *_paid(summary)]
        rows += [*_evaluated(folder, summary), *_files(folder, summary)]
        steps = f"{summary['steps']:,}"
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        damaged = f"{folder / SUMMARY} or {EVALUATION} beside it is damaged ({type(error).__name__}: {error})"
        raise FileNotFoundError(f"{damaged}; the run's {METRICS} has the numbers still") from None
    for name, text in rows:
        table.add_row(name, Text(text))
    out = console()
    out.print(f"\n[bold]{escape(folder.resolve().name)}[/bold] after {steps} steps")
    out.print(table)


def _learned(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if summary.get("stopped"):
        rows.append(("stopped early", summary["stopped"]))
    if summary.get("ended_early"):
        rows.append(("ended early", summary["ended_early"]))
    start, end = summary.get("eval_loss_start"), summary.get("eval_loss_end")
    if end is not None:
        before = f"{start:.3f} → " if start is not None and start != end else ""
        rows.append(("validation loss", f"{before}{end:.3f} nats a token"))
        before = f"{perplexity(start):,.1f} → " if start is not None and start != end else ""
        rows.append(("validation perplexity", f"{before}{perplexity(end):,.1f}"))
    elif start is not None:
        rows.append(("validation loss", f"{start:.3f} → not finite"))
    for name, (start, end) in (summary.get("validation") or {}).items():
        if name != "validation loss":  # of several loaders, of which that is the mean, and of preferences
            before = f"{start:.3f} → " if start is not None and start != end else ""
            rows.append((name, before + ("not finite" if end is None else f"{end:.3f}")))
    start, end = summary.get("train_loss_start"), summary.get("train_loss_end")
    if summary.get("train_loss_not_finite_since") is not None:
        before = f"{start:.3f} → " if start is not None else ""
        rows.append(("training loss", f"{before}not finite since step {summary['train_loss_not_finite_since']:,}"))
    elif start is not None and end is not None:
        rows.append(("training loss", f"{start:.3f} → {end:.3f}"))
    return rows


def _paid(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    tokens, speed = summary.get("tokens"), summary.get("tokens_per_s")
    if tokens:
        rows.append(("tokens", f"{tokens:,}" + (f" at {speed:,.0f} tokens/s while training" if speed else "")))
    mfu = summary.get("mfu")
    rows.append(("MFU", f"{mfu:.1%}" if mfu is not None else str(summary.get("mfu_basis") or "unknown")))
    wall, goodput = summary.get("wall_s"), summary.get("goodput")
    if wall is not None:
        rows.append(("wall time", in_words(wall) + ("" if goodput is None else f", goodput {goodput:.0%}")))
    usd, source = summary.get("usd"), summary.get("rate_source")
    if usd is None:
        rows.append(("cost", f"unknown: {source}" if source else "unknown"))
    else:
        per_million = summary.get("usd_per_million_tokens")
        each = f", ${per_million:,.4f} a million tokens" if per_million is not None else ""
        rows.append(("cost", f"${usd:,.4f}{each} ({source})"))
    if summary.get("kwh") is not None:
        rows.append(
            (
                "energy",
                f"{number(summary['kwh'])} kWh, {number(summary['kg_co2e'])} kg CO₂e ({summary['energy_basis']})",
            )
        )
    return rows


def _evaluated(folder: Path, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for model in read_json(folder / EVALUATION).get("models", []):
        if not is_of_run(model, folder, summary):  # judged beside this one, or before the run went on
            continue
        if model.get("unigram_entropy") is not None:
            rows.append(("unigram entropy", f"{model['unigram_entropy']:.3f}: the loss of knowing frequencies alone"))
        for task in model.get("tasks", []):
            rows.append((task["label"], _task(task)))
        for sample in model.get("samples", []):
            rows.append(("sample", f"{sample['prompt']} …{sample['text']}"))
    return rows


def _in_the_loop(folder: Path) -> list[tuple[str, str]]:
    """The last scores of tasks while the run went on."""
    evaluations = [record for record in read_tasks(folder / TASKS) if record["tasks"]]
    if not evaluations:
        return []
    last = evaluations[-1]
    scored = [task for task in last["tasks"] if isinstance(task.get("score"), (int, float))]
    return [(str(task.get("label", "?")), f"{_task(task)}, at step {int(last['step']):,}") for task in scored]


def _task(task: Mapping[str, Any]) -> str:
    chance = f" (chance {task['chance']:.0%})" if task.get("chance") is not None else ""
    examples = f", {task['examples']} examples" if task.get("examples") is not None else ""
    return f"{score_with_interval(task)}{chance}{examples}"


def is_of_run(model: Mapping[str, Any], folder: Path, summary: Mapping[str, Any]) -> bool:
    """Whether an entry of results.json is of what the run ended with."""
    if not model.get("checkpoint") or not summary.get("checkpoint"):
        return model.get("name") == folder.resolve().name
    checkpoint = Path(str(summary["checkpoint"]))
    inside = folder / CHECKPOINTS / checkpoint.name  # whichever folder this is asked in
    return is_of(model["checkpoint"], inside if inside.exists() else checkpoint)


def _files(folder: Path, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("checkpoint", str(summary.get("checkpoint") or "none was saved"))]
    rows += [
        ("resolved recipe", str(summary["recipe"])),
        ("report", str(folder / REPORT)),
        ("run folder", str(folder)),
    ]
    return rows


def _at(series: Mapping[int, float], index: int) -> float | None:
    return list(series.values())[index] if series else None


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is none."""
    try:
        # NaN and infinities, of runs that have diverged, are not known
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
