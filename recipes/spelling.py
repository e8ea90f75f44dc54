"""What somebody who wrote a name that does not exist may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[object], count: int = 1) -> str:
    """`; did you mean alibi?`, or nothing where no name is near: by its letters, or as what it begins with."""
    text, names = str(name), [str(each) for each in known]
    near = difflib.get_close_matches(text, names, n=count)
    near = near or [each for each in names if len(text) > 2 and each.startswith(text)][:1]
    return f"; did you mean {', '.join(near)}?" if near else ""
