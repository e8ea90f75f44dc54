"""What a run of `data_prep.pretrain` will do, and how that stands to what is already in its output folder."""

import argparse
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.curation import WORDS, FilterSettings, filter_file, load_predicate
from data_prep.errors import PrepError, refuse_not_utf8
from data_prep.holdout import checked_fraction
from data_prep.long_rows import LONG_ROW
from data_prep.manifest import (
    MANIFEST,
    ROLE_MAIN,
    MadeFrom,
    Manifest,
    SourceRecord,
    TokenizerRecord,
    differences,
    load_manifest,
    shard_problems,
)
from data_prep.options import HOLD_MB
from data_prep.sources import Source, sha256_of_file
from data_prep.tokenising import Separators

_OWN_NAMES = ("parts", "records", "unfinished", "orders", "plan.json", "rejected.jsonl")  # in the staging folder
_LEAST_HELD_MB = math.ceil(LONG_ROW / 1e6)  # shorter rows are in memory anyway
_MOST_NAME_BYTES = 200  # of a split: file systems take 255, and some of its files' names begin with it


@dataclass(frozen=True)
class Plan:
    """All that decides the output."""

    sources: list[Source]
    tokenizer: TokenizerRecord
    separators: Separators
    dtype: str
    options: dict[str, Any]

    @property
    def splits(self) -> list[str]:
        """In the order of publishing: the main split last."""
        return [name for name in (self.options["holdout_split"], self.options["split"]) if name]

    @property
    def made_from(self) -> MadeFrom:
        """What another run is compared by."""
        records = [SourceRecord(**asdict(source), sha256="") for source in self.sources]
        return MadeFrom(self.options, self.tokenizer.sha256, asdict(self.separators), records)

    @property
    def filters(self) -> FilterSettings:
        """The options about documents to leave out."""
        given = self.options
        return FilterSettings(
            min_chars=given.get("min_chars", 0),
            max_chars=given.get("max_chars", 0),
            predicate=given.get("filter", ""),
            predicate_sha256=given.get("filter_sha256", ""),
            dedup=given.get("dedup", False),
            near_dedup="near_dedup" in given,
        )


def checked_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the output, by the names they have on the command line.

    Raises:
        PrepError: a value out of range.
    """
    if arguments.seq_len < 1:
        raise PrepError(f"--seq-len {arguments.seq_len}: expected the tokens a sequence, 1 or more (2048).")
    checked_common_options(arguments)
    for name in ("text_key", "eos_text", "bos_text", "filter"):
        refuse_not_utf8(f"--{name.replace('_', '-')} ", getattr(arguments, name))
    if not _LEAST_HELD_MB <= arguments.hold_mb <= 1e6:
        raise PrepError(
            f"--hold-mb {arguments.hold_mb:g}: expected megabytes of a row, from {_LEAST_HELD_MB} ({HOLD_MB})."
        )
    if not 0.001 <= arguments.part_mb <= 1e9:
        raise PrepError(f"--part-mb {arguments.part_mb:g}: expected megabytes of input, 0.001 or more (33.6).")
    if arguments.usd_per_hour is not None and not 0 <= arguments.usd_per_hour < float("inf"):
        raise PrepError(f"--usd-per-hour {arguments.usd_per_hour:g}: expected dollars, 0 or more.")
    if arguments.min_chars < 0 or arguments.max_chars < 0 or 0 < arguments.max_chars < arguments.min_chars:
        limits = f"--min-chars {arguments.min_chars} --max-chars {arguments.max_chars}"
        raise PrepError(f"{limits}: expected 0 or more characters, and the first not above the second.")
    if arguments.near_dedup is not None and not 0 < arguments.near_dedup <= 1:
        raise PrepError(f"--near-dedup {arguments.near_dedup:g}: expected a similarity, above 0 and up to 1 (0.8).")
    as_given = "text_key seq_len split eos_text allow_special add_special_tokens on_error max_rejected"
    return {
        **{name: getattr(arguments, name) for name in as_given.split()},
        "bos_text": arguments.bos_text or "",
        "holdout": checked_fraction(arguments.holdout),
        "holdout_split": arguments.holdout_split if arguments.holdout else None,
        **_curation(arguments),
        **held_option(arguments),
    }


def held_option(arguments: argparse.Namespace, default: float = HOLD_MB) -> dict[str, Any]:
    """--hold-mb, where it is not what it is for manifests of --on-error skip that do not name it."""
    matters = arguments.on_error == "skip" and arguments.hold_mb != default
    return {"hold_mb": arguments.hold_mb} if matters else {}


def checked_common_options(arguments: argparse.Namespace) -> None:
    """Raises PrepError for names that are none, of splits also for those of the staging folder, and for bad shares."""
    if not 0 <= arguments.max_rejected <= 1:
        raise PrepError(f"--max-rejected {arguments.max_rejected:g}: expected a share of the rows, 0 to 1 (0.01).")
    refuse_not_utf8("--out ", arguments.out)
    for option, name in (("--split", arguments.split), ("--holdout-split", arguments.holdout_split)):
        if not name or name.startswith(".") or Path(name).name != name:
            raise PrepError(f"{option} {name!r}: expected the name of a folder, such as train.")
        if name in _OWN_NAMES:
            raise PrepError(f"{option} {name!r}: expected another name; this one is used while the splits are made.")
        refuse_not_utf8(f"{option} ", name)
        if len(os.fsencode(name)) > _MOST_NAME_BYTES:
            raise PrepError(f"{option} {name[:20]}...: expected a name of at most {_MOST_NAME_BYTES} bytes.")
    if arguments.split == arguments.holdout_split and arguments.holdout:
        raise PrepError(f"--split and --holdout-split are both {arguments.split!r}; expected two names.")


def _curation(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those of the options about documents that were given: manifests of runs without them do not name them."""
    given: dict[str, Any] = {
        "min_chars": arguments.min_chars or None,
        "max_chars": arguments.max_chars or None,
        "filter": arguments.filter,
        "dedup": arguments.dedup or None,
        "near_dedup": arguments.near_dedup,
        "near_dedup_words": None if arguments.near_dedup is None else WORDS,  # earlier versions had others
        "shuffle_seed": arguments.shuffle_seed,
    }
    if arguments.near_dedup is not None and importlib.util.find_spec("rensa") is None:
        raise PrepError("--near-dedup: the package rensa is not installed (pip install rensa).")
    if arguments.filter:
        if not Path(filter_file(arguments.filter)).is_file():
            raise PrepError(f"--filter {arguments.filter}: expected FILE.py:FUNCTION, with a file that is there.")
        given["filter_sha256"] = sha256_of_file(filter_file(arguments.filter))
        load_predicate(arguments.filter, given["filter_sha256"])
    return {name: value for name, value in given.items() if value is not None}


