"""Run a command; print, as the last word, the most memory (MB) that it and its children held at one moment together.

    python -m bench.peak_memory python -m data_prep.pretrain ...

On Linux the sum is of proportional set sizes, so that pages shared between processes count once; elsewhere of resident
set sizes.
"""

import contextlib
import subprocess
import sys
import time

import psutil

INTERVAL_S = 0.1


def held_mb(root: psutil.Process) -> float:
    """Memory of a process and all below it, in MB."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            info = process.memory_full_info()
            total += getattr(info, "pss", None) or info.rss
    return total / 1e6


def main() -> None:
    process = subprocess.Popen(sys.argv[1:])
    peak = 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, held_mb(psutil.Process(process.pid)))
        time.sleep(INTERVAL_S)
    print(f"{peak:.1f}")
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
