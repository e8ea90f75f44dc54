"""Tasks done by the nodes of a Ray cluster, with the same result as on one machine.

Every node has to see the input, the tokenizer, the output folder and this repository under the same paths, on storage
where a file that one node has renamed is there for the others (NFS with lookupcache=positive, Lustre, FSx and so on). A
task whose node dies is done again by another one: an attempt has a name of its own, and what is finished is renamed.
"""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import Interrupted, PrepError
from data_prep.part_task import PartSettings, Progress, Report
from data_prep.staging import PLAN
from data_prep.tasks import PARTS, RECORDS, Task, Worker

_RETRIES = 5  # of a task whose process or node died
_LOOK_S = 5.0  # after so many seconds without a result, see whether the cluster has grown

_worker: Worker | None = None  # in a process on a node: kept from task to task, because an engine takes time to make


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a running cluster: at `address`, or RAY_ADDRESS, or the one that this machine is a node of.

    Raises:
        PrepError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray  # only here: an optional package
    except ImportError as error:
        raise PrepError(f'--engine ray: Ray is not installed here ({error}); pip install "ray>=2.50,<3".') from error
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    before = signal.getsignal(signal.SIGTERM)
    try:
        host, colon, port = wanted.rpartition(":")
        if colon and port.isdecimal() and "/" not in host:  # Ray itself asks a dead address for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        start = "start one with `ray start --head`, and on the other nodes `ray start --address HEAD:6379`"
        raise PrepError(f"--engine ray: no cluster at {wanted} ({reason}); {start}, or give --ray-address.") from error
    signal.signal(signal.SIGTERM, before)  # Ray has put its own in its place
    try:
        yield
    finally:
        ray.shutdown()


class RayTasks:
    """Does tasks on the cluster that this process is connected to.

    Args:
        most: tasks at a time; 0: one a core of the cluster, also of nodes that join it later.
    """

    def __init__(self, settings: PartSettings, staging: Path, report: Report, most: int):
        import ray

        self._most = most
        self._report = report
        self._staging = staging
        self._given = ray.put((settings, staging, os.getcwd(), _versions()))
        self._do: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(_do)

    @property
    def cores(self) -> int:
        """Tasks at a time."""
        import ray

        cores = max(int(ray.cluster_resources().get("CPU", 0)), 1)
        return min(self._most, cores) if self._most else cores

    def run(self, tasks: Sequence[Task]) -> None:
        import ray

        waiting = list(enumerate(tasks))[::-1]
        failed: dict[int, Exception] = {}
        busy: dict[Any, int] = {}
        while busy or (waiting and not failed):
            while waiting and not failed and len(busy) < self.cores:
                number, task = waiting.pop()
                busy[self._do.remote(self._given, task)] = number
            ready, _ = ray.wait(list(busy), timeout=_LOOK_S)
            for result in ready:
                number = busy.pop(result)
                try:
                    outcome = ray.get(result)
                except ray.exceptions.RayError as error:
                    raise Interrupted(_how_it_ended(error)) from error
                if isinstance(outcome, Exception):
                    failed[number] = outcome
                else:
                    self._report(outcome)
        for folder in (PARTS, RECORDS):
            os.listdir(self._staging / folder)  # so that a network file system looks again
        if failed:
            raise failed[min(failed)]


def _do(given: tuple[PartSettings, Path, str, dict[str, str]], task: Task) -> Progress | Exception:
    """Do a task on a node; returns what was done, or what the user has to hear."""
    global _worker
    settings, staging, folder, versions = given
    done = Progress()

    def report(progress: Progress) -> None:
        nonlocal done
        done += progress

    try:
        if _worker is None or (_worker.settings, _worker.staging) != (settings, staging):
            _check_node(staging, folder, versions)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one task a core is enough
            _worker = Worker(settings, staging)
        task.run(_worker, report)
    except (PrepError, OSError) as error:
        return error
    return done


def _check_node(staging: Path, folder: str, versions: dict[str, str]) -> None:
    """Go to the folder that relative paths are relative to, if this node sees what the others see.

    Raises:
        Interrupted: it does not, or its engines are of other versions.
    """
    node = f"--engine ray: node {socket.gethostname()}"
    if not os.path.isdir(folder):
        raise Interrupted(f"{node} has no folder {folder}; all nodes must see the same files under the same paths.")
    os.chdir(folder)
    if not (staging / PLAN).is_file():
        where = os.path.abspath(staging)
        raise Interrupted(f"{node} does not see {where}; give an --out (or --work) on storage that all nodes share.")
    here = _versions()
    if here != versions:
        differing = ", ".join(
            f"{name} {here[name]}, not {versions[name]}" for name in here if here[name] != versions[name]
        )
        raise Interrupted(f"{node} has {differing}; install the same on all nodes, so that all give the same ids.")


def _versions() -> dict[str, str]:
    """The versions of what decides the ids."""
    from importlib import metadata  # only here: 0.02 s

    found = {}
    for name in ("gigatoken", "fastokens", "tokenizers", "rensa"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _how_it_ended(error: Exception) -> str:
    error = getattr(error, "cause", None) or error  # what a task raised, without Ray's words around it
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"a task on the Ray cluster was lost {_RETRIES + 1} times: {reason} Run again: finished parts are kept."
