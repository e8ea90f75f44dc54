"""One run at a time in an output folder, and nothing half-written under a final name.

A run holds a lock on `OUT/.lock`, writes below `OUT/.preparing` and renames whole folders at the end. The main split is
renamed last, so that where `OUT/train` exists, all that was published with it does too. A killed run leaves only
`.preparing`, and a lock that the operating system has released: the next run removes both.
"""

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from data_prep.durable import flush
from data_prep.errors import PrepError, describe_os_error

LOCK = ".lock"
STAGING = ".preparing"


@contextlib.contextmanager
def exclusive(folder: Path, lock_name: str = LOCK) -> Iterator[None]:
    """Hold `folder`, created if need be, for one run; what this run left empty is removed again.

    Raises:
        PrepError: another run holds it, or it is a file.
        OSError: it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise PrepError(f"{folder}: expected a folder to write to, and it is a file.")
    created = _make_folders(folder)
    lock = folder / lock_name
    try:
        handle = _locked(lock)
    except BaseException:
        _remove_empty(created)
        raise
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is still held: see _locked
        os.close(handle)
        _remove_empty(created)


@contextlib.contextmanager
def fresh_staging(folder: Path, name: str = STAGING) -> Iterator[Path]:
    """An empty place to write in, after removing what a killed run left; gone at the end, whatever happens."""
    staging = folder / name
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(folder: Path, staging: Path, splits: list[str], replaced: list[str]) -> None:
    """Rename `staging/<split>` to `folder/<split>`, the last of `splits` last, taking `replaced` away first.

    What is replaced goes the other way round: the main split first. So at no moment does a main split stand beside a
    held-out one of another run.
    """
    with _uninterrupted():
        for name in reversed(replaced):
            if (folder / name).exists():
                os.rename(folder / name, staging / f".old-{name}")
        _sync_folder(folder)
        for name in splits:
            _sync_folder(staging / name)
            os.rename(staging / name, folder / name)
            _sync_folder(folder)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM are ignored for these few milliseconds."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_folders(folder: Path) -> list[Path]:
    """Create `folder` and its parents; returns those that did not exist, outermost first."""
    missing = []
    for level in (folder, *folder.parents):
        if level.exists():
            break
        missing.append(level)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PrepError(f"--out {folder} cannot be created: {describe_os_error(error)}") from error
    return missing[::-1]


def _remove_empty(created: list[Path]) -> None:
    for folder in reversed(created):
        with contextlib.suppress(OSError):  # not empty: that is, used
            folder.rmdir()


def _locked(lock: Path) -> int:
    """An open, locked handle of the lock file.

    The holder unlinks the file before it lets go, so whoever opened it in between holds the lock of a file that is no
    longer there: then it is opened again.
    """
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(lock) and os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise PrepError(
                f"{lock.parent}: another run is writing there. Wait until it ends, or give another --out."
            ) from None
        except FileNotFoundError:
            pass  # unlinked between the two questions
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network file systems have no such call for folders
        flush(folder)
