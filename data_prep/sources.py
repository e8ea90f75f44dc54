"""Which files are the input, and what identifies them on the next run."""

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import PrepError, refuse_not_utf8
from data_prep.storage import is_remote, list_files, open_file, remote_errors, state_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
_MAGIC = "*?["


@dataclass(frozen=True)
class Source:
    """One input file as it was found: its size in bytes and its time of change in ns since 1970."""

    path: str
    bytes: int
    mtime_ns: int

    @property
    def can_be_cut(self) -> bool:
        """Whether reading can begin in the middle."""
        return self.path.endswith((".jsonl", ".parquet"))

    @property
    def is_read_in_order(self) -> bool:
        """Whether whoever reads all of it passes its bytes in order, and so can hash them."""
        return not self.path.endswith(".parquet")


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files that files, folders (their own files, sorted) and globs (sorted; ** goes deeper) stand for.

    Raises:
        PrepError: an input that is missing, matches nothing, is of another format, or is given twice.
    """
    paths: list[str] = []
    for given in inputs:
        paths.extend(_expand_url(given) if is_remote(given) else _expand(os.path.expanduser(given)))
    seen: dict[str, str] = {}
    for path in paths:
        here = path.removeprefix("file://")
        real = here if is_remote(here) else _identity(here)
        if real in seen:
            raise PrepError(f"{path} is given twice (as {seen[real]} too): its documents would be counted twice.")
        seen[real] = path
    return [_inspect(path) for path in paths]


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_source(source: Source) -> str:
    """SHA-256 of a source's bytes as stored."""
    digest = hashlib.sha256()
    with remote_errors(source.path), open_file(source.path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _expand(given: str) -> list[str]:
    expected = "/".join(SUFFIXES)
    if os.path.isdir(given):
        found = sorted(entry.path for entry in os.scandir(given) if _is_visible(entry.name))
        if not found:
            raise PrepError(
                f"{given}: a folder with no {expected} file in it (for those deeper: '{given}/**/*.jsonl')."
            )
        _refuse_mixture(given, found)
        return found
    if os.path.exists(given):
        if not given.endswith(SUFFIXES):
            raise PrepError(f"{given}: expected a {expected} file.")
        return [given]
    if any(character in given for character in _MAGIC):
        found = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
        matching = [path for path in found if path.endswith(SUFFIXES)]
        if not matching:
            other = f"; {len(found)} files match but have other names" if found else ""
            raise PrepError(f"{given}: matches no {expected} file{other}.")
        return matching
    raise PrepError(f"{given}: no such file or folder.")


def _expand_url(given: str) -> list[str]:
    found = list_files(given)
    matching = [url for url in found if _is_visible(url.rpartition("/")[2])]
    if not matching:
        other = f"; {len(found)} files there have other names" if found else ""
        raise PrepError(f"{given}: no {'/'.join(SUFFIXES)} file there{other}.")
    _refuse_mixture(given, matching)
    return matching


def _refuse_mixture(given: str, paths: list[str]) -> None:
    """Text files beside others are as likely notes as documents: let the user say.

    Raises:
        PrepError: there are both.
    """
    texts = [path for path in paths if path.endswith(".txt")]
    if 0 < len(texts) < len(paths):
        what = f"{given}: {len(texts)} .txt files beside {len(paths) - len(texts)} others"
        raise PrepError(f"{what}; say which are documents, as with '{given.rstrip('/')}/*.jsonl'.")


def _is_visible(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _identity(path: str) -> str:
    """The same for all names of a file, hard links among them."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return f"{status.st_dev}:{status.st_ino}"


def _inspect(path: str) -> Source:
    refuse_not_utf8("", path)
    if is_remote(path):
        state = state_of(path)
        return Source(path=path, bytes=state.bytes, mtime_ns=state.mtime_ns)
    if not os.path.isfile(path):
        raise PrepError(f"{path}: expected a regular file, whose size and content can be compared on the next run.")
    if not os.access(path, os.R_OK):
        raise PrepError(f"{path}: cannot be read; check its permissions.")
    status = os.stat(path)
    return Source(path=path, bytes=status.st_size, mtime_ns=status.st_mtime_ns)
