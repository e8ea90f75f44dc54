"""Runs as `python` does, by a copy of the server's process where the command imports PyTorch in any case."""

import json
import os
import signal
import socket
import sys

WARM = (
    ("train.py",),
    ("eval/evaluate.py",),
    ("-m", "eval.harness"),
    ("-m", "recipes.launch"),  # its processes are such copies too
    ("-m", "recipes", "chat"),
    ("-m", "recipes", "export"),
    ("-m", "recipes", "generate"),
)


def main(executable: str, address: str, *words: str) -> None:
    unbuffered = words[:1] == ("-u",)
    command = words[unbuffered:]
    if not any(command[: len(start)] == start for start in WARM):
        os.execv(sys.executable, [sys.executable, *words])

    request = {
        "words": command,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "executable": executable,
        "unbuffered": unbuffered,
    }
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    code = int(server.makefile().readline())
    if code < 0:  # ended by a signal, as this process then is
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


main(*sys.argv[1:])
