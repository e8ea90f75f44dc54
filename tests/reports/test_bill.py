"""`python -m recipes bill`: every start in the table, what a crash wasted in the sum, and words for bad ledgers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from recipes.reports.bill import print_bills, read_bill
from recipes.reports.page import write_page

from ..conftest import Command
from ..run_folders import BEGAN, FIRST, TOKENS_PER_STEP, USD, WALL_S, crashed_run, ledger_line


def test_every_start_is_billed_and_lost_steps_are_named(tmp_path: Path) -> None:
    bill = read_bill(crashed_run(tmp_path / "run"))
    assert [start.ended for start in bill.starts] == [False, True]
    assert bill.starts[0].began_unix_s == BEGAN
    assert bill.total.usd == pytest.approx(USD)
    assert bill.total.tokens == 4800 * TOKENS_PER_STEP
    assert bill.total.parts["lost"] == pytest.approx(600 * 100 / 1600)
    assert sum(bill.total.parts.values()) == pytest.approx(bill.total.wall_s) == pytest.approx(WALL_S)
    assert bill.total.goodput == pytest.approx((2000 - 37.5) / WALL_S)


def test_parts_are_of_all_devices_at_the_rate_of_their_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"usd_per_device_hour": 2.0, "tokens": 100}
    lines = [
        ledger_line("end", "a", BEGAN, {"train": 3600.0}, devices=64, **more),
        ledger_line("end", "b", BEGAN + 9, {"evaluation": 3600.0}, devices=8, tokens_from=75, **more),
    ]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    bill = read_bill(tmp_path)
    assert bill.total.usd_by_part is not None
    paid = {part: usd for part, usd in bill.total.usd_by_part.items() if usd}
    assert paid == pytest.approx({"train": 96, "lost": 32, "evaluation": 16})
    assert bill.total.parts["lost"] == 900
    print_bills([bill])
    assert "goodput 66.7% of 72 device-hours: train 66.7%, evaluation 11.1%, lost 22.2%" in capsys.readouterr().out
    html = write_page([tmp_path]).read_text()
    assert [f'<td class="n">{usd}</td></tr>' in html for usd in ("$96", "$32", "$16")] == [True] * 3


def test_the_command_prints_a_table_and_the_sum_of_runs(tmp_path: Path, run_command: Command) -> None:
    one, two = crashed_run(tmp_path / "one"), crashed_run(tmp_path / "two")
    ledger = two / "ledger.jsonl"
    shared = run_command("python", "-m", "recipes", "bill", one, two).stdout
    assert "2 runs: $16.2124; $16.2124 of it in several of them, counted once" in shared
    ledger.write_text(ledger.read_text().replace('"id": "', '"id": "other '))
    done = run_command("python", "-X", "importtime", "-m", "recipes", "bill", one, two)
    assert done.returncode == 0, done.stderr
    assert " torch\n" not in done.stderr
    for words in (
        "USD/h",
        "killed, or runs; last seen",
        "13 min 20 s",
        f"{USD:,.4f}",
        "goodput 80.4%",
        "lost 1.5%",
        "rate: stated: 2.99 USD",
        "1 line could not be read and is left out (torn by a kill?)",
        f"2 runs: ${2 * USD:,.4f}",
    ):
        assert words in " ".join(done.stdout.split()), words
    data = json.loads(run_command("python", "-m", "recipes", "bill", one, "--json").stdout)
    assert data["usd"] == pytest.approx(USD)
    assert [start["wall_s"] for start in data["starts"]] == [sum(FIRST.values()), 1640]


def test_a_ledger_that_is_kept_elsewhere_is_found(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run[v2]")
    (run / "ledger.jsonl").rename(tmp_path / "elsewhere.jsonl")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(f"{recipe}cost: {{ledger: {tmp_path}/elsewhere.jsonl}}\n")
    bill = read_bill(run)
    assert (bill.folder, bill.total.usd) == (run, pytest.approx(USD))


def test_names_and_columns_are_whole_in_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_bills([read_bill(crashed_run(tmp_path / "run[v2]"))])
    printed = capsys.readouterr().out
    assert "run[v2]" in printed
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", printed, re.MULTILINE)


def test_a_clock_that_was_set_back_is_said_and_changes_no_dollar(tmp_path: Path) -> None:
    lines = [
        ledger_line("start", "a", BEGAN, {"startup": 10.0}),
        ledger_line("beat", "a", BEGAN + 60, {"startup": 10.0, "train": 60.0}),
        ledger_line("end", "a", BEGAN - 3600, {"startup": 10.0, "train": 90.0}),
    ]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    bill = read_bill(tmp_path)
    assert bill.total.wall_s == 100
    assert bill.warnings == ("the clock was set back by 1 h 1 min: times of day may be wrong, durations are not",)


def test_a_run_without_a_rate_has_no_dollars(tmp_path: Path, run_command: Command) -> None:
    (tmp_path / "ledger.jsonl").write_text(ledger_line("end", "a", BEGAN, {"train": 60.0}, usd_per_device_hour=None))
    assert read_bill(tmp_path).total.usd is None
    done = run_command("python", "-m", "recipes", "bill", tmp_path)
    assert done.returncode == 0
    assert "?" in done.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "it has no ledger.jsonl"), ("", "has no line that can be read"), ('{"event":', "has no line that can be")],
)
@pytest.mark.parametrize("command", ["bill", "report"])
def test_no_run_no_bill(tmp_path: Path, run_command: Command, content: str | None, words: str, command: str) -> None:
    if content is not None:
        (tmp_path / "ledger.jsonl").write_text(content)
    done = run_command("python", "-m", "recipes", command, tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    missing = run_command("python", "-m", "recipes", command, tmp_path / "nothing")
    assert "is no run folder: there is no such folder" in missing.stderr
