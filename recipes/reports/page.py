"""The report of one run, or of several side by side: one HTML page that needs no network and no script. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from data_prep.durable import write_whole
from recipes.cost.duration import in_words
from recipes.cost.figures import number, short
from recipes.reports.against_plan import figures, reasons
from recipes.reports.charts import SERIES, Line, line_chart, share_bar
from recipes.reports.run_record import Point, RunRecord, read_run
from recipes.reports.scores import is_share, score_with_interval
from recipes.reports.summary import is_of_run
from recipes.reports.tasks import section_of

TEMPLATE = Path(__file__).with_suffix(".html")
PAGE = "report.html"
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
        ValueError: a folder that is no run's, in words.
    """
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    if out is None:
        common = runs[0].folder if len(runs) == 1 else Path(os.path.commonpath([r.folder.absolute() for r in runs]))
        out = common / PAGE
    try:
        text = page(runs)
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        where = ", ".join(str(run.folder) for run in runs)
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: a file there is not what a run or an evaluation writes ({said})") from None
    write_whole(out, text)
    return out


def page(runs: Sequence[RunRecord]) -> str:
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    sections = [f"<h1>{escape(title)}</h1>"]
    sections += [_head(run) for run in runs] if len(runs) == 1 else [_side_by_side(runs)]
    sections.append(_loss(runs))
    sections.append(_goodput(runs))
    sections += [_plan(run, len(runs) > 1) for run in runs]
    sections.append(_evaluation(runs))
    sections += [section_of(run, len(runs) > 1) for run in runs]
    sections += [_recipe(runs)]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=escape(title), body="\n".join(sections))


def _head(run: RunRecord) -> str:
    cards = "".join(
        f'<div class="card"><span class="soft">{name}</span><b>{value}</b></div>' for name, value in _key(run)
    )
    return f'<p class="soft">{escape(run.state)} · {escape(str(run.folder))}</p><div class="cards">{cards}</div>'


