"""Check prepared shards against the SHA-256 digests in their manifests.

    python -m data_prep.verify shards/web shards/code

reads every byte of every split below each folder (or of the one split that it is) and names what is missing, cut short
or corrupt.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import PrepError, exit_status
from data_prep.manifest import MANIFEST, Manifest, digest_problems, load_manifest


def find_splits(folder: Path) -> dict[Path, Manifest]:
    """The prepared splits that `folder` is or holds.

    Raises:
        PrepError: there is none, one that was published with another is not there, or a manifest cannot be read.
    """
    if not folder.is_dir():
        raise PrepError(f"{folder}: no such folder.")
    found: dict[Path, Manifest] = {}
    for split in (
        folder,
        *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
    ):
        try:
            manifest = load_manifest(split)
        except ValueError as error:
            raise PrepError(str(error)) from error
        if manifest is not None:
            found[split] = manifest
    if not found:
        raise PrepError(
            f"{folder}: no {MANIFEST} in it or in a folder below it; expected what data_prep.pretrain wrote."
        )
    return found


def run(folders: Sequence[Path]) -> None:
    """Check all splits; print a line for each, and every problem.

    Raises:
        PrepError: something is wrong.
    """
    start = time.perf_counter()
    problems: list[str] = []
    splits = {split: manifest for folder in folders for split, manifest in find_splits(folder).items()}
    for split, manifest in splits.items():
        found = digest_problems(split, manifest)
        parent = Path(os.path.abspath(split)).parent  # of "." too
        for other in manifest.splits:
            if not (parent / other / MANIFEST).is_file():
                found.append(f"missing split {parent / other}, which was written together with {split}")
        size = sum(record.bytes for record in (*manifest.shards, *manifest.files))
        state = "wrong" if found else "as written"
        print(
            f"{split}: {len(manifest.shards)} shards, {len(manifest.files)} other files, {size / 1e6:,.1f} MB: {state}"
        )
        problems += found
    if problems:
        raise PrepError("\n  ".join([f"{len(problems)} wrong:", *problems, "Prepare them again with --overwrite."]))
    print(f"{len(splits)} splits are whole; {time.perf_counter() - start:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="what --out was, or one split in it")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run([Path(os.path.expanduser(folder)) for folder in arguments.folders]))


if __name__ == "__main__":
    sys.exit(main())
