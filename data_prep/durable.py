"""Files that are on the disk when a call returns, and files that are replaced as a whole. Standard library only."""

import os
from pathlib import Path

from data_prep.errors import PrepError


def flush(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part.

    Raises:
        PrepError: where something else than a file is there, such as a folder or /dev/null.
    """
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():
        raise PrepError(f"{path} is no file and cannot become one: give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_durably(partial, content if isinstance(content, bytes) else content.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
