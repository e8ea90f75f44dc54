"""What a run says of itself at its end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composer.core import Time, Timestamp
from composer.utils.checkpoint import PartialFilePath

from recipes import screen
from recipes.callbacks.stop import Stop
from recipes.callbacks.stopping import Stopper
from recipes.config.load import Recipe
from recipes.run import Run, last_checkpoint


@pytest.mark.parametrize(
    ("folder", "prefix", "expected"),
    [
        ("s3://bucket/some/{run_name}", None, "s3://bucket/some/mine/ep1-ba40-rank0.pt"),
        ("s3://bucket/some/{run_name}/", "ep{epoch}-ba{batch}", "s3://bucket/some/mine/ep1-ba40"),
        ("gs://bucket", None, "gs://bucket/ep1-ba40-rank0.pt"),
        ("dbfs:/Volumes/a/b", None, "dbfs:/Volumes/a/b/ep1-ba40-rank0.pt"),
    ],
)
def test_a_checkpoint_in_an_object_store_has_its_uri(folder: str, prefix: str | None, expected: str) -> None:
    path = folder.partition("bucket")[2].strip("/") if "bucket" in folder else folder.removeprefix("dbfs:/")
    saver = SimpleNamespace(
        remote_uploader=SimpleNamespace(remote_folder=folder),
        remote_file_name=PartialFilePath(
            str(Path(path) / "ep{epoch}-ba{batch}-rank{rank}.pt")
        ),  # as the trainer has it
        all_saved_checkpoints_to_timestamp={"/tmp/a": Timestamp(batch=20), "/tmp/b": Timestamp(epoch=1, batch=40)},
    )
    state = SimpleNamespace(
        run_name="mine",
        fsdp_sharded_state_dict_enabled=prefix is not None,
        fsdp_config=SimpleNamespace(sharded_ckpt_prefix_dir=prefix),
    )
    trainer: Any = SimpleNamespace(_checkpoint_saver=saver, state=state, saved_checkpoints=["/tmp/b"])
    assert last_checkpoint(trainer) == expected
    saver.all_saved_checkpoints_to_timestamp = {}
    assert last_checkpoint(trainer) is None


def test_a_checkpoint_on_this_machine_has_its_path() -> None:
    trainer = SimpleNamespace(_checkpoint_saver=SimpleNamespace(remote_uploader=None), state=None, saved_checkpoints=[])
    assert last_checkpoint(trainer) is None
    trainer.saved_checkpoints += ["a/ep0-ba1-rank0.pt", "a/ep0-ba2/__0_0.distcp"]
    assert last_checkpoint(trainer) == "a/ep0-ba2"


@pytest.mark.parametrize(("is_saved", "code"), [(True, os.EX_TEMPFAIL), (False, 128 + signal.SIGTERM)])
def test_a_rank_that_knows_of_no_checkpoint_ends_as_the_first_does(
    is_saved: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is one file is the first rank's; the first of another machine exits with a code as well."""
    monkeypatch.setattr("recipes.run.as_first_rank_sees", lambda mine: is_saved or mine)
    stopper = Stopper(saves=True)
    stopper.stopped = Stop("SIGTERM came", os.EX_TEMPFAIL, "the same command")
    state = SimpleNamespace(timestamp=SimpleNamespace(batch=5))
    trainer: Any = SimpleNamespace(saved_checkpoints=[], _checkpoint_saver=None, state=state)
    nothing: Any = None
    run = Run(nothing, "name", Path("runs/name"), trainer, nothing, stopper, "the first batch")
    assert run.exit_code() == code


@pytest.mark.parametrize(
    ("metric", "evaluates"), [("PairLoss", False), ("books/LanguageCrossEntropy", False), ("", True)]
)
def test_what_was_evaluated_at_the_last_step_is_not_again(
    metric: str, evaluates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.run.as_first_rank_sees", lambda mine: mine)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5, f"metrics/eval/{metric}": 0.3}) + "\n")
    calls: list[None] = []
    state = SimpleNamespace(
        timestamp=Timestamp(epoch=1, batch=5, batch_in_epoch=2),
        max_duration=Time.from_epoch(2),
        dataloader_len=2,
        evaluators=["eval"],
        callbacks=[],
    )
    trainer: Any = SimpleNamespace(state=state, eval=lambda: calls.append(None))
    nothing: Any = None
    recipe = Recipe(Path("x.yaml"), {}, {})
    Run(recipe, "name", tmp_path, trainer, nothing, Stopper(saves=True), "").train(eval_first=False)
    assert bool(calls) == evaluates


def test_ctrl_c_is_that_where_what_it_breaks_off_fails_in_ending(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # torch's writer of a checkpoint, when it is closed

    monkeypatch.setattr("recipes.screen.signal.signal", lambda *_: None)
    monkeypatch.setattr("recipes.screen.end_with_launcher", lambda: None)
    assert screen.exit_status(main, "goes on") == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on\n"

    def fails(_: list[str]) -> int:
        raise RuntimeError("by itself")

    with pytest.raises(RuntimeError, match="by itself"):
        screen.exit_status(fails, "goes on")


def test_a_reader_who_has_had_enough_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recipes.screen.signal.signal", lambda *_: None)
    monkeypatch.setattr("recipes.screen.end_with_launcher", lambda: None)
    read, write = os.pipe()
    os.close(read)

    def prints(_: list[str]) -> int:
        print("a recipe")
        return 0

    def fails(_: list[str]) -> int:
        raise BrokenPipeError("of a process of the run's own")

    with os.fdopen(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", pipe)
        assert screen.exit_status(prints, "goes on") == 1
    with pytest.raises(BrokenPipeError, match="own"):
        screen.exit_status(fails, "goes on")
    assert capsys.readouterr().err == ""
