"""What a run writes before it publishes: `OUT/.preparing`, and whether a later run can go on from it."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.durable import write_durably
from data_prep.errors import Interrupted, PrepError
from data_prep.manifest import MadeFrom, differences
from data_prep.part_files import load_part
from data_prep.publishing import LOCK, STAGING, exclusive
from data_prep.tasks import ORDERS, PARTS, RECORDS, UNFINISHED, source_digests

PLAN = "plan.json"


def remove_leftovers(out: Path, made_from: MadeFrom) -> None:
    """Remove what the run of this plan leaves when it is killed after it had published everything.

    Raises:
        PrepError: it is not left over: another run holds the folder.
    """
    if not (out / STAGING).exists() and not (out / LOCK).exists():
        return
    with exclusive(out):
        old = _read_plan(out / STAGING)
        if not (old and any(_finished_parts(out / STAGING)) and _changes(out / STAGING, old[0], made_from)):
            shutil.rmtree(out / STAGING, ignore_errors=True)


def refuse_unfinished(out: Path, overwrite: bool) -> None:
    """Raises PrepError where a run that was cut off left parts it can go on from, and `overwrite` was not given."""
    if not overwrite and _read_plan(out / STAGING) and any(_finished_parts(out / STAGING)):
        what = f"{out} holds the finished parts of a run of data_prep.pretrain that was cut off"
        raise PrepError(f"{what}; run that again to go on, give another --out, or --overwrite to throw them away.")


@contextlib.contextmanager
def resumable_staging(out: Path, made_from: MadeFrom, part_bytes: int, overwrite: bool) -> Iterator[Path]:
    """The staging folder, with the parts that an earlier run of the same plan finished.

    It is gone at the end, unless the run was cut off (by a signal, a full disk, a source that is not there, a worker
    that died, too many bad rows) after a part was finished.

    Raises:
        PrepError: an unfinished run of another plan left parts there, and `overwrite` was not given.
    """
    staging = out / STAGING
    if _left_by_same_plan(staging, made_from, part_bytes, overwrite):
        replaced = staging.glob(".*")  # what a run that was killed while it published had taken away
        for leftover in (staging / UNFINISHED, staging / ORDERS, *(staging / PARTS).glob(".*"), *replaced):
            shutil.rmtree(leftover, ignore_errors=True)
    elif staging.exists():
        shutil.rmtree(staging)
    for folder in (staging, staging / PARTS, staging / RECORDS, staging / UNFINISHED, staging / ORDERS):
        folder.mkdir(exist_ok=True)
    if not (staging / PLAN).exists():
        plan = {"made_from": made_from.to_json(), "part_bytes": part_bytes}
        write_durably(staging / PLAN, json.dumps(plan, ensure_ascii=False).encode())
    try:
        yield staging
    except BaseException as error:
        passing = not isinstance(error, PrepError) or isinstance(error, Interrupted)
        if not passing or not any(_finished_parts(staging)):
            shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _left_by_same_plan(staging: Path, made_from: MadeFrom, part_bytes: int, overwrite: bool) -> bool:
    plan = _read_plan(staging)
    if plan is None:
        return False
    old, old_bytes = plan
    changes = _changes(staging, old, made_from)
    if old_bytes != part_bytes:
        changes.append(f"--part-mb: {old_bytes / 1e6:g} -> {part_bytes / 1e6:g}")
    if changes and not overwrite and any(_finished_parts(staging)):
        what = "\n  ".join([f"{staging.parent} holds the finished parts of a run that was cut off:", *changes])
        raise PrepError(f"{what}\nGive the same again to go on, another --out, or --overwrite to throw them away.")
    return not changes


def _changes(staging: Path, old: MadeFrom, new: MadeFrom) -> list[str]:
    """`differences` that matter to the finished parts; the bound on bad rows is asked for when all are finished."""
    old = replace(old, options={**old.options, "max_rejected": new.options.get("max_rejected")})
    if not differences(old, new):
        return []
    facts = (load_part(staging / PARTS, int(path.name)) for path in _finished_parts(staging))
    known = source_digests(staging, (part for part in facts if part), len(old.sources))
    sources = [replace(source, sha256=known.get(number, "")) for number, source in enumerate(old.sources)]
    return differences(replace(old, sources=sources), new)


def _read_plan(staging: Path) -> tuple[MadeFrom, int] | None:
    """What a run was to make, and the bytes of its parts; None: nothing there, or it had not written its plan yet."""
    try:
        plan = json.loads((staging / PLAN).read_bytes())
        return MadeFrom.from_json(plan["made_from"]), plan["part_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finished_parts(staging: Path) -> Iterator[Path]:
    return (staging / PARTS).glob("[0-9]*")
