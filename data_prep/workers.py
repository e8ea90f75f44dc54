"""Tasks done in this process or by worker processes on this machine, with the same result; see also cluster.py."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import Interrupted, PrepError
from data_prep.part_task import PartSettings, Report
from data_prep.tasks import Task, Worker

_BYTES_WORTH_A_PROCESS = 64 << 20


class Executor(Protocol):
    """What does tasks."""

    def run(self, tasks: Sequence[Task]) -> None:
        """Do all tasks. They are begun in their order; after the first that fails no other is begun.

        Raises:
            whatever the first task, in their order, raised that failed.
        """
        ...


class InProcess:
    """Does tasks here, one after another."""

    def __init__(self, worker: Worker, report: Report):
        self._worker = worker
        self._report = report

    def run(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            task.run(self._worker, self._report)


class WorkerProcesses:
    """Does tasks in `count` processes, which end with this one, however it ends."""

    def __init__(self, count: int, settings: PartSettings, staging: Path, report: Report):
        self._report = report
        self._context = multiprocessing.get_context("spawn")  # a fork would copy locks and thread pools
        self._processes: dict[Connection, Any] = {}
        with _ignored_interrupts():  # Ctrl-C reaches the whole group; this process tells its workers
            for _ in range(count):
                ours, theirs = self._context.Pipe()
                arguments = (theirs, settings, staging, os.getpid())
                process = self._context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._processes[ours] = process

    def run(self, tasks: Sequence[Task]) -> None:
        waiting = list(enumerate(tasks))[::-1]
        failed: dict[int, BaseException] = {}
        busy: dict[Connection, int] = {}
        idle = list(self._processes)
        while busy or (waiting and not failed):
            while idle and waiting and not failed:
                connection = idle.pop()
                number, task = waiting.pop()
                busy[connection] = number
                try:
                    connection.send(task)
                except (BrokenPipeError, ConnectionResetError):
                    raise Interrupted(self._how_it_ended(connection)) from None
            ready = wait(list(busy))
            for connection in [one for one in busy if one in ready]:
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise Interrupted(self._how_it_ended(connection)) from None
                if kind == "progress":
                    self._report(value)
                    continue
                if kind == "failed":
                    failed[busy[connection]] = value
                del busy[connection]
                idle.append(connection)
        if failed:
            raise failed[min(failed)]

    def close(self) -> None:
        """End the processes."""
        for connection, process in self._processes.items():
            connection.close()
            process.kill()  # nothing they do can be left half-done under a final name
        for process in self._processes.values():
            process.join()
        self._processes = {}

    def _how_it_ended(self, connection: Connection) -> str:
        process = self._processes[connection]
        process.join(5)
        code = process.exitcode
        how = f"was killed by signal {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"
        advice = "; if memory ran out, take fewer --workers" if code == -signal.SIGKILL else ""
        return f"a worker process {how}{advice}. Run the same command again: finished parts are kept."


def worth_starting(input_bytes: int) -> int:
    """Processes for an input: one a core that this process may use, but none for less than a second of work."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, input_bytes // _BYTES_WORTH_A_PROCESS), 1)


def _serve(connection: Connection, settings: PartSettings, staging: Path, parent: int) -> None:
    """What a worker process does until its connection closes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one worker a core is enough
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    worker = Worker(settings, staging)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = connection.recv()
            try:
                task.run(worker, lambda progress: connection.send(("progress", progress)))
            except (PrepError, OSError) as error:
                connection.send(("failed", error))
            else:
                connection.send(("done", None))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)  # s
    os._exit(1)


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
