"""What a run writes into a log in place of a progress bar."""

from __future__ import annotations

import re
from typing import Any

import pytest
from composer.loggers import Logger

from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.log_lines import LogLines
from tests.callbacks.test_cost import trainer


class Lines(LogLines):
    """With a validation loss of its own after the fourth step."""

    def batch_end(self, state: Any, logger: Logger) -> None:
        super().batch_end(state, logger)
        if state.timestamp.batch == 4:
            self.log_metrics({"metrics/eval/LanguageCrossEntropy": 1.25})
            self.eval_end(state, logger)


@pytest.mark.parametrize(("interval_s", "steps"), [(600, [1, 6]), (0, [1, 2, 3, 4, 5, 6])])
def test_the_first_step_the_last_and_some_between(
    interval_s: float, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    t = trainer(CostMonitor(usd_per_device_hour=3600), 6, Lines(interval_s))
    t.fit()
    t.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"\d\d:\d\d:\d\d step ", line)]
    assert lines.pop(steps.index(6) if interval_s else 4).endswith("step 4: validation loss 1.2500")
    assert [int(line.split()[2]) for line in lines] == steps
    last = r"step 6 \(100%\): loss \d+\.\d{4}, [\d,]+ tokens/s, \$\d.* of about \$\d.*, 0 s left, goodput \d+%"
    assert re.search(last + "$", lines[-1])
