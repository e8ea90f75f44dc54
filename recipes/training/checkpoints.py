"""Checkpoints that are whole or not there, and finding the one to go on from.

Composer writes a checkpoint straight to its final name and replaces the `latest` link by removing it first. A process
killed at either moment leaves a truncated file, or no link and a run that starts over. Here a file gets its name only
when it is complete, and the link is set right before every start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_prep.durable import flush
from recipes.config.file_names import is_remote
from recipes.config.load import Recipe
from recipes.cost.setup import shards
from recipes.ranks import world_size
from recipes.reports.runs import run_name
from recipes.training.full_disk import full_disk
from recipes.training.sharded_folder import METADATA, lacks

FILENAME = "ep{epoch}-ba{batch}-rank{rank}.pt"  # of a full checkpoint, where the recipe names none
SHARDED = "ep{epoch}-ba{batch}"
PARTIAL = ".partial-"  # prefix of a checkpoint that is still being written
DAMAGED = "damaged-"  # prefix of one that has lost a part


@dataclasses.dataclass(frozen=True)
class Found:
    """What a save folder holds: the newest whole checkpoint, older whole ones, and what is no checkpoint at all."""

    newest: Path | None
    whole: tuple[Path, ...]  # oldest first
    broken: tuple[Path, ...]

    def __str__(self) -> str:
        ignored = f"; ignored {', '.join(p.name for p in self.broken)}: not whole" if self.broken else ""
        if self.newest is None:
            return f"autoresume: no checkpoint yet, starting from the first batch{ignored}"
        return f"autoresume: going on from {self.newest}{ignored}"


def find_checkpoints(folder: Path, filename: str, sharded: bool) -> Found:
    """Look through a local save folder.

    filename: the recipe's `save_filename`, or for sharded checkpoints the name of their folders; Composer's
    placeholders such as `{batch}` stand for numbers. A file is whole when its zip directory, which torch writes last,
    can be read; a sharded checkpoint is whole when `.metadata`, written last, and all that it names are there.
    """
    pattern = _pattern(filename)
    level = "*/" * filename.count("/")
    candidates = [p for p in folder.glob(f"{level}*") if pattern.fullmatch(_name(p, filename))]
    candidates = [p for p in candidates if not p.is_symlink() and p.is_dir() == sharded]
    candidates.sort(key=lambda p: _age(pattern, _name(p, filename), p))
    whole = [p for p in candidates if _is_whole(p, sharded)]
    broken = [p for p in candidates if p not in whole]
    if folder.is_dir():
        broken += sorted(folder.glob(f"{level}{PARTIAL}*"))
    return Found(whole[-1] if whole else None, tuple(whole), tuple(broken))


def to_go_on_from(recipe: Recipe) -> Found | None:
    """What a run of a recipe would find in its save folder; None where it starts anew, or the folder is elsewhere."""
    save_folder = recipe.get("save_folder")
    if not save_folder or is_remote(save_folder) or not resumes(recipe.values):
        return None
    return in_save_folder(recipe, writes_sharded(recipe))


def in_save_folder(recipe: Recipe, sharded: bool) -> Found:
    """The checkpoints of a kind in a recipe's save folder, which is on this machine."""
    folder = Path(str(recipe["save_folder"]).replace("{run_name}", run_name(recipe)))
    return find_checkpoints(folder, SHARDED if sharded else save_filename(recipe), sharded)


def of_the_other_kind(recipe: Recipe) -> Path | None:
    """A checkpoint that a run would not go on from, as it is sharded and the run's are not, or the other way round.

    None where the run finds one of its own kind that is as new.
    """
    own, sharded = to_go_on_from(recipe), writes_sharded(recipe)
    if own is None:
        return None
    other = in_save_folder(recipe, not sharded).newest
    if other is None or own.newest is None:
        return other
    return other if (step_of(recipe, other) or 0) > (step_of(recipe, own.newest) or 0) else None


def newest_in(folder: Path, recipe: Recipe) -> Path | None:
    """The newest whole checkpoint in a folder, full or sharded, of a run of the recipe."""
    kinds = (find_checkpoints(folder, save_filename(recipe), False), find_checkpoints(folder, SHARDED, True))
    newest = [found.newest for found in kinds if found.newest]
    return max(newest, key=lambda path: step_of(recipe, path) or 0, default=None)


def resumes(settings: Mapping[str, Any]) -> bool:
    """Whether settings, of LLM Foundry's keys, let a run go on from its checkpoints.

    Autoresume is on where whole training states are kept and not written over, unless the recipe says otherwise.
    """
    if not settings.get("save_folder") or settings.get("save_weights_only"):
        return False
    if settings.get("only_hf_checkpoint") and settings.get("load_path"):  # which it writes in another form
        return False
    said = settings.get("autoresume")
    return not settings.get("save_overwrite") if said is None else bool(said)


def starts_anew(settings: Mapping[str, Any]) -> bool:
    """Whether settings say, and do not leave it to the defaults, that what an earlier start left is nothing to it."""
    said = settings.get("autoresume")
    return bool(settings.get("save_overwrite")) if said is None else not said


def as_composer_lists(path: Path) -> str:
    """A checkpoint as Composer's saver lists it: of a sharded one a file in its folder, which it then removes."""
    return str(path / "__0_0.distcp" if path.is_dir() else path)


def writes_sharded(recipe: Recipe) -> bool:
    """Whether a run of a recipe saves a checkpoint as a folder, to which each process writes its part."""
    fsdp = recipe.get("fsdp_config")
    return world_size() > 1 and shards(fsdp) and fsdp.get("state_dict_type") == "sharded"


