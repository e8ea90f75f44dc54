"""Composer's launcher, less the seconds in which `composer` imports all of Composer before it starts a process.

    python -m recipes.launch -n 8 train.py yamls/pretrain/mpt-7b-8k.yaml

Options, environment variables and behaviour are those of `composer`: the launcher is Composer's own file, which asks
its package for five names and torch for one.
"""

from __future__ import annotations

import datetime
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from recipes.config.keys import RecipeError
from recipes.ranks import LAUNCHER, grace_s

# Names of environment variables, under which a platform asks for the logs of all processes.
LOGGER_NAMES = {
    "MOSAICML_PLATFORM_ENV_VAR": "MOSAICML_PLATFORM",
    "MOSAICML_LOG_DIR_ENV_VAR": "MOSAICML_LOG_DIR",
    "MOSAICML_GPU_LOG_FILE_PREFIX_ENV_VAR": "MOSAICML_GPU_LOG_FILE_PREFIX",
}
GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))  # NVIDIA's, under Windows, AMD's


def main(arguments: list[str]) -> int:
    launcher = composer_launcher()
    try:
        grace = datetime.timedelta(seconds=grace_s())
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def interrupt(*_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # said again, it takes no time from what is ending
        launcher.CLEANUP_TIMEOUT = grace  # to save; after a crash there is nothing to wait for
        raise KeyboardInterrupt  # the launcher ends its processes, as at Ctrl-C

    for number in (signal.SIGTERM, signal.SIGHUP):  # of which Composer's would die and leave its processes running
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
            signal.signal(number, interrupt)
    os.environ[LAUNCHER] = str(os.getpid())
    sys.argv = ["python -m recipes.launch", *arguments]
    try:
        code = int(launcher.main())
        return code if code >= 0 else 128 - code  # of a process that a signal ended, as shells have it
    except ValueError as error:  # its options contradict each other
        print(f"error: {error}", file=sys.stderr)
        return 2


def composer_launcher() -> Any:
    """The module composer.cli.launcher, with stand-ins for what it imports.

    Raises:
        ImportError: Composer is not installed.
    """
    package = util.find_spec("composer")
    if package is None or not package.submodule_search_locations:
        raise ImportError("mosaicml (Composer) is not installed here; `make setup` installs all there is.")
    path = Path(package.submodule_search_locations[0]) / "cli" / "launcher.py"
    spec = util.spec_from_file_location("composer_launcher", path)
    assert spec is not None
    assert spec.loader is not None
    launcher: Any = util.module_from_spec(spec)
    stand_ins = {
        "composer": _module("composer", __version__=metadata.version("mosaicml")),
        "composer.loggers.mosaicml_logger": _module("composer.loggers.mosaicml_logger", **LOGGER_NAMES),
        "composer.utils": _module("composer.utils", get_free_tcp_port=free_port),
        "torch": _module("torch", cuda=_module("torch.cuda", device_count=device_count)),
    }
    known = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        spec.loader.exec_module(launcher)
        launcher.log.addFilter(lambda record: record.levelno < logging.ERROR)  # twice what the screen has said
        launcher._cleanup_processes = _only_where_needed(launcher._cleanup_processes)
    finally:
        for name, module in known.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
    return launcher


def _only_where_needed(clean_up: Callable[[dict[int, Any]], None]) -> Callable[[dict[int, Any]], None]:
    """Composer's end of a launch, which speaks of waiting and of killing also where every process has ended by itself.

    What rank 0 had to say is on the screen; the others' words are shown by the clean-up.
    """

    def clean(processes: dict[int, Any]) -> None:
        ended = {rank: process.poll() for rank, process in processes.items()}
        if any(code is None or (code and rank) for rank, code in ended.items()):
            clean_up(processes)

    return clean


def device_count() -> int:
    """GPUs, by torch where there may be one; asked where neither -n nor LOCAL_WORLD_SIZE says how many processes."""
    if not any(map(os.path.exists, GPU_DEVICES)):
        return 0
    import torch

    return torch.cuda.device_count()


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
