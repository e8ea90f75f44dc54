"""The budget guard: where it stops, what it saves, that it goes on later, and that several ranks stop together."""

from __future__ import annotations

import json
import logging
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Event
from composer.loggers import InMemoryLogger
from composer.metrics import LanguageCrossEntropy
from torch.utils.data import DataLoader

from recipes.callbacks.budget import BudgetGuard, usd_per_hundredth_loss
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.stop import BrokenOff
from recipes.callbacks.stopping import Stopper
from recipes.config.keys import RecipeError
from recipes.config.load import load
from recipes.planning.budget import deadline_unix_s, refusal
from tests.callbacks.test_cost import BATCH, SEQ_LEN, Tiny, Tokens
from tests.conftest import Command, losses, recipe_arguments

SEVEN_B = "yamls/pretrain/mpt-7b.yaml"
STEP_S = 0.03
A_DOLLAR_A_SECOND = 3600


class Slow(Tiny):
    """A step takes at least STEP_S; evaluation batches as well."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(STEP_S)
        return super().forward(batch)


def guarded(folder: Path, guard: BudgetGuard, **kwargs: Any) -> tuple[Trainer, CostMonitor, Stopper]:
    torch.manual_seed(1)
    model = Slow()
    monitor = CostMonitor(usd_per_device_hour=A_DOLLAR_A_SECOND, ledger=str(folder / "ledger.jsonl"))
    stopper = Stopper(saves=True)
    trainer = Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=DataLoader(Tokens(), batch_size=BATCH),
        callbacks=[monitor, guard, stopper],
        device="cpu",
        progress_bar=False,
        **{
            "max_duration": "200ba",
            "save_folder": str(folder),
            "save_interval": "100ba",
            "save_filename": "ba{batch}.pt",
            "run_name": "guarded",
            "autoresume": True,
            **kwargs,
        },
    )
    return trainer, monitor, stopper


def test_stops_within_a_step_saves_and_goes_on_when_there_is_more(tmp_path: Path, caplog: Any) -> None:
    logger = InMemoryLogger()
    trainer, monitor, stopper = guarded(tmp_path, BudgetGuard(budget_usd=2), loggers=[logger])
    with caplog.at_level(logging.WARNING, logger="recipes"):
        trainer.fit()
    step = int(trainer.state.timestamp.batch)
    trainer.close()
    assert stopper.stopped is not None
    assert (stopper.stopped.words, stopper.stopped.exit_code) == ("the budget of $2 is spent", 3)
    assert 0 < step < 200
    assert (tmp_path / f"ba{step}.pt").is_file()
    cost = monitor.summary()
    assert cost.usd is not None
    assert 2 <= cost.usd <= 2 + STEP_S + cost.checkpoint_s + 0.5  # a step, a checkpoint, and slack for a busy machine
    warned = [r.getMessage() for r in caplog.records if "budget_guard" in r.getMessage()]
    assert [w.partition(" %")[0] for w in warned] == ["budget_guard: 50", "budget_guard: 80", "budget_guard: 95"]
    shares = [value for _, value in logger.data["budget/share_used"]]
    assert shares == sorted(shares)
    assert shares[-1] >= 1 > shares[-2]  # the very step at which the limit was passed

    trainer, monitor, _ = guarded(tmp_path, BudgetGuard(budget_usd=3))
    trainer.fit()
    trainer.close()
    assert step < int(trainer.state.timestamp.batch) < 200
    cost = monitor.summary()
    assert cost.starts == 2
    assert cost.usd is not None
    assert 3 <= cost.usd <= 3.6
    assert cost.tokens == int(trainer.state.timestamp.batch) * BATCH * SEQ_LEN  # nothing was done twice
    assert cost.lost_s == 0


def test_an_evaluation_is_broken_off_and_the_step_before_it_saved(tmp_path: Path) -> None:
    guard = BudgetGuard(budget_usd=2)
    loader = DataLoader(Tokens(), batch_size=1)  # 64 batches of 0.03 s: the limit comes in the middle of it
    trainer, monitor, stopper = guarded(tmp_path, guard, eval_dataloader=loader, eval_interval="5ba")
    with pytest.raises(BrokenOff):
        trainer.fit()
    stopper.save_broken_off(trainer)
    trainer.close()
    step = int(trainer.state.timestamp.batch)
    assert step % 5 == 0
    assert (tmp_path / f"ba{step}.pt").is_file()
    cost = monitor.summary()
    assert cost.usd is not None
    assert cost.usd < 2 + STEP_S + cost.checkpoint_s + 0.5
    again, _, _ = guarded(tmp_path, BudgetGuard(budget_usd=1000), max_duration=f"{step + 2}ba")
    again.fit()
    again.close()
    assert int(again.state.timestamp.batch) == step + 2
    undisturbed, _, _ = guarded(tmp_path / "other", BudgetGuard(budget_usd=1000), max_duration=f"{step + 2}ba")
    undisturbed.fit()
    undisturbed.close()
    for one, other in zip(again.state.model.parameters(), undisturbed.state.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_deadline_stops_even_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = BudgetGuard(deadline="0.05min")  # 3 s
    trainer, monitor, stopper = guarded(tmp_path, guard)
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() - 86_400)
    trainer.fit()
    trainer.close()
    assert stopper.stopped is not None
    assert stopper.stopped.words == "the deadline 0.05min has come"
    assert int(trainer.state.timestamp.batch) < 200
    assert monitor.summary().wall_s < 5


@pytest.mark.parametrize(("is_alone", "usd", "expected"), [(True, 9.1, ""), (False, 8.9, ""), (False, 9.1, "budget")])
def test_several_ranks_decide_when_the_next_step_will_pass_the_limit(is_alone: bool, usd: float, expected: str) -> None:
    guard, stopper = BudgetGuard(budget_usd=10), Stopper(saves=True)
    guard._cost = SimpleNamespace(usd=usd, rate=SimpleNamespace(usd_per_device_hour=A_DOLLAR_A_SECOND))  # type: ignore
    guard.read()
    stopper._guard, stopper._group = guard, None if is_alone else "a group"
    stopper._calls.extend([1.0, 2.0, 3.0, 3.5, 4.5])  # steps of a second, as a rule
    assert stopper._reason() == expected


def test_marginal_value_stops_after_two_dear_evaluations(tmp_path: Path) -> None:
    assert usd_per_hundredth_loss([(0, 3.0)]) is None
    assert usd_per_hundredth_loss([(0, 3.0), (10, 2.9)]) == pytest.approx(1.0)
    assert usd_per_hundredth_loss([(0, 3.0), (10, 3.1)]) == float("inf")
    guard = BudgetGuard(max_usd_per_hundredth_loss=5)
    trainer, _, stopper = guarded(tmp_path, guard)
    state = trainer.state
    for usd, loss, dear in ((1, 3.0, 0), (2, 2.9, 0), (12, 2.89, 1), (22, 2.6, 0), (32, 2.59, 1), (42, 2.58, 2)):
        monkey = pytest.MonkeyPatch()
        monkey.setattr(CostMonitor, "usd", usd)
        state.eval_metrics = {label: {"LanguageCrossEntropy": LanguageCrossEntropy()} for label in ("a", "b")}
        state.eval_metrics["tasks"] = {}  # has no loss: the one of the loader before it still stands there
        for label, value in (("a", loss - 0.5), ("b", loss + 0.5), ("tasks", loss + 0.5)):
            monkey.setattr(state, "_dataloader_label", label)
            state.eval_metric_values = {"LanguageCrossEntropy": value}
            guard.run_event(Event.EVAL_END, state, trainer.logger)
        guard.run_event(Event.EVAL_AFTER_ALL, state, trainer.logger)
        monkey.undo()
        assert guard._is_too_dear() == (dear >= 2)
    went_on, without = BudgetGuard(max_usd_per_hundredth_loss=20), BudgetGuard(budget_usd=1e9)
    for other in (went_on, without):  # the same evaluations, judged by the limit of now
        other.load_state_dict(guard.state_dict())
        assert not other._is_too_dear()
    with pytest.raises(BrokenOff):
        trainer.fit()
    assert int(state.timestamp.batch) == 0  # not one step more
    assert stopper.stopped is not None
    assert stopper.stopped.words == "the next 0.01 of validation loss would cost more than $5"
    trainer.close()


@pytest.mark.parametrize("loss", ["LanguageCrossEntropy", "PairLoss"])
def test_the_evaluation_before_the_first_step_is_one_by_itself(loss: str) -> None:
    guard = BudgetGuard(max_usd_per_hundredth_loss=5)
    guard._cost = SimpleNamespace(usd=1.0, rate=SimpleNamespace(usd_per_device_hour=1.0))  # type: ignore[assignment]
    logger: Any = SimpleNamespace(log_metrics=lambda _: None)
    state: Any = SimpleNamespace(dataloader_label="eval", eval_metrics={"eval": {loss: None, "PairAccuracy": None}})
    for value, end in ((6.0, Event.EVAL_STANDALONE_END), (4.0, Event.EVAL_AFTER_ALL)):
        state.eval_metric_values = {loss: value, "PairAccuracy": 0.5}
        guard.run_event(Event.EVAL_END, state, logger)
        guard.run_event(end, state, logger)
    assert guard._evaluations == [(1.0, 6.0), (1.0, 4.0)]


def test_wrong_limits_are_answered_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got no limit"):
        BudgetGuard()
    with pytest.raises(ValueError, match="budget_usd: got -1"):
        BudgetGuard(budget_usd=-1)
    with pytest.raises(ValueError, match="expected a length above 0"):
        BudgetGuard(deadline="soon")
    with pytest.raises(ValueError, match="expected a date"):
        BudgetGuard(deadline="2027-13-01")
    assert deadline_unix_s("10d", 1000.0) == 1000 + 10 * 86_400
    model = Tiny()
    with pytest.raises(ValueError, match="needs the cost_monitor"):
        Trainer(model=model, callbacks=[BudgetGuard(budget_usd=1)], device="cpu")
    with pytest.raises(ValueError, match="cannot count dollars: no rate known"):
        Trainer(model=model, callbacks=[CostMonitor(), BudgetGuard(budget_usd=1)], device="cpu")


GUARD = "callbacks.budget_guard.budget_usd=500"
H100 = ["cost.gpu=h100", "cost.usd_per_device_hour=2.5"]


def test_a_plan_beyond_the_budget_may_not_start(tmp_path: Path) -> None:
    no = refusal(load(SEVEN_B, [GUARD, *H100]), tmp_path, 8)
    assert no is not None
    assert "the plan is $12," in no
    assert "on 8 × h100-sxm, the budget $500" in no
    assert refusal(load(SEVEN_B, [GUARD, *H100, "max_duration=200ba"]), tmp_path, 8) is None
    assert refusal(load(SEVEN_B, [GUARD, *H100, "callbacks.budget_guard.start_over_budget=true"]), tmp_path, 8) is None
    no = refusal(load(SEVEN_B, ["callbacks.budget_guard.deadline=2d", *H100]), tmp_path, 8)
    assert no is not None
    assert "the deadline leaves 2 d 0 h" in no or "the deadline leaves 1 d 23 h" in no
    no = refusal(load(SEVEN_B, [GUARD]), tmp_path, 8)
    assert no is not None
    assert "cannot be kept without a rate" in no
    monitor = ["callbacks.cost_monitor.usd_per_device_hour=2.5", "callbacks.cost_monitor.gpu=h100"]
    assert refusal(load(SEVEN_B, [GUARD, *monitor]), tmp_path, 8) == refusal(load(SEVEN_B, [GUARD, *H100]), tmp_path, 8)
    with pytest.raises(RecipeError, match="got -5"):
        refusal(load(SEVEN_B, ["callbacks.budget_guard.budget_usd=-5", *H100]), tmp_path, 8)
    line = {
        "event": "beat",
        "unix_s": time.time() - 7200,
        "id": "a",
        "devices": 8,
        "seconds": {"train": 100 * 3600},
        "usd_per_device_hour": 2.5,
        "peak_flops_per_s": None,
        "tokens": 0,
        "flops": 0,
    }
    (tmp_path / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    no = refusal(load(SEVEN_B, [GUARD, *H100, "max_duration=200ba"]), tmp_path, 8)
    assert no is not None
    assert no.startswith("$2,000 of $500 is spent already")
    trained = {**line, "seconds": {"startup": 3600, "train": 60}, "tokens": 1}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(trained) + "\n")
    short = [*H100, "max_duration=1ba", "callbacks.budget_guard.budget_usd=30"]
    no = refusal(load(SEVEN_B, short), tmp_path, 8)
    assert no is not None
    assert no.startswith("$20.33 of $30 is spent, and another start takes $20")
    other = {**trained, "id": "b", "gpu": "h200", "usd_per_device_hour": None}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(other) + "\n")
    no = refusal(load(SEVEN_B, short), tmp_path, 8)
    assert no is not None
    assert no.startswith("$20.33 of $30 is spent, and another start")  # at the present rate


@pytest.mark.parametrize(
    ("more", "may_start"),
    [([], True), (["autoresume=false"], False), (["save_overwrite=true"], False), (["max_duration=127800ba"], False)],
)
def test_what_is_to_come_begins_at_the_checkpoint_and_not_at_the_last_line(
    more: list[str], may_start: bool, tmp_path: Path
) -> None:
    words = ["callbacks.budget_guard.budget_usd=7000", f"save_folder={tmp_path}", *H100, *more]
    assert refusal(load(SEVEN_B, words), tmp_path, 8) is not None  # $12,700 for all of it
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 63_000}) + "\n")
    assert refusal(load(SEVEN_B, words), tmp_path, 8) is not None
    with zipfile.ZipFile(tmp_path / "ep0-ba32000-rank0.pt", "w") as checkpoint:
        checkpoint.writestr("x/data.pkl", b"")
    assert (refusal(load(SEVEN_B, words), tmp_path, 8) is None) == may_start


def test_train_refuses_with_its_own_exit_code(run_command: Command) -> None:
    refused = run_command("python", "train.py", SEVEN_B, GUARD, *H100, "dry_run=true", env={"WORLD_SIZE": "8"})
    assert refused.returncode == 3
    assert "budget guard: this run may not start: the plan is $" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_two_processes_stop_together_and_go_on_to_the_same_losses(
    shards: Path, whole: Path, tmp_path: Path, run_command: Command
) -> None:
    dear = "callbacks.budget_guard.max_usd_per_hundredth_loss=0.0000000001"
    more = ["eval_interval=3ba", "save_interval=100ba", "eval_first=false"]
    command = ["launch", "-n", "2", "train.py"]
    stopped = run_command(*command, *recipe_arguments(shards, tmp_path, *more, dear))
    assert stopped.returncode == 3, stopped.stdout + stopped.stderr
    assert stopped.stderr.count("stopped early: the next 0.01 of validation loss would cost more") == 1
    assert (tmp_path / "checkpoints" / "ep0-ba10").is_dir()  # evaluated after 3, 6 and 9 steps; a step later
    assert len(losses(tmp_path)) == 10
    assert (tmp_path / "report.html").is_file()
    went_on = run_command(*command, *recipe_arguments(shards, tmp_path, *more))
    assert went_on.returncode == 0, went_on.stderr
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=2e-5)


def test_the_next_step_and_what_is_left_are_counted_for_all_ranks() -> None:
    guard = BudgetGuard(budget_usd=10)
    guard._cost = SimpleNamespace(usd=9.0, rate=SimpleNamespace(usd_per_device_hour=A_DOLLAR_A_SECOND))  # type: ignore
    guard._ranks = 4
    guard.read()
    assert (guard.reason(0.2), guard.reason(0.3)) == ("", "budget")
    assert guard.seconds_left() == pytest.approx(0.25)
    late = BudgetGuard(deadline="1h")
    late._deadline_unix_s = late._now() + 10
    assert (late.reason(5), late.reason(15)) == ("", "deadline")