def keep_rotating(saver: Any) -> None:
    """Let Composer's saver pass over checkpoints that somebody has removed; it would end the run."""
    rotate = saver._rotate_checkpoints

    def rotate_those_there(sharding_enabled: bool = False) -> None:
        there = (Path(path).parent if sharding_enabled else Path(path) for path in saver.saved_checkpoints)
        saver.saved_checkpoints = [
            path for path, place in zip(saver.saved_checkpoints, there, strict=True) if place.exists()
        ]
        rotate(sharding_enabled)

    saver._rotate_checkpoints = rotate_those_there


def step_of(recipe: Recipe, checkpoint: Path) -> int | None:
    """The step that a checkpoint of a recipe was saved after, by its name; None where the name has no step."""
    filename = SHARDED if checkpoint.is_dir() else save_filename(recipe)
    match = _pattern(filename).fullmatch(_name(checkpoint, filename))
    step = match.groupdict().get("batch") if match else None
    return None if step is None else int(step)


def save_filename(recipe: Recipe) -> str:
    """The recipe's name for checkpoint files, else Composer's."""
    return str(recipe.get("save_filename", FILENAME))


def latest_filename(recipe: Recipe) -> str:
    """The name of the link to the newest checkpoint."""
    default = "latest-sharded-rank{rank}" if writes_sharded(recipe) else "latest-rank{rank}.pt"
    return str(recipe.get("save_latest_filename", default))


def first_rank_path(path: str, run_name: str = "") -> str:
    """A path with what Composer's placeholders in it stand for on the first process, such as {rank}."""
    filled = dict.fromkeys(("rank", "local_rank", "node_rank"), "0") | {"run_name": run_name}
    filled |= {key: os.environ.get(key.upper(), "1") for key in ("world_size", "local_world_size")}
    for key, value in filled.items():
        path = path.replace(f"{{{key}}}", value)
    return path


def is_of(judged: Any, checkpoint: Path) -> bool:
    """Whether a path that an evaluation wrote down is of the checkpoint; a moved run has its last parts alone."""
    path = Path(first_rank_path(str(judged)))
    if path.exists() and checkpoint.exists():
        return path.resolve() == checkpoint.resolve()
    return path.parts[-2:] == checkpoint.parts[-2:]


def set_latest(folder: Path, latest: str, found: Found) -> None:
    """Make the link that Composer resumes from name the newest whole checkpoint, and clear away what is not whole.

    A broken file must go: Composer refuses to start in a folder with checkpoints newer than the one it resumes from. A
    folder that was whole once, as its `.metadata` says, gets another name: its parts may be found again.
    """
    for path in found.broken:
        aside = path.with_name(f"{DAMAGED}{path.name}")
        if (path / METADATA).is_file() and not path.is_symlink() and not aside.exists():
            path.rename(aside)
        elif path.is_dir() and not path.is_symlink():  # a link that was never put in its place leads to what is whole
            shutil.rmtree(path)
        else:
            path.unlink()
    link = folder / latest
    if found.newest is None:
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f"{PARTIAL}{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(found.newest, link.parent))
    temporary.replace(link)


def write_whole_files() -> None:
    """Make Composer write a checkpoint file under a temporary name and rename it when it is complete and on disk."""
    from composer.utils import checkpoint

    if not hasattr(checkpoint._write_checkpoint_file, "__wrapped__"):
        checkpoint._write_checkpoint_file = _then_rename(checkpoint._write_checkpoint_file)  # type: ignore[assignment]


def _then_rename(write: Callable[[dict[str, Any], str], None]) -> Callable[[dict[str, Any], str], None]:
    @functools.wraps(write)
    def write_then_rename(state_dict: dict[str, Any], filename: str) -> None:
        folder, name = os.path.split(filename)
        partial = os.path.join(folder, PARTIAL + name)
        try:
            write(state_dict, partial)
            flush(partial)
            os.replace(partial, filename)
            flush(folder or ".")
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            if full := full_disk(error):
                raise OSError(full.errno, full.strerror, filename) from error
            raise

    return write_then_rename


def _pattern(filename: str) -> re.Pattern[str]:
    """Regular expression for the names that a Composer file name format makes (rank 0's, for per-rank names)."""
    parts = re.split(r"(\{\w+\})", filename)
    expressions = []
    for part in parts:
        if part == "{rank}":
            expressions.append("0")
        elif part.startswith("{") and part.endswith("}"):
            name = part[1:-1]
            if name == "run_name" or name.endswith("wct"):
                expressions.append(r"[^/]+?" if name == "run_name" else r"[\d.]+")
                continue
            expressions.append(rf"(?P<{name}>\d+)" if f"(?P<{name}>" not in "".join(expressions) else r"\d+")
        else:
            expressions.append(re.escape(part))
    return re.compile("".join(expressions))


def _name(path: Path, filename: str) -> str:
    """The end of a path that has as many parts as a file name format: `save_filename` may name folders."""
    return "/".join(path.parts[-1 - filename.count("/") :])


def _age(pattern: re.Pattern[str], name: str, path: Path) -> tuple[int, int, int, float]:
    match = pattern.fullmatch(name)
    numbers = match.groupdict() if match else {}
    batch, token, epoch = (int(numbers.get(name) or 0) for name in ("batch", "token", "epoch"))
    return (batch, token, epoch, path.stat().st_mtime)


def _is_whole(path: Path, sharded: bool) -> bool:
    if sharded:
        with contextlib.suppress(OSError):
            return lacks(path) is None
        return False
    # a compressed or tar checkpoint has no zip directory; its name says so, and it was renamed when complete
    if path.suffix != ".pt":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
