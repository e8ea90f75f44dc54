"""The bill of a run from its ledger: a row for every start, also for those that a kill ended. No torch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from recipes.console import console
from recipes.cost.duration import in_words
from recipes.cost.ledger import EARLIER, Line, read_lines, segments_of
from recipes.cost.rate import cost_section
from recipes.cost.segments import Segment, Totals, totals_of, usd_by_segment
from recipes.run_files import LEDGER, RECIPE, RUNS

STEPS_BACK_S = 1.0  # a clock that is set back by less is being kept in time, not wrong


@dataclass(frozen=True)
class Start:
    """One process of a run. Times of day are by its machine's clock, durations by one that cannot be set.

    Without times it ran elsewhere, where its ledger is: a checkpoint knew of it.
    """

    segment: Segment
    began_unix_s: float | None
    last_unix_s: float | None
    ended: bool  # it said so itself; otherwise it was killed or still runs
    rate_source: str | None


@dataclass(frozen=True)
class Bill:
    """Everything a ledger says. None means not known, never zero."""

    folder: Path
    starts: tuple[Start, ...]
    warnings: tuple[str, ...]

    @property
    def segments(self) -> list[Segment]:
        return [start.segment for start in self.starts]

    @functools.cached_property
    def usd_by_segment(self) -> dict[str, float | None]:
        return usd_by_segment(self.segments)

    @functools.cached_property
    def total(self) -> Totals:
        """Over all starts. The model has learned from the tokens that the last process that trained has come to."""
        trained = [s for s in self.segments if s.tokens]
        return totals_of(self.segments, trained[-1].tokens_from + trained[-1].tokens if trained else 0)


def read_bill(run: Path) -> Bill:
    """The bill of a run folder (or of a ledger file).

    Raises:
        ValueError: a path that is no run folder, or a ledger without a line that can be read.
    """
    path = _ledger_of(run) if run.is_dir() else run
    if not path.is_file():
        what = f"it has no {LEDGER}" if run.is_dir() else "there is no such folder"
        near = sorted(str(p.parent) for p in Path(RUNS).glob(f"*/{LEDGER}"))[:8]
        raise ValueError(f"{run} is no run folder: {what}.{' Runs here: ' + ', '.join(near) if near else ''}")
    lines, unreadable = read_lines(path)
    if not lines:
        raise ValueError(f"{path} has no line that can be read: nothing was billed, or it is no ledger.")
    warnings = []
    if unreadable:
        are = "1 line could not be read and is" if unreadable == 1 else f"{unreadable} lines could not be read and are"
        warnings.append(f"{are} left out (torn by a kill?)")
    times = _times(lines)
    back_s = max((earlier - later for earlier, later in itertools.pairwise(times)), default=0.0)
    if back_s > STEPS_BACK_S:
        warnings.append(f"the clock was set back by {in_words(back_s)}: times of day may be wrong, durations are not")
    starts = tuple(_start(segment, lines) for segment in segments_of(lines).values())
    each = usd_by_segment(start.segment for start in starts)
    guessed = [s.segment for s in starts if s.segment.usd_per_device_hour is None and each[s.segment.id] is not None]
    if guessed:
        hours = sum(segment.device_hours for segment in guessed)
        warnings.append(f"{hours:.4g} device-hours whose rate was not known are billed at that of other starts")
    return Bill(run if run.is_dir() else path.parent, starts, tuple(warnings))


def ledger_path(cost: Mapping[str, Any], folder: Path) -> Path:
    """Where a run keeps its ledger, by what its recipe says of its bill."""
    return Path(str(cost.get("ledger") or folder / LEDGER))


def _ledger_of(run: Path) -> Path:
    """In the run folder, unless the recipe keeps it elsewhere."""
    try:
        recipe = yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
        return ledger_path(cost_section(recipe), run)
    except (OSError, ValueError, yaml.YAMLError, AttributeError, TypeError):
        return run / LEDGER


def _start(segment: Segment, lines: Sequence[Line]) -> Start:
    own = [line for line in lines if line.segment.id == segment.id and line.record.get("event") != EARLIER]
    times = _times(own)
    # the first line is written once the process has its group; it began as much earlier as it had been billed
    began = times[0] - own[0].segment.wall_s if times else None
    source = next((str(line.record["rate_source"]) for line in own if line.record.get("rate_source")), None)
    ended = any(line.record.get("event") == "end" for line in own)
    return Start(segment, began, times[-1] if times else None, ended, source)


def _times(lines: Iterable[Line]) -> list[float]:
    """By the clock of the machine."""
    found = (line.record.get("unix_s") for line in lines)
    return [float(unix_s) for unix_s in found if isinstance(unix_s, (int, float)) and math.isfinite(unix_s)]


def to_json(bill: Bill) -> dict[str, Any]:
    """The bill as plain values, named with their units."""
    return {
        "run": str(bill.folder),
        "starts": [
            {
                **dataclasses.asdict(start.segment),
                "began_unix_s": start.began_unix_s,
                "ended": start.ended,
                "wall_s": start.segment.wall_s,
                "device_hours": start.segment.device_hours,
                "usd": bill.usd_by_segment[start.segment.id],
                "rate_source": start.rate_source,
            }
            for start in bill.starts
        ],
        "wall_s": bill.total.wall_s,
        "device_hours": bill.total.device_hours,
        "usd": bill.total.usd,
        "tokens": bill.total.tokens,
        "seconds": bill.total.parts,
        "device_seconds": bill.total.device_seconds,
        "usd_by_part": bill.total.usd_by_part,
        "goodput": bill.total.goodput,
        "warnings": list(bill.warnings),
    }


def print_bills(bills: Sequence[Bill]) -> None:
    """A table a run, and under several their sum."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    out = console()
    for bill in bills:
        title = Text(str(bill.folder), style="italic")
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("began", no_wrap=True, min_width=len("2026-01-31 08:00:00"))
        table.add_column("ended")
        for column in ("devices", "USD/h", "billed", "training", "tokens", "USD"):
            table.add_column(column, justify="right", no_wrap=True)
        for start in bill.starts:
            s = start.segment
            rate, usd = s.usd_per_device_hour, bill.usd_by_segment[s.id]
            table.add_row(
                _clock(start.began_unix_s),
                _end_of(start),
                str(s.devices),
                "?" if rate is None else f"{rate:g}",
                in_words(s.wall_s),
                in_words(s.seconds["train"]),
                f"{s.tokens:,}",
                "?" if usd is None else f"{usd:,.4f}",
            )
        table.add_section()
        run, training = bill.total, in_words(bill.total.parts["train"])
        usd_in_all = "?" if run.usd is None else f"{run.usd:,.4f}"
        table.add_row("all", "", "", "", in_words(run.wall_s), training, f"{run.tokens:,}", usd_in_all, style="bold")
        out.print(table)
        shares = [f"{name} {share:.1%}" for name, share in run.shares.items() if share > 0]
        out.print(f"  goodput {run.goodput or 0:.1%} of {run.device_hours:.4g} device-hours: {', '.join(shares)}")
        for source in dict.fromkeys(start.rate_source for start in bill.starts if start.rate_source):
            out.print(f"  rate: {escape(source)}")
        for warning in bill.warnings:
            out.print(f"  [yellow]note:[/yellow] {warning}")
        out.print()
    if len(bills) > 1:
        missing = sum(bill.total.usd is None for bill in bills)
        unknown = f", and {missing} without a rate" if missing else ""
        known, shared = usd_of_all(bill for bill in bills if bill.total.usd is not None)
        twice = f"; ${shared:,.4f} of it in several of them, counted once" if shared else ""
        out.print(f"[bold]{len(bills)} runs: ${known:,.4f}[/bold]{unknown}{twice}")


def usd_of_all(bills: Iterable[Bill]) -> tuple[float, float]:
    """Dollars of several runs, each process once, and how much of it is of processes that several know of.

    A run that began at another's checkpoint has that one's processes in its ledger.
    """
    paid: dict[str, float] = {}
    shared: dict[str, float] = {}
    for bill in bills:
        for name, usd in bill.usd_by_segment.items():
            if name in paid:
                shared[name] = usd or 0.0
            paid[name] = max(usd or 0.0, paid.get(name, 0.0))
    return sum(paid.values()), sum(shared.values())


def _end_of(start: Start) -> str:
    if start.last_unix_s is None:
        return "known from a checkpoint"
    last = _clock(start.last_unix_s)
    return last if start.ended else f"killed, or runs; last seen {last}"


def _clock(unix_s: float | None) -> str:
    try:
        return "?" if unix_s is None else datetime.fromtimestamp(unix_s).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):  # no time of any day
        return "?"
