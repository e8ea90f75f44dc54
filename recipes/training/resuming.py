"""Which checkpoint a run goes on from, as its settings say: LLM Foundry's keys with the defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.utils import dist, format_name_with_dist

from recipes.config.file_names import is_remote
from recipes.training.checkpoints import (
    FILENAME,
    SHARDED,
    Found,
    find_checkpoints,
    resumes,
    set_latest,
    write_whole_files,
)


def _is_sharded(settings: Mapping[str, Any]) -> bool:
    fsdp = settings["fsdp_config"] or {}
    return dist.get_world_size() > 1 and fsdp.get("state_dict_type", "full") == "sharded"


def save_filename(settings: Mapping[str, Any]) -> str:
    """The recipe's name for checkpoint files, else Composer's."""
    return settings["save_filename"] or FILENAME


def latest_filename(settings: Mapping[str, Any]) -> str:
    """The name of the link to the newest checkpoint."""
    default = "latest-sharded-rank{rank}" if _is_sharded(settings) else "latest-rank{rank}.pt"
    return settings["save_latest_filename"] or default


def resume_point(settings: Mapping[str, Any], name: str) -> Found | None:
    """Look for the checkpoint to go on from, and make a local save folder safe to write to."""
    write_whole_files()
    save_folder = settings["save_folder"]
    if not save_folder or is_remote(save_folder) or not resumes(settings):
        return None
    folder = Path(save_folder.replace("{run_name}", name))
    sharded = _is_sharded(settings)
    filename = SHARDED if sharded else save_filename(settings)
    found = find_checkpoints(folder, filename, sharded)
    dist.barrier()  # every rank has looked before rank 0 clears away what is broken
    if dist.get_global_rank() == 0 and folder.is_dir():
        set_latest(folder, format_name_with_dist(latest_filename(settings), name), found)
    dist.barrier()
    return found


def how_it_starts(settings: Mapping[str, Any]) -> str:
    """In words, what a run that found nothing local does."""
    if not settings["save_folder"]:
        return "no save_folder: this run keeps no checkpoint and cannot be resumed"
    if resumes(settings):
        return f"autoresume: looking for the latest checkpoint in {settings['save_folder']}"
    return "autoresume is off"
