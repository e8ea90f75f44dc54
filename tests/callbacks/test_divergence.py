"""A run whose loss or weights are not finite any more: it ends, and what is not finite is never saved."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from torch.utils.data import DataLoader

from recipes.callbacks.divergence import DivergenceGuard
from recipes.callbacks.stop import EXIT_DIVERGED, BrokenOff
from recipes.callbacks.stopping import Stopper
from tests.callbacks.test_cost import BATCH, Tiny, Tokens
from tests.conftest import Command, recipe_arguments


class Diverges(Tiny):
    """Its loss is NaN at some steps, which no gradient follows from."""

    def __init__(self, steps: set[int]) -> None:
        super().__init__()
        self.steps, self.step = steps, 0

    def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.step += 1
        loss = super().loss(outputs, batch)
        return loss.detach() * math.nan + 0 * loss.nan_to_num() if self.step in self.steps else loss


class Breaks(Callback):
    """Makes a weight infinite after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def batch_end(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.step:
            next(state.model.parameters()).data[0, 0] = math.inf


def trainer(folder: Path, model: Tiny, *callbacks: Callback, steps: int = 10, **more: Any) -> tuple[Trainer, Stopper]:
    stopper = Stopper(saves=True)
    made = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=DataLoader(Tokens(), batch_size=BATCH),
        callbacks=[*callbacks, DivergenceGuard(), stopper],
        max_duration=f"{steps}ba",
        save_folder=str(folder),
        save_filename="ba{batch}.pt",
        save_latest_filename=None,
        device="cpu",
        progress_bar=False,
        **{"save_interval": "2ba", **more},
    )
    return made, stopper


def saved(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("ba*.pt")}


def test_it_ends_after_some_steps_and_the_last_good_checkpoint_is_kept(tmp_path: Path) -> None:
    made, stopper = trainer(tmp_path, Diverges(set(range(6, 11))), save_num_checkpoints_to_keep=2)
    made.fit()
    assert int(made.state.timestamp.batch) == 8
    assert saved(tmp_path) == {"ba2", "ba4"}
    assert stopper.stopped is not None
    assert stopper.stopped.words == "the loss is not finite since step 6: the run has diverged"
    assert stopper.stopped.exit_code == EXIT_DIVERGED
    assert "is ba4.pt: the same command goes on from it" in stopper.stopped.ahead("ba4.pt")
    assert "no checkpoint was saved" in stopper.stopped.ahead(None)


def test_a_single_step_ends_nothing_and_is_saved_a_step_later(tmp_path: Path) -> None:
    made, stopper = trainer(tmp_path, Diverges({4, 8}))
    made.fit()
    assert stopper.stopped is None
    assert saved(tmp_path) == {"ba2", "ba5", "ba6", "ba9", "ba10"}


@pytest.mark.parametrize(
    ("model", "callbacks", "words"),
    [
        (Diverges({10}), [], "the loss is not finite since step 10"),
        (Tiny(), [Breaks(10)], "weights are not finite after step 10"),
    ],
)
def test_the_last_step_is_none_to_end_with(model: Tiny, callbacks: list[Callback], words: str, tmp_path: Path) -> None:
    made, stopper = trainer(tmp_path, model, *callbacks)
    made.fit()
    assert stopper.stopped is not None
    assert stopper.stopped.words.startswith(words)
    assert saved(tmp_path) == {"ba2", "ba4", "ba6", "ba8"}


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_was(tmp_path: Path) -> None:
    made, stopper = trainer(tmp_path, Tiny(), Breaks(4))
    made.fit()
    assert stopper.stopped is not None
    assert saved(tmp_path) == {"ba2"}


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(tmp_path: Path) -> None:
    made, _ = trainer(tmp_path, Tiny(), steps=4)
    made.fit()
    path = tmp_path / "ba4.pt"
    content = torch.load(path, weights_only=False)
    next(iter(content["state"]["model"].values()))[0, 0] = math.nan
    torch.save(content, path)
    made, stopper = trainer(tmp_path, Tiny(), load_path=str(path))
    made.fit()
    assert int(made.state.timestamp.batch) == 4
    assert stopper.stopped is not None
    assert stopper.stopped.words == "the weights that it begins with are not finite: the run has diverged"
    assert "without ba4.pt the same command goes on from the one before it" in stopper.stopped.ahead("ba4.pt")
    assert saved(tmp_path) == {"ba2", "ba4"}

    model = Tiny()
    next(model.parameters()).data[0, 0] = math.nan
    made, stopper = trainer(tmp_path / "anew", model)
    with pytest.raises(BrokenOff, match="begins with"):
        made.fit()


def test_all_ranks_of_a_run_end_together(shards: Path, tmp_path: Path, run_command: Command) -> None:
    arguments = recipe_arguments(shards, tmp_path, "optimizer.lr=1e6", "save_num_checkpoints_to_keep=2")
    result = run_command("launch", "-n", "2", "train.py", *arguments)
    assert result.returncode == EXIT_DIVERGED, result.stderr
    assert "Traceback" not in result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("stopped early: ")]
    since = int(said.split("not finite since step ")[1].split(":")[0])
    assert f"not finite since step {since}" in result.stdout.split("training loss")[1]
    (kept,) = (tmp_path / "checkpoints").glob("ep*-ba*")
    assert int(kept.name.split("-ba")[1].split("-")[0]) == 3 < since
    assert f"the last checkpoint before that is {kept}" in said
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["train_loss_not_finite_since"] == since
    assert content["steps"] == since + 2
