"""What the cost monitor, the guards of budget and divergence, and the stopper add to a training step.

    python -m bench.cost_monitor --out bench/results/cost_monitor.md

Time inside the events of the four callbacks, measured around each of them in a real training loop on the CPU: all
events of a step together, the median of the steps after the first ten, on rank 0. With two processes the stopper's
all-reduces over gloo are among them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from bench.machine import machine_and_versions, write_result

STEPS = 400
WARM_UP = 10
SHARE = 0.001  # of a step
COLUMNS = {
    "CostMonitor": "cost_monitor",
    "BudgetGuard": "budget_guard",
    "DivergenceGuard": "divergence",
    "Stopper": "stopper",
}
PROCESSES = (1, 2)


def measure(out: Path) -> None:
    """Train in this process, or in this rank, and write median seconds a step of each callback to `out`."""
    import torch
    from composer import Trainer
    from composer.core import Callback, Event, State
    from composer.loggers import Logger
    from composer.models import ComposerModel
    from composer.utils import dist

    from recipes.callbacks.budget import BudgetGuard
    from recipes.callbacks.cost import CostMonitor
    from recipes.callbacks.divergence import DivergenceGuard
    from recipes.callbacks.stopping import Stopper

    class Model(ComposerModel):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(128, 64), torch.nn.Linear(64, 128)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.head(self.embedding(batch))

        def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), batch.flatten())

    seconds: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))

    def timed(callback: Callback) -> Callback:
        run_event = callback.run_event

        def around(event: Event, state: State, logger: Logger) -> None:
            begun = time.perf_counter()
            run_event(event, state, logger)
            seconds[type(callback).__name__][int(state.timestamp.batch)] += time.perf_counter() - begun

        callback.run_event = around  # type: ignore[method-assign]
        return callback

    dist.initialize_dist("cpu")
    data = torch.randint(0, 128, (STEPS * 4 * dist.get_world_size(), 32))
    loader = torch.utils.data.DataLoader(
        data, batch_size=4, sampler=dist.get_sampler(data, shuffle=False, drop_last=True)
    )
    folder = out.parent / f"ledger-{dist.get_world_size()}.jsonl"
    monitor = CostMonitor(usd_per_device_hour=1.0, watts_per_device=100, ledger=str(folder))
    guard = BudgetGuard(budget_usd=1e6, deadline="10d")
    trainer = Trainer(
        model=Model(),
        train_dataloader=loader,
        max_duration=f"{STEPS}ba",
        callbacks=[timed(callback) for callback in (monitor, guard, DivergenceGuard(), Stopper(saves=True))],
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    if dist.get_global_rank() == 0:
        steps = {name: [s for step, s in by_step.items() if step > WARM_UP] for name, by_step in seconds.items()}
        out.write_text(json.dumps({name: statistics.median(of) for name, of in steps.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file; default: the screen")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in PROCESSES:
            result = Path(folder) / f"{processes}.json"
            launcher = [
                str(Path(sys.executable).with_name("composer")),
                "-n",
                str(processes),
                "-m",
                "bench.cost_monitor",
            ]
            quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            subprocess.run([*launcher, "--measure", str(result)], check=True, env=quiet, capture_output=True)
            spent = json.loads(result.read_text())
            together = sum(spent.values())
            microseconds = [f"{spent[name] * 1e6:,.0f}" for name in COLUMNS]
            rows.append(f"| {processes} | {' | '.join(microseconds)} | {together / SHARE * 1e3:,.0f} |")
    lines = [
        "# The meter, the guards and the stopper: time in a step",
        "",
        "Command: `python -m bench.cost_monitor --out bench/results/cost_monitor.md`",
        "",
        machine_and_versions("torch", "mosaicml"),
        "",
        f"| processes | {', µs | '.join(COLUMNS.values())}, µs | at most {SHARE:.1%} of steps from, ms |",
        "|---" * (len(COLUMNS) + 2) + "|",
        *rows,
    ]
    write_result(lines, arguments.out)


if __name__ == "__main__":
    main()
