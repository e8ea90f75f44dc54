"""Files of one JSON object a line, to which a run appends: a kill tears the last line at most."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    """Add a line in one write, and after a line that was torn on one of its own. durable: on the disk when it returns.

    Raises:
        OSError: the file cannot be written to; its folder must be there.
    """
    line = (json.dumps(record) + "\n").encode()
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def read(path: Path) -> Iterator[dict[str, Any] | None]:
    """Line by line, of a run of weeks hundreds of thousands; None for one that cannot be read. No file, no lines."""
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with file:
        for line in file:
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None
