"""The report of one run, or of several side by side: one HTML page that needs no network and no script. No torch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_prep.durable import write_whole
from recipes.cost.duration import in_words
from recipes.cost.figures import number, short, usd
from recipes.reports.against_plan import figures, reasons
from recipes.reports.charts import Line, colour, line_chart, share_bar
from recipes.reports.run_record import RunRecord, is_number, read_run
from recipes.reports.scores import is_share, score_with_interval
from recipes.reports.summary import is_of_run
from recipes.run_files import REPORT

TEMPLATE = Path(__file__).with_suffix(".html")
UNKNOWN = "?"

# In the order of the bar: what it was paid for first.
PARTS = {
    "train": "training steps",
    "lost": "steps whose work was not kept: crashed, or begun anew",
    "compile": "compiling and warming up",
    "startup": "starting",
    "data": "waiting for data",
    "evaluation": "evaluating",
    "checkpoint": "saving checkpoints",
    "other": "other",
}


def write_page(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report; by default into the run folder, or beside the runs when there are several.

    Raises:
        ValueError: a folder that is no run's, or a file in it that is damaged, in words.
    """
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    if out is None:
        common = runs[0].folder if len(runs) == 1 else Path(os.path.commonpath([r.folder.absolute() for r in runs]))
        out = common / REPORT
    try:
        text = page(runs)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        where = ", ".join(str(run.folder) for run in runs)
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: a file there is not what a run or an evaluation writes ({said})") from None
    write_whole(out, text)
    return out


def page(runs: Sequence[RunRecord]) -> str:
    """The HTML text: the markup is all in page.html, which escapes whatever is put into it here."""
    from jinja2 import Environment, StrictUndefined  # here, as evaluations import this module and may write no page

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"colour": colour, "number": number, "product": math.prod}
    runs = _told_apart(runs)
    names = [run.name for run in runs]
    columns = [_key_figures(run) for run in runs]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        names=names,
        several=len(runs) > 1,
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs: {', '.join(names)}",
        key_figures={name: [column.get(name, "") for column in columns] for name in dict.fromkeys(chain(*columns))},
        loss_charts={x_label: _loss_chart(runs, x_label) for x_label in ("tokens", "dollars")},
        dollars_unknown=all(run.bill.total.usd is None for run in runs),
        bars=[share_bar((name, part, run.bill.total.shares[part]) for part, name in PARTS.items()) for run in runs],
        parts=_parts(runs),
        plans=[(run, figures(run), reasons(run)) for run in runs],
        scores=[row for run in runs for row in _scores(run, len(runs) > 1)],
        tasks=[(run, *_tasks(run)) for run in runs if run.tasks],
        differences=_differences(runs),
    )


