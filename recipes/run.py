"""A run that is built: trained to its end, and what it came to."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

from composer import Trainer
from composer.utils import dist, format_name_with_dist_and_time, parse_uri
from llmfoundry.callbacks import HuggingFaceCheckpointer

from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.readings import is_done
from recipes.callbacks.stop import BrokenOff, Stop
from recipes.callbacks.stopping import Stopper
from recipes.config.load import Recipe
from recipes.cost.run_length import read_duration
from recipes.models.compiling import uncompiled
from recipes.reports.runs import metrics_by_step, validation_scores
from recipes.run_files import METRICS
from recipes.training.processes import as_first_rank_sees


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready to start: its trainer, its meter, and where it keeps its files."""

    recipe: Recipe
    name: str
    folder: Path
    trainer: Trainer
    cost: CostMonitor
    stopper: Stopper
    resumed_from: str  # what was found to go on from, in words

    def train(self, eval_first: bool) -> None:
        """Train to the end of the recipe; nothing is left to do where the checkpoint was the last one."""
        state = self.trainer.state
        if self.recipe.get("only_hf_checkpoint"):
            (saver,) = [c for c in state.callbacks if isinstance(c, HuggingFaceCheckpointer)]
            self._export(saver)
            return
        if self.recipe.get("only_composer_checkpoint"):
            self.trainer.save_checkpoint_to_save_folder()
            return
        was_done = is_done(state)
        try:
            if was_done:
                self._make_up_for_what_is_missing()
                return
            if eval_first and state.timestamp.batch == 0 and state.evaluators:
                with uncompiled(state.model):  # other sizes first would make training's graphs for all
                    self.trainer.eval()
            self.trainer.fit()
        except BrokenOff:
            if not was_done:
                self.stopper.save_broken_off(self.trainer)

    def _make_up_for_what_is_missing(self) -> None:
        """What a stop or a failure behind the last checkpoint kept from being done: evaluation, an export."""
        from eval.in_loop import TaskEvaluation

        state = self.trainer.state
        step = int(state.timestamp.batch)
        lines = metrics_by_step(self.folder / METRICS) if dist.get_global_rank() == 0 else {}
        is_missing = as_first_rank_sees(not validation_scores(lines.get(step, {})))
        interval = read_duration(self.recipe.get("eval_interval", 1))
        if is_missing and state.evaluators and not (interval and interval.amount == 0):
            self.trainer.eval()
        for callback in state.callbacks:
            if isinstance(callback, TaskEvaluation):
                callback.make_up_for(state, self.trainer.logger)
            if isinstance(callback, HuggingFaceCheckpointer) and not _has_exported(callback, state):
                self._export(callback)

    def _export(self, saver: HuggingFaceCheckpointer) -> None:
        saver._save_checkpoint(
            self.trainer.state, self.trainer.logger, upload_to_save_folder=True, register_to_mlflow=True
        )

    @property
    def has_begun(self) -> bool:
        """Whether there are steps behind it: it goes on from a checkpoint."""
        return int(self.trainer.state.timestamp.batch) > 0

    @property
    def stopped(self) -> Stop | None:
        """Why a signal, the budget guard or divergence ended the run early; None where none did."""
        return self.stopper.stopped

    @property
    def goes_on(self) -> str:
        """How the run that was stopped goes on, in words."""
        assert self.stopper.stopped is not None
        return self.stopper.stopped.ahead(self.end()[1])

    def exit_code(self) -> int:
        """Of a run that was stopped: for SIGTERM that of having been ended, where no step is saved. All ranks ask.

        Of a checkpoint that is one file only the first rank knows; others may be the first of their machines.
        """
        assert self.stopper.stopped is not None
        code, is_saved = self.stopper.stopped.exit_code, as_first_rank_sees(self.end()[1] is not None)
        return 128 + signal.SIGTERM if code == os.EX_TEMPFAIL and not is_saved else code

    def ended_early(self, before: str | None) -> str | None:
        """What ended the run before its time for good, in words: a callback of the recipe's, not the stopper.

        before: what an earlier call said, which still holds where this one has trained nothing, as for an export.
        """
        if self.cost.ended_early is None:
            return before
        return "by one of its callbacks" if self.cost.ended_early and not self.stopped else None

    @staticmethod
    def wait_for_all() -> None:
        """Until every rank is here: one that exits with a code makes the launcher end the others."""
        dist.barrier()

    def end(self) -> tuple[int, str | None]:
        """Steps taken, and the path or URI of the last checkpoint (None without a save folder)."""
        return int(self.trainer.state.timestamp.batch), last_checkpoint(self.trainer)


def last_checkpoint(trainer: Any) -> str | None:
    """The path or URI of the last checkpoint of a run; None where none was saved."""
    saver, state = trainer._checkpoint_saver, trainer.state
    if getattr(saver, "remote_uploader", None) is not None:
        return _last_remote(saver, state)
    last = trainer.saved_checkpoints[-1] if trainer.saved_checkpoints else None
    if last is not None and last.endswith(".distcp"):
        last = os.path.dirname(last)  # a sharded checkpoint is a folder
    return last


def _last_remote(saver: Any, state: Any) -> str | None:
    """Its URI: what the saver lists is a file of a temporary folder, which the upload and the end of the run remove.

    That of an earlier start is known as well, by what the checkpoint that the run went on from says of itself.
    """
    saved = list(saver.all_saved_checkpoints_to_timestamp.values())
    if not saved:
        return None
    name = saver.remote_file_name.filename  # with the folders below the bucket
    if state.fsdp_sharded_state_dict_enabled:
        name = os.path.join(os.path.dirname(name), state.fsdp_config.sharded_ckpt_prefix_dir)
    folder = saver.remote_uploader.remote_folder
    store = folder.removesuffix(parse_uri(folder)[2]).rstrip("/")  # s3://BUCKET
    return f"{store}/{format_name_with_dist_and_time(name, state.run_name, saved[-1]).lstrip('/')}"


def _has_exported(saver: HuggingFaceCheckpointer, state: Any) -> bool:
    """Whether a Hugging Face folder of this step is there; one that is kept elsewhere is taken to be."""
    if saver.remote_ud is not None:
        return True
    name = os.path.join(saver.save_dir_format_str, saver.huggingface_folder_name_fstr)
    folder = format_name_with_dist_and_time(name, state.run_name, state.timestamp)
    return as_first_rank_sees(os.path.isfile(os.path.join(folder, "config.json")))
