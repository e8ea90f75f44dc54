"""A disk that is full, found in what torch and Composer make of it."""

from __future__ import annotations

import errno


def full_disk(error: BaseException | None) -> OSError | None:
    """The operating system's word that no space is left, where that is behind an error; None where it is not.

    torch's writers fail anew as they are closed, and a sharded checkpoint collects the errors of its processes.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return one
        waiting += [one.__cause__, one.__context__]
        waiting += [inner for inner, _ in getattr(one, "failures", {}).values()]
    return None
