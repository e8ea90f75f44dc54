"""Results measured on different machines, kept in one table: a suite a machine, the others left as they are.

What was measured is kept as JSON beside the table, so that a run on a CPU does not lose what a GPU measured. A suite
that nobody has measured yet stays in the table, marked so, with the command that measures it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import write_result

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = "not measured"


def write_suites(
    name: str,
    title: str,
    suites: Mapping[str, str],
    measured: Mapping[str, Any],
    render: Callable[[str, Mapping[str, Any] | None], Sequence[str]],
) -> None:
    """Adds what was ``measured`` (suite → anything JSON can hold) to NAME.json, and writes NAME.md from all of it.

    ``suites`` maps each suite to the command that measures it; ``render`` gives a suite's lines, also of one that was
    not measured (None).
    """
    path = RESULTS / f"{name}.json"
    everything = {**known(name), **measured}
    unfinished = path.with_suffix(".json.tmp")
    unfinished.write_text(json.dumps(everything, indent=1) + "\n")
    unfinished.replace(path)
    lines = [f"# {title}", ""]
    for suite, command in suites.items():
        found = everything.get(suite)
        lines += [f"## {suite}", "", f"Command: `{command}`", ""]
        lines += [found["machine"] if found else f"**{NOT_MEASURED.capitalize()}** so far: run the command.", ""]
        lines += [*render(suite, found), ""]
    write_result(lines[:-1], RESULTS / f"{name}.md")


def known(name: str) -> dict[str, Any]:
    """What was measured before, suite by suite."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
