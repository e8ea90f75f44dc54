"""The process that is copied: it imports, waits for clients, and goes when its standard input is closed."""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path


def main(listener: socket.socket) -> None:
    """Serve clients; comes back in a copy, as the command that was asked for."""
    import_all()
    guards: set[int] = set()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit(0)
        client, _ = listener.accept()
        guards -= {guard for guard in guards if os.waitpid(guard, os.WNOHANG)[0]}
        guard = os.fork()
        if not guard:
            listener.close()
            return start(client)
        guards.add(guard)
        client.close()


def import_all() -> None:
    from recipes.training.startup import light_imports

    with light_imports():
        import recipes.build  # noqa: F401


def start(client: socket.socket) -> None:
    """Make a copy, which returns, and guard it: a signal is passed on, and who dies by SIGKILL takes the copy along."""
    text, files, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not text.endswith(b"\n"):
        text += client.recv(1 << 20)
    copy = os.fork()
    if not copy:
        client.close()
        for standard, file in enumerate(files):
            os.dup2(file, standard)
            os.close(file)
        return be(**json.loads(text))
    for file in [*files, 0, 1, 2]:  # whoever reads the output waits for all who hold it
        os.close(file)
    ended = os.pidfd_open(copy)
    waited_for: list[int | socket.socket] = [ended, client]
    while True:
        ready, _, _ = select.select(waited_for, [], [])
        if ended in ready:
            _, status = os.waitpid(copy, 0)
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        numbers = client.recv(100)
        for number in numbers or [signal.SIGKILL]:
            os.kill(copy, number)
        if not numbers:
            waited_for.remove(client)


def be(words: list[str], cwd: str, environment: dict[str, str], executable: str, unbuffered: bool) -> None:
    """Run a script or `-m MODULE` as the program that this process is."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = executable
    sys.stdout.reconfigure(line_buffering=unbuffered)  # type: ignore[union-attr]
    if words[0] == "-m":
        sys.path[0] = cwd
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(words[0]).resolve().parent)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
