"""Kill runs of data_prep.pretrain at every step that changes the disk for good, and check what each leaves.

    python crash.py OUT REFERENCE BEFORE -- ARGUMENTS OF data_prep.pretrain

For n = 1, 2, ... a process makes OUT a copy of BEFORE, runs the command and is killed with SIGKILL at its n-th step (a
rename, an fsync, or the removal of a folder or of the lock); then the command runs again and OUT must be REFERENCE,
byte for byte. Ends when n is beyond the last step. Processes are forked, so that the imports are paid for once. Prints
the number of steps.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from data_prep.manifest import load_manifest
from data_prep.pretrain import main
from tests.data_prep.conftest import tree


def in_child(arguments: list[str], kill_at: int = 0) -> int:
    """Run the command in a forked process; returns its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    steps = 0

    def killing(real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return call

    for module, name in ((os, "rename"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree")):
        setattr(module, name, killing(getattr(module, name)))
    os._exit(main(arguments))


def check_what_a_kill_left(out: Path) -> None:
    """A main split is there only with all that it was published with, from the same run."""
    train = load_manifest(out / "train")
    if train is not None:
        for name in train.splits:
            other = load_manifest(out / name)
            assert other is not None, f"{out / name} is not there, and train is"
            assert other.options == train.options, f"{out / name} is not of the same run as train"


def run() -> None:
    out, reference, before = (Path(word) for word in sys.argv[1:4])
    arguments = sys.argv[5:]
    expected = tree(reference)
    step = 0
    while True:
        step += 1
        shutil.rmtree(out, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, out)
        status = in_child(arguments, kill_at=step)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        check_what_a_kill_left(out)
        assert in_child(arguments) == 0, f"the run after a kill at step {step} failed"
        assert tree(out) == expected, f"other bytes after a kill at step {step}"
    print(step - 1)


if __name__ == "__main__":
    run()
