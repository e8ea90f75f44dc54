"""Whether a sharded checkpoint has all its parts, read from its `.metadata` without torch and without running code.

torch.distributed.checkpoint writes `.metadata` last: a pickle that says for each tensor which file of the folder has it
and where it ends there. What it is made of is of no interest here, so all its classes are read as one.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

METADATA = ".metadata"


class _Anything:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Anything


def lacks(folder: Path) -> str | None:
    """What is missing or cut off in a folder that a sharded checkpoint is in; None where it is all there.

    Raises OSError where the folder cannot be read.
    """
    if not (folder / METADATA).is_file():
        return METADATA
    needed: dict[str, int] = defaultdict(int)
    try:
        with (folder / METADATA).open("rb") as file:
            stored = _Reader(file).load().storage_data
        for about in stored.values():
            needed[about.relative_path] = max(needed[about.relative_path], about.offset + about.length)
    except Exception:  # whatever a damaged pickle raises; or another version of torch writes something else
        return None if _can_torch_read(folder) else METADATA
    for name, size in needed.items():
        part = folder / name
        if not part.is_file() or part.stat().st_size < size:
            return name
    return None


def _can_torch_read(folder: Path) -> bool:
    from torch.distributed.checkpoint import FileSystemReader

    try:
        FileSystemReader(str(folder)).read_metadata()
    except Exception:
        return False
    return True
