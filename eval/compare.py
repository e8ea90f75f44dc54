"""Two models on the same examples: the difference with its interval, and which examples flipped.

    python -m eval.compare runs/a/results.json runs/b/results.json
    python -m eval.compare runs/a runs/b --flipped 10

A and B are results that `eval/evaluate.py` or `python -m eval.harness` wrote, or the run folders that hold them. The
difference is paired, example by example, so that what is hard for both does not blur it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.metrics import paired_interval
from eval.results import examples_path
from recipes import screen
from recipes.console import console
from recipes.run_files import EVALUATION, HARNESS

SHOWN = 3  # flipped examples a task
WIDTH = 100  # characters of a prompt that are shown, its end

Records = dict[str, dict[int, Mapping[str, Any]]]  # task → example → record


@dataclass(frozen=True)
class Difference:
    """B minus A on one task. p_value: McNemar's exact test that neither is better, where scores are 0 or 1.

    Only there is an example gained or lost.
    """

    task: str
    examples: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float | None
    gained: list[int]  # wrong by A, right by B
    lost: list[int]


def paired(task: str, a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]]) -> Difference:
    """Over the examples that both have."""
    both = sorted(_judged(a) & _judged(b))
    if not both:
        raise ValueError(f"{task}: the two have no examples in common")
    before, after = [float(a[i]["correct"]) for i in both], [float(b[i]["correct"]) for i in both]
    differences = [y - x for x, y in zip(before, after, strict=True)]
    low, high = paired_interval(before, after)
    binary = all(x in (0, 1) for x in (*before, *after))
    gained = [i for i, d in zip(both, differences, strict=True) if binary and d > 0]
    lost = [i for i, d in zip(both, differences, strict=True) if binary and d < 0]
    return Difference(
        task,
        len(both),
        sum(before) / len(both),
        sum(after) / len(both),
        sum(differences) / len(both),
        low,
        high,
        _sign_test(len(gained), len(lost)) if binary else None,
        gained,
        lost,
    )


def _judged(records: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Examples that are right or wrong, or somewhere between: not those of a perplexity."""
    return {index for index, record in records.items() if record.get("correct") is not None}


