"""What a run writes into a log in place of a progress bar."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from composer.loggers import Logger

from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.log_lines import LogLines
from tests.callbacks.test_cost import trainer


class Lines(LogLines):
    """With an evaluation on two loaders after the second step and after the fourth."""

    def batch_end(self, state: Any, logger: Logger) -> None:
        super().batch_end(state, logger)
        if state.timestamp.batch in (2, 4):
            self.eval_before_all(state, logger)
            for loader in ("a", "b"):
                self.log_metrics({f"metrics/eval/{loader}/LanguageCrossEntropy": 5.0 / int(state.timestamp.batch)})
                self.eval_end(state, logger)
            self.eval_after_all(state, logger)


@pytest.mark.parametrize(("interval_s", "steps"), [(600, [1, 6]), (0, [1, 2, 3, 4, 5, 6])])
def test_the_first_step_the_last_and_some_between(
    interval_s: float, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    t = trainer(CostMonitor(usd_per_device_hour=3600), 6, Lines(interval_s))
    t.fit()
    t.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"\d\d:\d\d:\d\d step ", line)]
    losses = [line for line in lines if "validation loss" in line]
    assert [line.split("step ")[1] for line in losses] == [
        f"{step}: validation loss (a) {loss}, validation loss (b) {loss}"
        for step, loss in ((2, "2.5000"), (4, "1.2500"))
    ]
    lines = [line for line in lines if line not in losses]
    assert [int(line.split()[2]) for line in lines] == steps
    last = r"step 6 \(100%\): loss \d+\.\d{4}, [\d,]+ tokens/s, \$\d.* of about \$\d.*, 0 s left, goodput \d+%"
    assert re.search(last + "$", lines[-1])


def test_scores_of_an_earlier_evaluation_are_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    lines, state = LogLines(), SimpleNamespace(timestamp=SimpleNamespace(batch=2))
    for loader in ("a", "b"):  # the second evaluation is of another loader alone
        lines.eval_before_all(state, None)  # type: ignore[arg-type]
        lines.log_metrics({f"metrics/eval/{loader}/LanguageCrossEntropy": 2.0})
        lines.eval_after_all(state, None)  # type: ignore[arg-type]
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("step 2: validation loss (a) 2.0000")
    assert second.endswith("step 2: validation loss (b) 2.0000")
