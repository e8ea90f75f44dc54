"""A command run to its end, and what it took: CPU seconds, wall seconds, memory of all its processes."""

import contextlib
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Run:
    """One run of a program: CPU seconds, wall seconds, and the most memory (MB) of all its processes together."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    output: str


def held_mb(root: int) -> float:
    """Memory of a process and all below it, in MB: pages that they share count once (Linux), else resident ones."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                info = one.memory_full_info()
                total += getattr(info, "pss", None) or info.rss
    return total / 1e6


def measured(words: list[str], env: dict[str, str] | None = None) -> Run:
    """Run a program to its end, looking at its memory on the way; fails loudly where it does."""
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):  # nobody compiles all modules at every start
        environment["PYTHONPYCACHEPREFIX"] = tempfile.gettempdir() + "/bench-bytecode"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peak_mb, status, usage = 0.0, 0, None
        while usage is None:
            peak_mb = max(peak_mb, held_mb(process.pid))
            found, status, used = os.wait4(process.pid, os.WNOHANG)
            usage = used if found else None
            # looking takes time of the program's too: less often in a long run
            time.sleep(0 if found else min(max((time.perf_counter() - start) / 100, 0.1), 1))
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} failed:\n{text[-3000:]}")
    return Run(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, peak_mb, text)


def figures(run: Run) -> dict[str, float]:
    return {"cpu_s": run.cpu_s, "wall_s": run.wall_s, "peak_mb": run.peak_mb}
