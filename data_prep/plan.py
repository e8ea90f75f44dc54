"""What a run of `data_prep.pretrain` will do, and how that stands to what is already in its output folder."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import PrepError
from data_prep.holdout import checked_fraction
from data_prep.manifest import MANIFEST, Manifest, differences, load_manifest, shard_problems
from data_prep.sources import Source
from data_prep.tokenising import Separators, TokenizerFacts

MAIN, HELD_OUT = "main", "held-out"  # roles of a split


@dataclass(frozen=True)
class Plan:
    """All that decides the output."""

    sources: list[Source]
    tokenizer: TokenizerFacts
    separators: Separators
    dtype: str
    options: dict[str, Any]

    @property
    def splits(self) -> list[str]:
        """In the order of publishing: the main split last."""
        return [name for name in (self.options["holdout_split"], self.options["split"]) if name]


def checked_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the output, by the names they have on the command line.

    Raises:
        PrepError: a value out of range.
    """
    if arguments.seq_len < 1:
        raise PrepError(f"--seq-len {arguments.seq_len}: expected the tokens a sequence, 1 or more (2048).")
    if not 0 <= arguments.max_rejected <= 1:
        raise PrepError(f"--max-rejected {arguments.max_rejected:g}: expected a share of the rows, 0 to 1 (0.01).")
    for option, name in (("--split", arguments.split), ("--holdout-split", arguments.holdout_split)):
        if not name or name.startswith(".") or Path(name).name != name:
            raise PrepError(f"{option} {name!r}: expected the name of a folder, such as train.")
    if arguments.split == arguments.holdout_split and arguments.holdout:
        raise PrepError(f"--split and --holdout-split are both {arguments.split!r}; expected two names.")
    as_given = "text_key seq_len split eos_text allow_special add_special_tokens on_error max_rejected"
    return {
        **{name: getattr(arguments, name) for name in as_given.split()},
        "bos_text": arguments.bos_text or "",
        "holdout": checked_fraction(arguments.holdout),
        "holdout_split": arguments.holdout_split if arguments.holdout else None,
    }


def is_finished(out: Path, plan: Plan) -> bool:
    """Whether all that this plan would write is there.

    Raises:
        PrepError: something else is there, or a part of it is missing or cut short.
    """
    main = read_manifest(out / plan.options["split"])
    if main is None:
        return False
    if main.role != MAIN:
        raise PrepError(f"{out / main.split} is held out from {main.main_split!r}; give another --split or --out.")
    changes = differences(main, plan.options, plan.tokenizer.sha256, asdict(plan.separators), plan.sources)
    if changes:
        what = "\n  ".join([f"{out / main.split} was made otherwise:", *changes])
        raise PrepError(f"{what}\nGive another --out, or --overwrite to replace it.")
    problems = []
    for name in main.splits:
        manifest = read_manifest(out / name)
        problems += shard_problems(out / name, manifest) if manifest else [f"{out / name / MANIFEST}: missing"]
    if problems:
        raise PrepError("\n  ".join([f"{out} is damaged; --overwrite makes it anew:", *problems]))
    return True


def what_to_replace(out: Path, plan: Plan, overwrite: bool) -> list[str]:
    """The splits in `out` that publishing takes away, a main one last.

    Without `overwrite` those are what a run that was killed while it published has left: held-out parts whose main
    split is not there.

    Raises:
        PrepError: a folder of that name holds something else.
    """
    replaced: list[str] = []
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")):
        wanted = folder.name in plan.splits
        manifest = read_manifest(folder) if wanted else _readable_manifest(folder)
        main = manifest.main_split if manifest else ""
        if main == plan.options["split"] and (overwrite or not (out / main).exists()):
            replaced.append(folder.name)
        elif wanted and (manifest or any(folder.iterdir())):
            owner = f"belongs to {out / main}" if main else f"was not written by this command (no {MANIFEST} in it)"
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
