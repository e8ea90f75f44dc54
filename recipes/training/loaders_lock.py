"""Of runs that start in the same moment on one machine, one at a time builds its loaders."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("recipes")

_WAIT_S = 120  # for others, whose data may lie far away
SHARED_MEMORY = Path("/dev/shm")


def loaders_lock(file: Path | None = None) -> FileLock:
    """Held by who builds loaders on this machine."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return FileLock(file or folder / "recipes-loaders.lock", timeout=_WAIT_S, mode=0o666)


@contextlib.contextmanager
def holding_loaders_lock(file: Path | None = None) -> Iterator[None]:
    """Let no other run of this machine build its loaders in this block; all ranks enter it.

    Streaming looks for a free name in shared memory and takes it a moment later, so that of runs that look in the same
    moment all but one fail ("File exists"). The lock lies in that memory: a container may have one to itself. Where a
    lock cannot be had, loaders are built without.
    """
    from composer.utils import dist  # only here: seconds

    with contextlib.ExitStack() as held:
        if dist.get_local_rank() == 0:
            try:
                held.enter_context(loaders_lock(file))
            except Timeout:
                log.warning("another run of this machine has built its loaders for %d s; not waiting longer", _WAIT_S)
            except OSError as error:  # another user's file, or a file system without locks
                log.debug("loaders are built without a lock: %s", error)
        dist.barrier()  # the other ranks look for the name only now
        yield
