"""Going on from a checkpoint: what is done before the trainer looks for one, in every process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.utils import dist, format_name_with_dist

from recipes.config.load import Recipe
from recipes.reports.runs import run_name
from recipes.training.checkpoints import Found, latest_filename, resumes, set_latest, to_go_on_from, write_whole_files


def resume_point(recipe: Recipe) -> Found | None:
    """Look for the checkpoint to go on from, and make a local save folder safe to write to."""
    write_whole_files()
    found = to_go_on_from(recipe)
    if found is None:
        return None
    folder = Path(str(recipe["save_folder"]).replace("{run_name}", run_name(recipe)))
    dist.barrier()  # every rank has looked before rank 0 clears away what is broken
    if dist.get_global_rank() == 0 and folder.is_dir():
        set_latest(folder, format_name_with_dist(latest_filename(recipe), run_name(recipe)), found)
    dist.barrier()
    return found


def how_it_starts(settings: Mapping[str, Any]) -> str:
    """In words, what a run that found nothing local does."""
    if not settings["save_folder"]:
        return "no save_folder: this run keeps no checkpoint and cannot be resumed"
    if resumes(settings):
        return f"autoresume: looking for the latest checkpoint in {settings['save_folder']}"
    return "autoresume is off"