def is_finished(out: Path, plan: Plan) -> bool:
    """`finished`, of a folder on this machine."""
    return finished(
        str(out), plan, lambda name: read_manifest(out / name), lambda it: shard_problems(out / it.split, it)
    )


def finished(
    where: str,
    plan: Plan,
    manifest_of: Callable[[str], Manifest | None],
    problems_of: Callable[[Manifest], list[str]],
) -> bool:
    """Whether all that this plan would write is there, by the manifests of its splits and the sizes of their files.

    Raises:
        PrepError: something else is there, or a part of it is missing or cut short.
    """
    main = manifest_of(plan.options["split"])
    if main is None:
        return False
    if main.role != ROLE_MAIN:
        raise PrepError(f"{where}/{main.split} is held out from {main.main_split!r}; give another --split or --out.")
    changes = differences(MadeFrom.of(main), plan.made_from)
    if changes:
        what = "\n  ".join([f"{where}/{main.split} was made otherwise:", *changes])
        raise PrepError(f"{what}\nGive another --out, or --overwrite to replace it.")
    problems = []
    for name in main.splits:
        manifest = manifest_of(name)
        if manifest is None or not manifest.stands_at(name, main.main_split):
            problems.append(f"{where}/{name}/{MANIFEST}: {'missing' if manifest is None else 'of another run'}")
        else:
            problems += problems_of(manifest)
    if problems:
        raise PrepError("\n  ".join([f"{where} is damaged; --overwrite makes it anew:", *problems]))
    return True


def what_to_replace(out: Path, plan: Plan, overwrite: bool) -> list[str]:
    """The splits in `out` that publishing takes away, a main one last.

    Without `overwrite` those are what a run that was killed while it published has left: held-out parts whose main
    split is not there. A split that was moved or copied to another name stays.

    Raises:
        PrepError: a folder of that name holds something else.
    """
    for path in (out / name for name in plan.splits):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise PrepError(f"{path} is no folder of a split; move it away, or give another --out or another name.")
    replaced: list[str] = []
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")):
        wanted = folder.name in plan.splits
        manifest = read_manifest(folder) if wanted else _readable_manifest(folder)
        main = plan.options["split"]
        if manifest and manifest.stands_at(folder.name, main) and (overwrite or not (out / main).exists()):
            replaced.append(folder.name)
        elif wanted and (manifest or any(folder.iterdir())):
            owner = f"was not written by this command (no {MANIFEST} in it)"
            if manifest:
                owner = f"belongs to {out / manifest.main_split}, as its split {manifest.split!r}"
            raise PrepError(f"{folder} {owner}; move it away, or give another --out or another name.")
        elif wanted:
            replaced.append(folder.name)  # an empty folder
    return sorted(replaced, key=lambda name: name == plan.options["split"])


def read_manifest(folder: Path) -> Manifest | None:
    """`load_manifest`, with a manifest that cannot be read as the user's error."""
    try:
        return load_manifest(folder)
    except ValueError as error:
        raise PrepError(f"{error} Move {folder} away, or give another --out.") from error


def _readable_manifest(folder: Path) -> Manifest | None:
    try:
        return load_manifest(folder)
    except ValueError:
        return None  # somebody else's file, in a folder that this run does not touch
