"""What a run folder's metrics say of the run, across its starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from recipes.callbacks.metrics_file import MetricsFile
from recipes.reports.runs import TRAIN_LOSS, metrics_by_step, not_finite_since, read_tasks


def write(path: Path, *records: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def test_steps_that_a_later_start_did_again_or_never_came_to_are_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *({"step": step, "loss": 10.0 - step} for step in range(8)))
    write(path, {"step": 5, "usd": 1.0}, {"step": 5, "loss": 4.5}, {"step": 6, "loss": 3.5})
    found = metrics_by_step(path)
    assert list(found) == [0, 1, 2, 3, 4, 5, 6]
    assert found[5] == {"step": 5, "loss": 4.5, "usd": 1.0}
    assert found[6]["loss"] == 3.5
    write(path, {"step": 0, "loss": 9.0}, {"step": 1, "loss": 8.0})  # from the beginning, and shorter
    assert {step: values["loss"] for step, values in metrics_by_step(path).items()} == {0: 9.0, 1: 8.0}
    write(path, {"step": 0, "usd": 0.0})
    assert metrics_by_step(path) == {0: {"step": 0, "usd": 0.0}}  # the old run's loss is not its own


def test_scores_of_a_run_that_began_anew_are_its_own_and_all_are_paid_for(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    write(path, *({"step": step, "seconds": 10, "usd": 1.0, "tasks": []} for step in (100, 200, 300, 300)))
    write(path, {"step": 100, "seconds": 10, "usd": 1.0, "tasks": []})
    assert [(each["step"], each["seconds"], each["usd"]) for each in read_tasks(path)] == [(100, 50, 5.0)]
    write(path, {"step": 200, "seconds": 10, "usd": None, "tasks": []})
    assert [(each["step"], each["seconds"], each["usd"]) for each in read_tasks(path)] == [
        (100, 50, 5.0),
        (200, 10, None),
    ]


def test_lines_without_a_step_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"loss": 1.0}, {"step": 0, "loss": 2.0})
    path.write_text(path.read_text() + '{"step": 1, "lo')
    assert metrics_by_step(path) == {0: {"step": 0, "loss": 2.0}}
    assert metrics_by_step(tmp_path / "none.jsonl") == {}


@pytest.mark.parametrize(
    ("losses", "since"),
    [([3, 2], None), ([3, math.nan, 2], None), ([3, math.nan, 2, math.inf, math.nan], 4), ([], None)],
)
def test_what_is_not_finite_is_null_in_the_file_and_none_of_a_loss(
    losses: list[float], since: int | None, tmp_path: Path
) -> None:
    file = MetricsFile(str(tmp_path / "metrics.jsonl"))
    anything: Any = None
    file.init(anything, anything)
    for step, loss in enumerate(losses):
        file.log_metrics({TRAIN_LOSS: loss}, step)
    file.close(anything, anything)
    if losses:
        text = (tmp_path / "metrics.jsonl").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text
    found = metrics_by_step(tmp_path / "metrics.jsonl")
    assert len(found) == len(losses)
    assert not_finite_since(found) == since
