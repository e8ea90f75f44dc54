"""`python -m recipes report`: one page that stands alone, with figures that agree with the ledger."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recipes.cost.figures import short
from recipes.reports.against_plan import reasons
from recipes.reports.charts import Line, line_chart, share_bar, ticks
from recipes.reports.page import write_page
from recipes.reports.run_record import read_run
from recipes.reports.summary import print_summary

from ..conftest import Command
from ..run_folders import FIRST, SECOND, TOKENS_PER_STEP, USD, crashed_run

VOID = {"meta", "line", "polyline", "circle", "rect", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, or closed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_one_run(tmp_path: Path, run_command: Command) -> None:
    run = crashed_run(tmp_path / "run")
    done = run_command("python", "-X", "importtime", "-m", "recipes", "report", run)
    assert done.returncode == 0, done.stderr
    assert " torch\n" not in done.stderr
    assert done.stdout.strip() == f"report: {run / 'report.html'}"
    html = (run / "report.html").read_text()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"(src|href)=|@import|url\(|<script", html)  # nothing from anywhere else
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "width=device-width" in html
    for words in (
        f"${USD:,.2f}",
        "Loss against tokens",
        "Loss against dollars",
        "goodput 80.4%",
        "steps whose work was not kept: crashed, or begun anew",
        "1 line could not be read",
        "Plan against actual",
        "Why the dollars differ",
        "28.7% in the steady state",
        "3.312 by the scaling law",
        "62.0% ± 2.2%",
        f"${USD / 12:,.2f}",  # dollars a point: 12 points above chance
        "no better than chance",
        "lambada &lt;b&gt;/0-shot",
        "max_duration: 4800ba",
    ):
        assert words in html, words
    assert html.count("<polyline") == 4


def test_the_reasons_multiply_to_the_difference(tmp_path: Path) -> None:
    run = read_run(crashed_run(tmp_path / "run"))
    found = reasons(run)
    assert {r.name for r in found} == {
        "tokens learned from",
        "work that was not kept",
        "speed of the steady state",
        "share of the time in training and data",
        "rate",
    }
    assert run.plan is not None
    assert run.plan.usd is not None
    product = math.prod(r.factor or 1 for r in found)
    assert product == pytest.approx(USD / run.plan.usd.mid, rel=1e-6)
    assert next(r for r in found if "not kept" in r.name).factor == pytest.approx(4900 / 4800)


def test_several_runs_side_by_side(tmp_path: Path, run_command: Command) -> None:
    one, two = crashed_run(tmp_path / "one"), crashed_run(tmp_path / "two")
    recipe = two / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.0006", "lr: 0.0003"))
    done = run_command("python", "-m", "recipes", "report", one, two)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "report.html").read_text()
    assert "2 runs: one, two" in html
    assert re.search(r"<td>optimizer\.lr</td><td>0\.0006</td><td>0\.0003</td>", html)
    assert html.count("<polyline") == 8
    assert "Plan against actual: two" in html


def test_markup_in_a_name_is_text_everywhere(tmp_path: Path) -> None:
    name = '<evil a="1">&amp;{{ 2 }}'
    run, other = crashed_run(tmp_path / "run").rename(tmp_path / name), crashed_run(tmp_path / "other")
    recipe = run / "recipe.yaml"
    recipe.write_text(f"{recipe.read_text()}'{name}': '{name}'\n")
    (run / "summary.json").write_text(json.dumps({"steps": 4800, "stopped": name}))
    task = {"label": name, "score": 0.5, "chance": 0.25}
    (run / "results.json").write_text(json.dumps({"models": [{"name": name, "checkpoint": name, "tasks": [task]}]}))
    tasks = [json.dumps({"step": step, "tokens": step, "tasks": [task]}) for step in (1600, 3200)]
    (run / "tasks.jsonl").write_text("\n".join(tasks))
    for runs, least in (([run], 15), ([run, other], 40)):
        html = write_page(runs).read_text()
        assert "<evil" not in html
        assert html.count("lt;evil") == unescape(html).count(name) >= least  # once, and no more than once


def test_a_run_that_left_almost_nothing_still_has_a_page(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    for name in ("recipe.yaml", "metrics.jsonl", "summary.json"):
        (run / name).unlink()
    (run / "results.json").write_text("{torn")
    html = write_page([run]).read_text()
    for words in ("not finished: killed, or still running", "nothing to draw", "recipe.yaml is missing", "None yet"):
        assert words in html


def test_a_run_that_has_diverged_has_a_page_that_says_so(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    lines = [{"step": 4801, "loss/train/total": None, "cost/usd": math.nan, "time/token": None}]
    lines += [{"step": 4802, "loss/train/total": math.nan, "cost/usd": None, "metrics/eval/LanguageCrossEntropy": None}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))  # NaN as older runs wrote it
    record = read_run(run)
    assert record.not_finite_since == 4802
    html = write_page([run, crashed_run(tmp_path / "other")]).read_text()
    assert "not finite since step 4,802" in html
    assert "NaN" not in html
    assert "nan" not in html.partition("<body")[2]


def test_the_summary_says_since_when_the_loss_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = crashed_run(tmp_path / "run")
    said = {"train_loss_start": 9.5, "train_loss_end": None, "train_loss_not_finite_since": 5, "eval_loss_start": 9.6}
    summary = {"recipe": "recipe.yaml", "steps": 7, "eval_loss_end": None, **said}
    (run / "summary.json").write_text(json.dumps(summary))
    print_summary(run)
    out = capsys.readouterr().out
    assert "9.500 → not finite since step 5" in out
    assert "9.600 → not finite" in out


def test_a_killed_run_has_its_speed_and_energy_from_the_ledger(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    (run / "summary.json").unlink()
    ledger = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text(ledger.replace('"flops": 0.0', '"flops": 4e18'))
    record = read_run(run)
    active_s = FIRST["train"] + FIRST["data"] + SECOND["train"] + SECOND["data"]
    assert record.bill.total.mfu == pytest.approx(2 * 4e18 / (active_s * 8 * 989.5e12))
    assert record.bill.total.tokens_per_s == pytest.approx(4900 * TOKENS_PER_STEP / active_s)
    assert record.kwh == pytest.approx(2 * 1.1)
    html = write_page([run]).read_text()
    assert f"{record.bill.total.mfu:.1%}" in html
    assert "2.2 kWh" in html


def test_a_run_that_a_callback_ended_is_not_called_finished(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    assert read_run(run).state == "finished"
    (run / "summary.json").write_text('{"steps": 4800, "ended_early": "by one of its callbacks"}')
    assert read_run(run).state == "ended early: by one of its callbacks"


def test_what_diverged_or_is_damaged_is_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = crashed_run(tmp_path / "run")
    (run / "tasks.jsonl").write_text('{"step": 3, "tokens": 9, "tasks": [{"label": "a", "score": Infinity}]}\n')
    (run / "summary.json").write_text('{"steps": 6, "eval_loss_end": 807.5, "tokens_per_s": NaN, "recipe": "r"}')
    print_summary(run)
    assert "perplexity  inf" in capsys.readouterr().out
    assert "not known" in write_page([run]).read_text()
    for damaged in ("3", '{"tasks": [{"score": 0.5, "interval_95": "wide"}]}'):
        (run / "results.json").write_text(f'{{"models": [{damaged}]}}')
        with pytest.raises(ValueError, match="run: a file there is not what a run or an evaluation writes"):
            write_page([run])


def test_padding_is_part_of_the_plan(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("name: text", "name: finetuning", 1))
    (run / "summary.json").write_text('{"steps": 9600}')  # of 4,800 steps' tokens
    record = read_run(run)
    assert record.padding == 2
    (run / "summary.json").unlink()  # killed, or not at its end
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9600}\n')
    assert read_run(run).padding == 2
    (run / "recipe.yaml").write_text(recipe)
    assert read_run(run).padding == 1


def test_dollars_that_are_known_are_not_said_to_be_unknown(tmp_path: Path) -> None:
    run = crashed_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert "Loss against dollars: nothing to draw yet." in write_page([run]).read_text()
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("2.99,", "null,"))
    assert "Loss against dollars: nothing to draw; no rate was known." in write_page([run]).read_text()


def test_runs_have_names_that_tell_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = crashed_run(tmp_path / "e1" / "base"), crashed_run(tmp_path / "e2" / "base")
    assert "2 runs: e1/base, e2/base" in write_page([one, two], tmp_path / "both.html").read_text()
    monkeypatch.chdir(one)
    assert "<title>base</title>" in write_page([Path(".")]).read_text()


def test_charts() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(3, 3) == [3]
    assert ticks(0.013, 0.019)
    assert [short(v, 4) for v in (1.5e12, 2e9, 3_500_000, 25_000, 999, 0.02)] == [
        "1.5 T",
        "2 B",
        "3.5 M",
        "25 k",
        "999",
        "0.02",
    ]
    assert line_chart([Line("one", [], 0)], "x", "y") == ""
    assert line_chart([Line("one", [(1, 1)], 0)], "x", "y") == ""
    flat = line_chart([Line("flat & <low>", [(0, 1), (1, 1)], 0, marked=True)], "x", "y")
    assert "flat &amp; &lt;low&gt;" in flat
    assert "nan" not in flat
    long = line_chart([Line("long", [(i, 1 + 1 / (1 + i)) for i in range(100_000)], 0)], "x", "y")
    assert len(long) < 10_000
    assert share_bar([("all", "train", 1.0), ("none", "lost", 0.0)]).count("<rect") == 1