def _sign_test(gained: int, lost: int) -> float:
    """Two-sided: the chance of a split at least as uneven when each flip goes either way alike (McNemar, exact)."""
    n, k = gained + lost, min(gained, lost)
    tail = ways = 1  # in which i of n flips are of the rarer kind; the next from the last, as whole numbers
    for i in range(k):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def read(path: Path, model: str | None) -> tuple[str, Records, dict[str, str]]:
    """A model's name, its records and the digests of its tasks. Raises ValueError in words."""
    if path.is_dir():
        of_harness_alone = (path / HARNESS).is_file() and not (path / EVALUATION).is_file()
        path = path / (HARNESS if of_harness_alone else EVALUATION)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {str(entry["name"]): entry for entry in content["models"]}
        tasks = {name: {t["label"]: t for t in entry.get("tasks", [])} for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = (
            "; evaluate it first: python eval/evaluate.py RECIPE models.0.run=RUN" if isinstance(error, OSError) else ""
        )
        raise ValueError(f"{path} holds no results: {error}{hint}") from None
    if not entries:
        raise ValueError(f"{path} holds no results: its list of models is empty")
    if len(entries) < len(content["models"]):
        raise ValueError(f"{path} has two models of one name among {', '.join(entries)}: which is meant cannot be told")
    if model is None and len(entries) > 1:
        raise ValueError(f"{path} has several models: say which with PATH:MODEL, one of {', '.join(entries)}")
    name = model or next(iter(entries))
    if name not in entries:
        raise ValueError(f"{path} has no model {name}, but {', '.join(entries)}")
    kept, records = examples_path(path), _records(examples_path(path), name)
    for label, task in tasks[name].items():
        expected, found = task.get("examples"), len(records.get(label, {}))
        if found != expected and "digest" in task:  # a group's examples are those of its tasks
            raise ValueError(f"{kept} has {found} examples of {label}, {path} says {expected}: evaluate again")
    return name, records, {label: task.get("digest", "") for label, task in tasks[name].items()}


def _records(path: Path, model: str) -> Records:
    """A model's examples. Raises ValueError, with the line, for what is no example."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not at U+2028 and the like, which texts have
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, where the examples are, cannot be read: {error}; evaluate again") from None
    records: Records = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            task, correct = record["task"], record.get("correct")
            if not isinstance(task, str):
                raise ValueError(f"'task': got {task!r}, expected text")
            if correct is not None and not (isinstance(correct, (int, float)) and math.isfinite(correct)):
                raise ValueError(f"'correct': got {correct!r}, expected a number")
            if record["model"] == model:
                records.setdefault(task, {})[int(record["index"])] = record
        except (ValueError, KeyError, TypeError) as error:
            words = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}:{number}: not an example: {words}; evaluate again") from None
    return records


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="results or a run folder; with :MODEL where there are several models")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--flipped", type=int, default=SHOWN, help=f"examples to show a task (default {SHOWN})")
    parser.add_argument("--json", action="store_true", help="for machines: a list of objects")
    chosen = parser.parse_args(arguments)
    if chosen.flipped < 0:
        parser.error(f"--flipped: got {chosen.flipped}, expected 0 or more")
    try:
        (name_a, a, digests_a), (name_b, b, digests_b) = (read(*_split(text)) for text in (chosen.a, chosen.b))
        common = [task for task in a if task in b]
        if not common:
            raise ValueError(f"no task in common: A has {', '.join(a) or 'none'}, B has {', '.join(b) or 'none'}")
        changed = [task for task in common if digests_a.get(task) != digests_b.get(task)]
        if changed:
            raise ValueError(f"{', '.join(changed)}: A and B answered different questions (other task digest)")
        judged = [task for task in common if _judged(a[task]) & _judged(b[task])]
        if not judged:
            raise ValueError(f"{', '.join(common)}: no example of these is judged by itself, so there are no pairs")
        found = [paired(task, a[task], b[task]) for task in judged]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps([vars(difference) for difference in found], indent=2))
        return 0
    _show(name_a, name_b, found, a, b, chosen.flipped)
    if left := [task for task in common if task not in judged]:
        print(f"not compared, as no example of it is judged by itself: {', '.join(left)}")
    return 0


def _split(text: str) -> tuple[Path, str | None]:
    path, colon, model = text.rpartition(":")
    return (Path(path), model) if colon and not Path(text).exists() else (Path(text), None)


def _show(name_a: str, name_b: str, found: Sequence[Difference], a: Records, b: Records, flipped: int) -> None:
    from rich.table import Column, Table

    out = console()
    columns = ("A", "B", "B − A", "95 %", "p", "gained", "lost", "examples")
    numbers = [Column(name, justify="right", no_wrap=True) for name in columns]
    table = Table(Column("task", overflow="fold"), *numbers, box=None, padding=(0, 1, 0, 0))  # 80 columns have room
    table.title, table.title_justify = f"A: {name_a}, B: {name_b}", "left"
    for d in found:
        if d.p_value is None:  # numbers, not shares of right answers
            spread = f"{d.low:+,.4g} … {d.high:+,.4g}"
            table.add_row(
                d.task, f"{d.a:,.4g}", f"{d.b:,.4g}", f"{d.difference:+,.4g}", spread, "", "", "", f"{d.examples:,}"
            )
            continue
        spread = f"{d.low:+.1%} … {d.high:+.1%}"
        counts = (f"{d.p_value:.3f}", str(len(d.gained)), str(len(d.lost)), f"{d.examples:,}")
        table.add_row(d.task, f"{d.a:.1%}", f"{d.b:.1%}", f"{d.difference:+.1%}", spread, *counts)
    out.print(table)
    for d in found:
        for word, indices in (("gained", d.gained), ("lost", d.lost)):
            for index in indices[:flipped]:
                end = " ".join(str(a[d.task][index].get("prompt", "")).split())[-WIDTH:]
                chose = f"A {a[d.task][index].get('chosen')!r}, B {b[d.task][index].get('chosen')!r}"
                out.print(f"{d.task} {word}, example {index + 1}: …{end} [{chose}]", markup=False)


if __name__ == "__main__":
    sys.exit(screen.exit_status(main, "begins anew"))
