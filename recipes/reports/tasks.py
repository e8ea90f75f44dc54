"""The report's section on tasks over the checkpoints of a run: what eval/in_loop.py wrote, drawn. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from recipes.cost.duration import in_words
from recipes.reports.charts import SERIES, Line, line_chart
from recipes.reports.run_record import RunRecord, is_number
from recipes.reports.scores import score_with_interval


def section_of(run: RunRecord, several: bool) -> str:
    """A chart of every task's score against tokens, the scores as a table, and what they cost; empty without any."""
    if not run.tasks:
        return ""
    title = f"Tasks over the checkpoints: {escape(run.name)}" if several else "Tasks over the checkpoints"
    labels = list(dict.fromkeys(task["label"] for record in run.tasks for task in record["tasks"] if "label" in task))
    lines = [Line(label, _points(run, label), i, marked=True) for i, label in enumerate(labels)]
    chart = line_chart(lines, "tokens", "score")
    keys = "".join(
        f'<li><i style="background:var(--series-{i % SERIES + 1})"></i>{escape(label)}</li>'
        for i, label in enumerate(labels)
    )
    figure = f'<div class="charts"><figure>{chart}</figure></div><ul class="key">{keys}</ul>' if chart else ""
    head = "".join(f'<th class="n">{record["step"]:,}</th>' for record in run.tasks)
    rows = [
        f"<tr><td>{escape(label)}</td><td class=n>{_chance(run, label)}</td>"
        + "".join(f"<td class=n>{_score(record, label)}</td>" for record in run.tasks)
        + "</tr>"
        for label in labels
    ]
    seconds = sum(float(record.get("seconds") or 0) for record in run.tasks)
    paid = [record.get("usd") for record in run.tasks]
    usd = "" if any(x is None for x in paid) else f", ${sum(float(x or 0) for x in paid):,.3g}"
    text = f"Score with its 95 % interval by step; {len(run.tasks)} evaluations took {in_words(seconds)}{usd}."
    table = f'<tr><th>task</th><th class="n">chance</th>{head}</tr>{"".join(rows)}'
    return f'<h2>{title}</h2><p class=soft>{text}</p>{figure}<div class="scroll"><table>{table}</table></div>'


def _points(run: RunRecord, label: str) -> list[tuple[float, float]]:
    found = [(record.get("tokens"), _task(record, label).get("score")) for record in run.tasks]
    return [(float(x), float(y)) for x, y in found if is_number(x) and is_number(y)]


def _task(record: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    return next((task for task in record["tasks"] if task.get("label") == label), {})


def _score(record: Mapping[str, Any], label: str) -> str:
    task = _task(record, label)
    return score_with_interval(task) if isinstance(task.get("score"), (int, float)) else ""


def _chance(run: RunRecord, label: str) -> str:
    known = (_task(record, label).get("chance") for record in run.tasks)
    return next((f"{chance:.0%}" for chance in known if isinstance(chance, (int, float))), "")
