"""Where tables are printed."""

from __future__ import annotations

import sys
from typing import Any


def console() -> Any:
    """Rich's, for tables: as wide as the terminal, and of 120 columns in a pipe or a file, which has no width."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
