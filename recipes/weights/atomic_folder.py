"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.durable import flush


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `out` at the end; on an error, nothing of it is left.

    What a killed export left is cleared away by the next one. Raises ValueError where another is writing there now, or
    nothing can be written.
    """
    out = out.resolve()  # a link stays one, to the new folder
    folder, old = (out.with_name(f".{out.name}.{what}") for what in ("partial", "old"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder):
            if old.exists() and not out.exists():  # killed between the two renames below
                old.rename(out)
            try:
                for left in folder.iterdir():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield folder
                for path in (*folder.iterdir(), folder):
                    flush(path)
                if out.exists():
                    shutil.rmtree(old, ignore_errors=True)
                    out.rename(old)
                folder.rename(out)
                flush(out.parent)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error}") from None


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other exports out of the folder, for as long as this process lives at most."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"another export is writing in {folder}") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)
