"""Results and what they bring up to date."""

from __future__ import annotations

import json
from pathlib import Path

from eval import results
from recipes.reports.summary import EVALUATION
from tests.run_folders import crashed_run

TASK = {"label": "riddles/0-shot", "score": 0.75, "interval_95": 0.3, "examples": 8, "chance": 0.25}
CONTENT = {"digest": "d", "models": [{"name": "a", "loss": 2.5, "tasks": [TASK]}]}


def test_the_report_of_a_finished_run_gets_the_results(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    results.write(run / EVALUATION, CONTENT, [{"task": "riddles/0-shot", "index": 0}])
    assert json.loads((run / EVALUATION).read_text()) == CONTENT
    assert results.finished(run / EVALUATION, "d") == CONTENT
    (run / EVALUATION).write_text('{"digest": "d"}')
    assert results.finished(run / EVALUATION, "d") is None
    results.write(run / EVALUATION, CONTENT, [])
    results.examples_path(run / EVALUATION).unlink()
    assert results.finished(run / EVALUATION, "d") is None  # they are made again
    assert "riddles/0-shot" in (run / "report.html").read_text()


def test_results_outside_a_run_make_no_report(tmp_path: Path) -> None:
    results.write(tmp_path / "other" / EVALUATION, CONTENT, [])
    assert [path.name for path in sorted((tmp_path / "other").iterdir())] == ["results.examples.jsonl", EVALUATION]
