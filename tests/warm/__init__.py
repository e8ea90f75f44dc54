"""Tests' own `python`: a command starts as a copy of a process that has imported PyTorch and Composer before.

Importing is most of what a small run costs. A copy has arguments, folder, environment, output, signals and exit code of
its own, as from a shell; only the modules are there already, as fork() leaves them. What a start itself costs and
imports is tested where a command really starts: by `composer`, with options of Python's, by `sys.executable`.

    server.py   the process that is copied, and the copies
    client.py   the `python` that tests call: hands a command to the server, or is Python where no copy is wanted
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).with_name("client.py")


class WarmPython:
    """A server, and in `executable` the command that asks it; ended by `end`, or with the process that started it."""

    def __init__(self, folder: Path) -> None:
        address = folder / "socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(address))
        listener.listen(8)
        self.executable = folder / "python"
        # Without site and user packages the client is there in 20 ms.
        self.executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E -s "{CLIENT}" "$0" "{address}" "$@"\n')
        self.executable.chmod(0o755)
        words = [sys.executable, "-m", "tests.warm.server", str(listener.fileno())]
        with listener:
            self._process = subprocess.Popen(
                words, cwd=CLIENT.parents[2], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
            )

    def end(self) -> None:
        self._process.communicate()