def _told_apart(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs of the same name with that of the folder around them in front."""
    alike = Counter(run.name for run in runs)

    def named(run: RunRecord) -> RunRecord:
        around = run.folder.resolve().parent.name
        return run if alike[run.name] == 1 else dataclasses.replace(run, name=f"{around}/{run.name}")

    return [named(run) for run in runs]


def _key_figures(run: RunRecord) -> dict[str, str]:
    """What matters most, by name."""
    paid = run.bill.total
    loss = run.validation[-1].loss if run.validation else None
    speed = paid.tokens_per_s
    since = run.not_finite_since
    return {
        **({} if since is None else {"training loss": f"not finite since step {since:,}"}),
        "validation loss": UNKNOWN if loss is None else f"{loss:.3f}",
        **{name: f"{points[-1].loss:.3f}" for name, points in run.by_name.items() if name != "validation loss"},
        "dollars": _usd(paid.usd),
        "a million tokens": _usd(paid.usd_per_million_tokens),
        "tokens": short(paid.tokens, 4),
        "tokens/s": UNKNOWN if speed is None else short(round(speed), 4),
        "MFU": UNKNOWN if paid.mfu is None else f"{paid.mfu:.1%}",
        "goodput": UNKNOWN if paid.goodput is None else f"{paid.goodput:.0%}",
        "billed time": in_words(paid.wall_s),
        "starts": str(len(run.bill.starts)),
        "energy": UNKNOWN if run.kwh is None else f"{number(run.kwh)} kWh",
        "CO₂e": UNKNOWN if run.kg_co2e is None else f"{number(run.kg_co2e)} kg",
    }


def _loss_chart(runs: Sequence[RunRecord], x_label: str) -> Markup:
    lines = []
    for i, run in enumerate(runs):
        for name, points, marked in (("training", run.training, False), ("validation", run.validation, True)):
            label = name if len(runs) == 1 else f"{run.name} {name}"
            drawn = [(x, p.loss) for p in points if (x := p.usd if x_label == "dollars" else p.tokens) is not None]
            lines.append(Line(label, drawn, i, marked))
    return line_chart(lines, x_label, "loss, nats a token")


def _parts(runs: Sequence[RunRecord]) -> list[tuple[str, str, list[str]]]:
    """(CSS class, name, cells) of what was paid for. Cells: a run's time, share and dollars; of several, the shares."""
    rows = []
    for part, name in PARTS.items():
        cells = [f"{run.bill.total.shares[part]:.1%}" for run in runs]
        if len(runs) == 1:
            paid = runs[0].bill.total
            cells = [
                in_words(paid.parts[part]),
                *cells,
                _usd(None if paid.usd_by_part is None else paid.usd_by_part[part]),
            ]
        if any(run.bill.total.parts[part] > 0 for run in runs):
            rows.append((part, name, cells))
    return rows


def _scores(run: RunRecord, several: bool) -> Iterator[tuple[str, ...]]:
    """Rows of what is in results.json: a model's loss, then its tasks."""
    paid = run.bill.total.usd
    for model in run.evaluation.get("models") or []:
        # another model's scores, or those of an older checkpoint, are not what this run has paid for
        own = not run.summary or is_of_run(model, run.folder, run.summary)
        name = str(model.get("name", "")) + ("" if own else f" ({Path(str(model.get('checkpoint'))).name})")
        name = f"{run.name}: {name}" if several else name
        if isinstance(model.get("loss"), (int, float)):
            yield name, "validation loss", f"{model['loss']:.3f}", "", "", ""
        for task in model.get("tasks") or []:
            score, chance, examples = task.get("score"), task.get("chance"), task.get("examples")
            if not isinstance(score, (int, float)):
                continue
            points = 100 * (score - (chance or 0.0))
            dear = "no better than chance" if points <= 0 else _usd(None if paid is None else paid / points)
            yield (
                name,
                str(task.get("label", "?")),
                score_with_interval(task),
                "" if chance is None else f"{chance:.0%}",
                f"{examples:,}" if isinstance(examples, int) else "",
                dear if own and is_share(task) else "",  # a perplexity has no points
            )


def _tasks(run: RunRecord) -> tuple[Markup, list[str], list[tuple[str, ...]], str]:
    """Scores over the checkpoints: a chart, the steps, rows (label, chance, score at every step), and their price."""
    lines, rows = [], []
    by_label = [{task["label"]: task for task in record["tasks"] if "label" in task} for record in run.tasks]
    for i, label in enumerate(dict.fromkeys(label for tasks in by_label for label in tasks)):
        found = [tasks.get(label, {}) for tasks in by_label]
        points = [(record.get("tokens"), task.get("score")) for record, task in zip(run.tasks, found, strict=True)]
        drawn = [(float(x), float(y)) for x, y in points if is_number(x) and is_number(y)]
        lines.append(Line(label, drawn, i, marked=True))
        chances = [f"{task['chance']:.0%}" for task in found if isinstance(task.get("chance"), (int, float))]
        scores = [score_with_interval(task) if isinstance(task.get("score"), (int, float)) else "" for task in found]
        rows.append((label, chances[0] if chances else "", *scores))
    steps = [f"{record['step']:,}" for record in run.tasks]
    paid = [record.get("usd") for record in run.tasks]
    dollars = "" if None in paid else f", {usd(sum(float(x or 0) for x in paid))}"
    price = in_words(sum(float(record.get("seconds") or 0) for record in run.tasks)) + dollars
    return line_chart(lines, "tokens", "score"), steps, rows, price


def _differences(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Rows of the recipes' keys whose values differ: the key, then its value in every run."""
    flat = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in flat}) > 1]
    return [[key, *(str(recipe.get(key, "—")) for recipe in flat)] for key in differing]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _usd(value: float | None) -> str:
    return UNKNOWN if value is None else usd(value)
