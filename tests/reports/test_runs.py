"""What a run folder's metrics say of the run, across its starts."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.reports.runs import metrics_by_step


def write(path: Path, *records: dict[str, float]) -> None:
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


def test_lines_without_a_step_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, {"loss": 1.0}, {"step": 0, "loss": 2.0})
    path.write_text(path.read_text() + '{"step": 1, "lo')
    assert metrics_by_step(path) == {0: {"step": 0, "loss": 2.0}}
    assert metrics_by_step(tmp_path / "none.jsonl") == {}
