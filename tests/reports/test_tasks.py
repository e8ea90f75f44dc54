"""The section on tasks over a run's checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.callbacks.cost import CostMonitor
from recipes.config.load import load
from recipes.reports.page import write_page
from recipes.reports.summary import print_summary, write_summary

from ..run_folders import crashed_run


def record(step: int, score: float, usd: float | None) -> str:
    task = {"label": "cloze/0-shot", "score": score, "chance": 0.25, "examples": 500}
    task |= {"low": score - 0.03, "high": score + 0.05, "interval_95": 0.04}  # Wilson's is not even
    return json.dumps({"step": step, "tokens": step * 1024, "seconds": 30.0, "usd": usd, "tasks": [task]})


def test_scores_over_the_checkpoints_are_drawn_and_billed(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    lines = [record(1600, 0.31, 0.5), record(1600, 0.3, 0.5), record(3200, 0.45, 0.5), '{"step": 4800, "tas']
    (run / "tasks.jsonl").write_text("\n".join(lines))
    html = write_page([run]).read_text()
    for words in (
        "Tasks over the checkpoints",
        "cloze/0-shot",
        "30.0% (27.0% – 35.0%)",
        "45.0% (42.0% – 50.0%)",
        "25%",
        "score against tokens",
    ):
        assert words in html
    assert "2 evaluations took 1 min 30 s, $1.50." in html  # step 1,600 was done again after a crash, and paid twice
    assert "31.0%" not in html


@pytest.mark.parametrize(("metric", "score"), [("word_perplexity,none", 21.5), ("bits_per_byte,none", 0.875)])
def test_a_perplexity_is_no_percentage(tmp_path: Path, metric: str, score: float) -> None:
    run = crashed_run(tmp_path / "run")
    task = {"label": "words", "metric": metric, "score": score, "chance": None, "examples": 9}
    (run / "tasks.jsonl").write_text(json.dumps({"step": 1, "tokens": 1, "seconds": 1.0, "usd": None, "tasks": [task]}))
    (run / "results.json").write_text(json.dumps({"models": [{"name": "m", "tasks": [task]}]}))
    html = write_page([run]).read_text()
    rows = [line for line in html.split("<tr>") if "words" in line]
    assert sum(f">{score}<" in row for row in rows) == 2
    assert not any("%" in row.partition("</table>")[0] for row in rows)


def test_scores_of_the_run_as_it_went_on_are_in_the_summary_and_are_not_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = crashed_run(tmp_path / "run")
    (run / "results.json").unlink()
    (run / "tasks.jsonl").write_text("\n".join([record(1600, 0.3, 0.5), record(3200, 0.45, 0.5)]))
    (run / "summary.json").write_text(json.dumps({"recipe": "recipe.yaml", "steps": 4800}))
    print_summary(run)
    said = " ".join(capsys.readouterr().out.split())
    assert "cloze/0-shot 45.0% (42.0% – 50.0%) (chance 25%), 500 examples, at step 3,200" in said
    html = write_page([run]).read_text()
    assert "None yet" not in html
    assert "While it trained, below" in html


def test_each_loader_and_the_accuracy_of_preferences_have_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = crashed_run(tmp_path / "run")
    found = {"a/LanguageCrossEntropy": 2.25, "b/LanguageCrossEntropy": 3.75, "PairAccuracy": 0.625}
    line = {"step": 4802, **{f"metrics/eval/{name}": value for name, value in found.items()}}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    recipe = load(str(run / "recipe.yaml"), [])
    write_summary(run, recipe, CostMonitor().summary(), 4802, None)
    print_summary(run)
    said = " ".join(capsys.readouterr().out.split())
    html = write_page([run]).read_text()
    for name, value in (("validation loss (a)", "2.250"), ("validation loss (b)", "3.750"), ("pair accuracy", "0.625")):
        assert f"{name} {value}" in said
        assert f"{name}</span><b>{value}</b>" in html
    assert "validation loss 10.100 → 3.000" in said  # their mean


def test_a_run_without_tasks_has_no_such_section(tmp_path: Path) -> None:
    assert "Tasks over the checkpoints" not in write_page([crashed_run(tmp_path / "run")]).read_text()
