"""How a package that is not here is installed into this environment, as a command to copy."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def install_command(*words: str) -> str:
    """The command, with uv where there is one: on the path, or the one that `make setup` put beside the environment."""
    beside = Path(f"{sys.prefix}-uv") / "bin" / "uv"
    if shutil.which("uv"):
        tool = ["uv"]
    elif beside.is_file():
        tool = [str(beside)]
    else:
        tool = [sys.executable, "-m"]
    return shlex.join([*tool, "pip", "install", *words])
