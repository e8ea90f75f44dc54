"""Which files are the input, and what identifies them on the next run."""

import glob
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.errors import PrepError, refuse_not_utf8
from data_prep.storage import is_remote, list_files, open_file, remote_errors, state_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".parquet", ".txt")
NAMED_ONLY = ".json"  # JSON lines too where it is named; else as likely a configuration or a list of files
OWN_FILE = re.compile(r"shard\.\d{5,}\.mds|index\.json|manifest\.json|documents\.jsonl|rejected\.jsonl")  # of a split
_MAGIC = "*?["
_NAMES_TOLD = 4


@dataclass(frozen=True)
class Source:
    """One input file as it was found: its size in bytes and its time of change in ns since 1970."""

    path: str
    bytes: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """What the suffix of its format ends."""
        return name_of(self.path)

    @property
    def can_be_cut(self) -> bool:
        """Whether reading can begin in the middle."""
        return self.name.endswith((".jsonl", NAMED_ONLY, ".parquet"))

    @property
    def is_read_in_order(self) -> bool:
        """Whether whoever reads all of it passes its bytes in order, and so can hash them."""
        return not self.name.endswith(".parquet")


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files that files, folders (their own files, sorted) and globs (sorted; ** goes deeper) stand for.

    Of folders and globs, what these commands have written into a split is left out. A note tells of it, of files with
    other names, and of what is in a folder's subfolders.

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
    for folder in filter(os.path.isdir, map(os.path.expanduser, inputs)):
        _tell_of_subfolders(folder, seen)
    return [_inspect(path) for path in paths]


def name_of(path: str) -> str:
    """A path; of a URL of the web its own path, without what is asked of the server (`?signature=…`)."""
    return urlsplit(path).path if path.startswith(("http://", "https://")) else path


def recorded_path(path: str) -> str:
    """What is written down of a path: of a URL of the web neither its query, perhaps a signature, nor a password."""
    if not path.startswith(("http://", "https://")):
        return path
    url = urlsplit(path)
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, here or behind a URL, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with remote_errors(str(path)), open_file(str(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _expand(given: str) -> list[str]:
    expected = "/".join(SUFFIXES)
    if os.path.isdir(given):
        found = _input_files(given, sorted(entry.path for entry in os.scandir(given) if entry.name[0] != "."))
        if not found:
            raise PrepError(
                f"{given}: a folder with no {expected} file to read in it (for those deeper: '{given}/**/*.jsonl')."
            )
        _refuse_mixture(given, found)
        return found
    if os.path.exists(given):
        if not given.endswith(_suffixes(given)):
            raise PrepError(f"{given}: expected a {expected} file.{_how_to_convert(given)}")
        return [given]
    if any(character in given for character in _MAGIC):
        found = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
        matching = _input_files(given, found)
        if not matching:
            raise PrepError(f"{given}: matches no {expected} file to read.")
        return matching
    raise PrepError(f"{given}: no such file or folder.")


def _how_to_convert(given: str) -> str:
    if not given.endswith(".csv"):
        return ""
    program = (
        "import csv, json, sys; csv.field_size_limit(1 << 30); "
        "[print(json.dumps(row)) for row in csv.DictReader(sys.stdin)]"
    )
    table, lines = shlex.quote(given), shlex.quote(f"{given.removesuffix('.csv')}.jsonl")
    return f" A table becomes one with: python -c '{program}' < {table} > {lines}"


def _expand_url(given: str) -> list[str]:
    found = [url for url in list_files(given) if not os.path.basename(url).startswith(".")]
    matching = _input_files(given, found)
    if not matching:
        raise PrepError(f"{given}: no {'/'.join(SUFFIXES)} file to read there.")
    _refuse_mixture(given, matching)
    return matching


def _refuse_mixture(given: str, paths: list[str]) -> None:
    """Text files beside others are as likely notes as documents: let the user say.

    Raises:
        PrepError: there are both.
    """
    texts = [path for path in paths if name_of(path).endswith(".txt")]
    if 0 < len(texts) < len(paths):
        what = f"{given}: {len(texts)} .txt files beside {len(paths) - len(texts)} others"
        raise PrepError(f"{what}; say which are documents, as with '{given.rstrip('/')}/*.jsonl'.")


def _input_files(given: str, found: list[str]) -> list[str]:
    """Of the files that a folder or glob stands for, those to read."""
    named = [path for path in found if name_of(path).endswith(_suffixes(given))]
    are_named = OWN_FILE.fullmatch(os.path.basename(given))
    outputs = [] if are_named else [path for path in named if _is_output(path)]
    _tell_of(given, "of an earlier run's output, not read (give them by their names)", outputs)
    others = [path for path in found if not name_of(path).endswith(_suffixes(given)) and _may_be_meant(path)]
    _tell_of(given, "of other names, not read", others)
    return sorted({*named} - {*outputs})


def _suffixes(given: str) -> tuple[str, ...]:
    return (*SUFFIXES, NAMED_ONLY) if name_of(given).endswith(NAMED_ONLY) else SUFFIXES


def _is_output(path: str) -> bool:
    """Whether a file is of a split that was made before: its held-out documents, or the rows that were left out."""
    if not OWN_FILE.fullmatch(os.path.basename(path)):
        return False
    try:
        with open_file(os.path.join(os.path.dirname(path), "manifest.json")) as file:
            manifest = json.loads(file.read())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "splits" in manifest


def _may_be_meant(path: str) -> bool:
    name = os.path.basename(path)
    return not name.startswith(".") and not OWN_FILE.fullmatch(name) and (is_remote(path) or os.path.isfile(path))


def _tell_of(given: str, what: str, paths: list[str]) -> None:
    if paths:
        names = [os.path.basename(path) for path in paths[:_NAMES_TOLD]] + ["…"] * (len(paths) > _NAMES_TOLD)
        count = f"{len(paths)} file{'s' * (len(paths) != 1)}"
        print(f"note: {given}: {count} {what}: {', '.join(names)}", file=sys.stderr)


def _tell_of_subfolders(given: str, read: Container[str]) -> None:
    """Say how many files lie in subfolders and are not read; `read`: the identities of those that are."""
    folders = files = 0
    for folder, below, names in os.walk(given):
        below[:] = [name for name in below if not name.startswith(".")]  # where walk goes on
        if folder == given:
            continue
        found = [os.path.join(folder, name) for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
        missed = [path for path in found if not _is_output(path) and _identity(path) not in read]
        folders, files = folders + bool(missed), files + len(missed)
    if files:
        count = f"{files} file{'s' * (files != 1)} in {folders} subfolder{'s' * (folders != 1)}"
        print(f"note: {given}: {count}, not read (they are with '{given.rstrip('/')}/**/*')", file=sys.stderr)


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
