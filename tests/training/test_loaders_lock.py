"""Runs that start in the same moment."""

from __future__ import annotations

import json
from pathlib import Path

from ..conftest import Command

STARTS = 6
# Forks of one process that look for a name at one time: without the lock, all but one of them fail.
SCRIPT = """
import json, multiprocessing, sys
from pathlib import Path
from streaming.base.shared.prefix import get_shm_prefix
from streaming.base.world import World
from recipes.training.loaders_lock import holding_loaders_lock

context = multiprocessing.get_context("fork")
starts = int(sys.argv[1])
answers, ready, done = context.Queue(), context.Barrier(starts), context.Barrier(starts)

def start(number):
    ready.wait()
    try:
        with holding_loaders_lock(Path(sys.argv[2])):
            prefix, memory = get_shm_prefix([f"{sys.argv[2]}/{number}"], [None], World.detect())
        answers.put(prefix)
    except Exception as error:
        answers.put(repr(error))
    done.wait()  # so that all names are in use at once

processes = [context.Process(target=start, args=(number,)) for number in range(starts)]
for process in processes:
    process.start()
print(json.dumps([answers.get() for _ in processes]))
for process in processes:
    process.join()
"""


def test_each_gets_names_of_its_own(tmp_path: Path, run_command: Command) -> None:
    result = run_command("python", "-W", "ignore", "-c", SCRIPT, str(STARTS), tmp_path / "lock", timeout=120)
    names = json.loads(result.stdout.splitlines()[-1])
    assert all(isinstance(name, int) for name in names), (names, result.stderr)
    assert len(set(names)) == STARTS