def _side_by_side(runs: Sequence[RunRecord]) -> str:
    columns = [dict(_key(run)) for run in runs]
    head = "".join(
        f'<th class="n"><i style="color:{_colour(i)}">■</i> {escape(r.name)}</th>' for i, r in enumerate(runs)
    )
    rows = [f"<tr><td>state</td>{''.join(f'<td class=n>{escape(r.state)}</td>' for r in runs)}</tr>"]
    for name in columns[0]:
        rows.append(f"<tr><td>{name}</td>{''.join(f'<td class=n>{c[name]}</td>' for c in columns)}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _key(run: RunRecord) -> list[tuple[str, str]]:
    """The figures of a run that matter most, as HTML text."""
    paid = run.bill.total
    loss = run.validation[-1].loss if run.validation else None
    speed = paid.tokens_per_s
    return [
        ("validation loss", UNKNOWN if loss is None else f"{loss:.3f}"),
        ("dollars", _usd(paid.usd)),
        ("a million tokens", _usd(paid.usd_per_million_tokens)),
        ("tokens", short(paid.tokens, 4)),
        ("tokens/s", UNKNOWN if speed is None else short(round(speed), 4)),
        ("MFU", UNKNOWN if paid.mfu is None else f"{paid.mfu:.1%}"),
        ("goodput", UNKNOWN if paid.goodput is None else f"{paid.goodput:.0%}"),
        ("billed time", in_words(paid.wall_s)),
        ("starts", str(len(run.bill.starts))),
        ("energy", UNKNOWN if run.kwh is None else f"{number(run.kwh)} kWh"),
        ("CO₂e", UNKNOWN if run.kg_co2e is None else f"{number(run.kg_co2e)} kg"),
    ]


def _loss(runs: Sequence[RunRecord]) -> str:
    by_tokens, by_usd = [], []
    for i, run in enumerate(runs):
        for name, points, marked in (("training", run.training, False), ("validation", run.validation, True)):
            label = name if len(runs) == 1 else f"{run.name} {name}"
            by_tokens.append(Line(label, [(p.tokens, p.loss) for p in points], i, marked))
            by_usd.append(Line(label, _against_dollars(points), i, marked))
    figures_ = []
    for lines, x_label in ((by_tokens, "tokens"), (by_usd, "dollars")):
        chart = line_chart(lines, x_label, "loss, nats a token")
        text = f"Loss against {x_label}: thin is training, thick with dots is validation."
        if not chart:
            chart, text = (
                "",
                f"Loss against {x_label}: nothing to draw"
                + ("; no rate was known." if x_label == "dollars" else " yet."),
            )
        figures_.append(f"<figure>{chart}<figcaption>{text}</figcaption></figure>")
    key = ""
    if len(runs) > 1:
        items = (f'<li><i style="background:{_colour(i)}"></i>{escape(run.name)}</li>' for i, run in enumerate(runs))
        key = f'<ul class="key">{"".join(items)}</ul>'
    return f'<h2>Loss</h2><div class="charts">{"".join(figures_)}</div>{key}'


def _against_dollars(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(p.usd, p.loss) for p in points if p.usd is not None]


def _goodput(runs: Sequence[RunRecord]) -> str:
    bars, rows = [], []
    for run in runs:
        paid = run.bill.total
        shares = [(PARTS[part], part, paid.parts[part] / paid.wall_s) for part in PARTS] if paid.wall_s else []
        goodput = "not known" if paid.goodput is None else f"{paid.goodput:.1%}"
        bars.append(f"<h3>{escape(run.name)}: goodput {goodput}</h3>{share_bar(shares)}")
    used = [part for part in PARTS if any(run.bill.total.parts[part] > 0 for run in runs)]
    heads = ["time", "share", "dollars"] if len(runs) == 1 else [escape(run.name) for run in runs]
    head = "".join(f'<th class="n">{name}</th>' for name in heads)
    for part in used:
        cells = "".join(_part_cells(run, part, len(runs) == 1) for run in runs)
        rows.append(f'<tr><td><i class="swatch {part}"></i>{PARTS[part]}</td>{cells}</tr>')
    text = "Goodput is the share of the billed time spent in training steps whose work was kept."
    warnings = "".join(f'<p class="soft">{escape(r.name)}: {escape(w)}</p>' for r in runs for w in r.bill.warnings)
    table = f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    return f"<h2>Where the paid time went</h2><p class=soft>{text}</p>{''.join(bars)}{table}{warnings}"


def _part_cells(run: RunRecord, part: str, alone: bool) -> str:
    seconds, wall_s, usd = run.bill.total.parts[part], run.bill.total.wall_s, run.bill.total.usd
    share = seconds / wall_s if wall_s else 0.0
    if not alone:
        return f'<td class="n">{share:.1%}</td>'
    paid = None if usd is None else usd * share
    return f'<td class="n">{in_words(seconds)}</td><td class="n">{share:.1%}</td><td class="n">{_usd(paid)}</td>'


def _plan(run: RunRecord, several: bool) -> str:
    title = f"Plan against actual: {escape(run.name)}" if several else "Plan against actual"
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(planned)}</td><td>{escape(actual)}</td></tr>"
        for name, planned, actual in figures(run)
    )
    table = f'<div class="scroll"><table><tr><th></th><th>planned</th><th>actual</th></tr>{rows}</table></div>'
    why = reasons(run)
    if not why:
        text = run.no_plan or "nothing was trained, or the plan has no tokens to compare with"
        return f"<h2>{title}</h2>{table}<p class=soft>No reasons for a difference: {escape(text)}.</p>"
    lines = "".join(
        f"<tr><td>{escape(r.name)}</td><td class=n>{_number(r.planned)}</td><td class=n>{_number(r.actual)}</td>"
        f"<td>{escape(r.unit)}</td><td class=n>× {r.factor:.3g}</td></tr>"
        for r in why
        if r.factor is not None
    )
    product = 1.0
    for reason in why:
        product *= reason.factor or 1.0
    head = (
        '<tr><th>reason</th><th class="n">planned</th><th class="n">actual</th><th></th><th class="n">dollars</th></tr>'
    )
    total = f"<tr><td><b>all together</b></td><td></td><td></td><td></td><td class=n><b>× {product:.3g}</b></td></tr>"
    return (
        f"<h2>{title}</h2>{table}<h3>Why the dollars differ</h3>"
        "<p class=soft>Each factor is what it does to the dollars of the plan's middle; they multiply.</p>"
        f'<div class="scroll"><table>{head}{lines}{total}</table></div>'
    )


