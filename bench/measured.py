"""A command run to its end, and what it took: CPU seconds, wall seconds, memory of all its processes."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_LOOK_S = 0.25  # between two looks at a program's memory, which take time of the program's too
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


@contextlib.contextmanager
def watched(root: int) -> Iterator[list[float]]:
    """What a process and all below it hold, in MB, from now until the end of the block, looked at by a thread."""
    held, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            held.append(held_mb(root))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()


def measured(
    words: list[str], env: dict[str, str] | None = None, pause: Callable[[], None] | None = None, every_s: float = 0
) -> Run:
    """Run a program to its end, looking at its memory on the way; fails loudly where it does.

    Args:
        pause: what is done every `every_s` seconds, while the program and all below it are stopped: its time is not
            the program's.
    """
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    if environment.pop("PYTHONDONTWRITEBYTECODE", None):  # nobody compiles all modules at every start
        environment["PYTHONPYCACHEPREFIX"] = tempfile.gettempdir() + "/bench-bytecode"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        ended = os.pidfd_open(process.pid)
        paused_s = 0.0
        try:
            with watched(process.pid) as held:
                while not select.select([ended], [], [], every_s if pause else None)[0]:
                    os.killpg(process.pid, signal.SIGSTOP)
                    paused_s -= time.perf_counter()
                    pause()  # type: ignore[misc]
                    paused_s += time.perf_counter()
                    os.killpg(process.pid, signal.SIGCONT)
                wall_s = time.perf_counter() - start - paused_s
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # it does not hear of a Ctrl-C by itself
            raise
        finally:
            _, status, usage = os.wait4(process.pid, 0)
            os.close(ended)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} failed:\n{text[-3000:]}")
    return Run(usage.ru_utime + usage.ru_stime, wall_s, max(held), text)


def figures(run: Run) -> dict[str, float]:
    return {"cpu_s": run.cpu_s, "wall_s": run.wall_s, "peak_mb": run.peak_mb}