def _evaluation(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        for model in run.evaluation.get("models") or []:
            # another model's scores, or those of an older checkpoint, are not what this run has paid for
            own = not run.summary or is_of_run(model, run.folder, run.summary)
            name = str(model.get("name", "")) + ("" if own else f" ({Path(str(model.get('checkpoint'))).name})")
            name = escape(f"{run.name}: {name}" if len(runs) > 1 else name)
            if isinstance(model.get("loss"), (int, float)):
                rows.append(_result(name, "validation loss", f"{model['loss']:.3f}", "", "", ""))
            for task in model.get("tasks") or []:
                rows.append(_task(name, task, run.bill.total.usd, own))
    if not rows:
        return "<h2>Evaluation</h2><p class=soft>None yet: composer eval/evaluate.py RECIPE writes results.json.</p>"
    head = '<tr><th>model</th><th>task</th><th class="n">score</th><th class="n">chance</th>'
    head += '<th class="n">examples</th><th class="n">dollars a point</th></tr>'
    text = "Scores with their 95 % interval. A point is one per cent above chance, for all that the run has cost."
    return f'<h2>Evaluation</h2><p class=soft>{text}</p><div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _task(name: str, task: dict[str, Any], usd: float | None, own: bool) -> str:
    score, chance = task.get("score"), task.get("chance")
    if not isinstance(score, (int, float)):
        return ""
    points = 100 * (score - (chance or 0.0))
    dear = "no better than chance" if points <= 0 else UNKNOWN if usd is None else _usd(usd / points)
    if not own or not is_share(task):  # a perplexity has no points
        dear = ""
    return _result(
        name,
        escape(str(task.get("label", "?"))),
        score_with_interval(task),
        "" if chance is None else f"{chance:.0%}",
        f"{task['examples']:,}" if isinstance(task.get("examples"), int) else "",
        dear,
    )


def _result(name: str, task: str, *cells: str) -> str:
    return f"<tr><td>{name}</td><td>{task}</td>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"


def _recipe(runs: Sequence[RunRecord]) -> str:
    parts = ["<h2>Recipe</h2>"]
    if len(runs) > 1:
        parts.append(_differences(runs))
    for run in runs:
        text = escape(run.recipe_text) or "recipe.yaml is missing"
        parts.append(f"<details><summary>{escape(run.name)}: the resolved recipe</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _differences(runs: Sequence[RunRecord]) -> str:
    flat = [_flat(run.recipe) for run in runs]
    keys = [key for key in dict.fromkeys(k for f in flat for k in f) if len({repr(f.get(key)) for f in flat}) > 1]
    if not keys:
        return "<p class=soft>The recipes are the same.</p>"
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    rows = "".join(
        f"<tr><td>{escape(key)}</td>{''.join(f'<td>{escape(str(f.get(key, chr(8212))))}</td>' for f in flat)}</tr>"
        for key in keys
    )
    return f'<div class="scroll"><table><tr><th>differs</th>{head}</tr>{rows}</table></div>'


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()}


def _colour(index: int) -> str:
    return f"var(--series-{index % SERIES + 1})"


def _usd(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else number(value)
