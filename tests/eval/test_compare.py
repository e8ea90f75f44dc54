"""Paired comparison and contamination, on results and shards made by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from eval import compare, contamination
from eval.compare import _sign_test, main, paired, read
from eval.contamination import check_shards, hashes
from eval.metrics import paired_interval
from eval.tasks.rows import TaskError

from ..conftest import Command, write_jsonl


def results(folder: Path, name: str, correct: list[int], digest: str = "d") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    task = {"label": "t/0-shot", "score": sum(correct) / len(correct), "examples": len(correct), "digest": digest}
    (folder / "results.json").write_text(json.dumps({"digest": "x", "models": [{"name": name, "tasks": [task]}]}))
    lines = [
        {"model": name, "task": "t/0-shot", "index": i, "prompt": f"question {i}", "correct": c, "chosen": c}
        for i, c in enumerate(correct)
    ]
    write_jsonl(folder / "results.examples.jsonl", lines)
    return folder


def records(correct: list[int]) -> dict[int, dict[str, Any]]:
    return {i: {"correct": c} for i, c in enumerate(correct)}


def test_a_paired_difference() -> None:
    a, b = [1, 0, 0, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0, 1, 1]
    found = paired("t", records(a), records(b))
    assert found.difference == pytest.approx(3 / 8)
    assert found.low < 0 < found.difference < found.high
    assert (found.gained, found.lost) == ([1, 2, 6, 7], [5])
    assert found.p_value == pytest.approx(2 * (1 + 5) / 32)  # at most one of five flips the other way


@pytest.mark.parametrize("shares", [(0.6, 0.1, 0.05, 0.25), (0.02, 0.03, 0.0, 0.95), (0.3, 0.3, 0.1, 0.3)])
def test_an_interval_of_right_and_wrong_covers_the_difference(shares: tuple[float, ...]) -> None:
    """Of 60 pairs drawn with these shares of both, the first alone, the second alone and neither, again and again."""
    drawn = np.random.default_rng(0).choice(4, (2000, 60), p=shares)
    before, after = np.isin(drawn, (0, 1)).astype(int).tolist(), np.isin(drawn, (0, 2)).astype(int).tolist()
    found = [paired_interval(a, b) for a, b in zip(before, after, strict=True)]
    assert np.mean([low <= shares[2] - shares[1] <= high for low, high in found]) > 0.94


def test_the_sign_test_is_exact_and_takes_no_time_for_many_flips() -> None:
    for gained, lost in ((0, 0), (5, 0), (3, 9), (20, 21), (300, 260)):
        n, k = gained + lost, min(gained, lost)
        exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
        assert _sign_test(gained, lost) == _sign_test(lost, gained) == exact
    start = time.perf_counter()
    assert 0.04 < _sign_test(4_900, 5_100) < 0.05
    assert time.perf_counter() - start < 3


def test_an_interval_has_a_width_where_nothing_flips() -> None:
    a, b = [1] * 48 + [0] * 2, [1] * 36 + [0] * 12 + [1] * 2
    (low, high), (other_low, other_high) = paired_interval(b, a), paired_interval(a, b)
    assert 0 < low < 10 / 50 < high
    assert (low, high) == pytest.approx((-other_high, -other_low))
    for same in ([1, 1, 1], [1, 0] * 250):
        low, high = paired_interval(same, same)
        assert low == pytest.approx(-high)
        assert 0 < high < (0.7 if len(same) == 3 else 0.01)
    differences = np.array([0.5, 1.5, 4.0])
    low, high = paired_interval([1.0, 2.0, 3.0], list(np.array([1.0, 2.0, 3.0]) + differences))
    assert (high - low) / 2 == pytest.approx(1.959964 * differences.std(ddof=1) / math.sqrt(3))


def test_numbers_that_are_no_right_or_wrong_are_no_percentages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = paired("t", records([-9.0, -12.5]), records([-8.0, -12.0]))  # type: ignore[list-item]
    assert (found.difference, found.gained, found.lost, found.p_value) == (0.75, [], [], None)
    a, b = results(tmp_path / "a", "one", [3, 4]), results(tmp_path / "b", "two", [4, 6])
    assert main([str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "+1.5" in shown
    assert "t/0-shot gained" not in shown
    assert not re.search(r"\d%", shown)


def test_the_command_shows_what_flipped(tmp_path: Path, run_command: Command) -> None:
    a, b = results(tmp_path / "a", "one", [1, 0, 0, 1]), results(tmp_path / "b", "two", [1, 1, 1, 0])
    shown = run_command("python", "-m", "eval.compare", a, b / "results.json")
    assert shown.returncode == 0, shown.stderr
    for words in ("A: one, B: two", "+25.0%", "t/0-shot gained, example 2: …question 1", "lost, example 4"):
        assert words in shown.stdout
    for folder, name in ((a, "one"), (b, "two")):  # a perplexity judges no example by itself
        content = json.loads((folder / "results.json").read_text())
        content["models"][0]["tasks"].append({"label": "w", "score": 9.0, "examples": 1, "digest": "e"})
        (folder / "results.json").write_text(json.dumps(content))
        with (folder / "results.examples.jsonl").open("a") as file:
            file.write(json.dumps({"model": name, "task": "w", "index": 0, "prompt": "p", "correct": None}) + "\n")
    mixed = run_command("python", "-m", "eval.compare", a, b)
    assert mixed.returncode == 0, mixed.stderr
    assert "not compared, as no example of it is judged by itself: w" in mixed.stdout
    listed = run_command("python", "-m", "eval.compare", a, b, "--json")
    assert json.loads(listed.stdout)[0]["gained"] == [1, 2]


def test_the_table_has_room_where_there_is_no_terminal_and_on_one_of_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(results(tmp_path / name, name, [1, 0] * 50)) for name in ("one", "two")]
    for columns in (None, 80):
        if columns:
            monkeypatch.setattr(compare, "console", lambda: Console(width=80))
        assert main(folders) == 0
        heading, row = capsys.readouterr().out.splitlines()[1:3]
        assert heading.split()[-3:] == ["gained", "lost", "examples"]
        assert row.split()[-3:] == ["0", "0", "100"]


def test_comparisons_that_mean_nothing_are_refused(tmp_path: Path, run_command: Command) -> None:
    a = results(tmp_path / "a", "one", [1, 0])
    for other, words in (
        (results(tmp_path / "b", "two", [1, 1], digest="another"), "answered different questions"),
        (tmp_path / "nothing", "holds no results"),
    ):
        refused = run_command("python", "-m", "eval.compare", a, other)
        assert refused.returncode == 1
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", ":2: not an example: list indices"),
        ('{"model": "m", "task": "t/0-shot", "correct": 1}', ":2: not an example: no 'index'"),
        ('{"model": "m", "task": "t/0-shot", "index": null}', ":2: not an example: int"),
        ('{"model": "m", "task": "t/0-shot", "index": 1, "correct": NaN}', "'correct': got nan, expected a number"),
        ('{"model": "m", "task": "t/0-shot", "index": 1, "correct": [1]}', "'correct': got "),
        ('{"model": "m", "task": [1], "index": 1}', "'task': got "),
        ("", "has 1 examples of t/0-shot, .* says 2"),
    ],
)
def test_examples_that_are_damaged_or_cut_short_are_refused(tmp_path: Path, line: str, words: str) -> None:
    path = results(tmp_path, "m", [1, 0]) / "results.examples.jsonl"
    assert len(read(tmp_path, None)[1]["t/0-shot"]) == 2
    path.write_text(path.read_text().split("\n")[0] + f"\n{line}\n")
    with pytest.raises(ValueError, match=words):
        read(tmp_path, None)


@pytest.mark.parametrize("models", [[], [{"name": "m", "tasks": None}], [{"name": "m", "tasks": [5]}], [5]])
def test_results_that_are_damaged_are_refused(tmp_path: Path, models: list[Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"models": models}))
    with pytest.raises(ValueError, match="holds no results"):
        read(tmp_path, None)


def test_texts_with_other_line_ends_are_read(tmp_path: Path) -> None:
    path = results(tmp_path, "m", [1, 0]) / "results.examples.jsonl"
    path.write_text(path.read_text().replace("question", "a\u2028b\x85"), encoding="utf-8")
    assert read(tmp_path, None)[1]["t/0-shot"][0]["prompt"] == "a\u2028b\x85 0"


def test_hashes_are_those_of_what_is_in_a_row() -> None:
    ids = np.array([5, 6, 7, 8, 5, 6, 7, 9], dtype=np.uint64)
    pairs, found = dict(hashes(ids, {2, 3, 9})).values()  # there are no 9 in a row
    assert len(pairs) == 7
    assert len(found) == 6
    assert found[0] == found[4]
    assert len(set(found.tolist())) == 5
    assert found[2] == dict(hashes(np.array([7, 8, 5], dtype=np.uint64), {3}))[3][0]


def test_contamination_finds_what_is_in_the_shards(
    shards: Path, suite: Path, run_command: Command, tmp_path: Path
) -> None:
    corpus = (shards / "corpus.jsonl").read_text().splitlines()
    held_out = {json.loads(line)["text"] for line in (shards / "val" / "documents.jsonl").read_text().splitlines()}
    trained = next(t for t in (json.loads(line)["text"] for line in corpus) if t not in held_out)
    words = trained.split()
    rows = [
        {"query": " ".join(words[40:80]), "choices": [words[80], "zzz"], "gold": 0},
        {
            "query": "one thing that nobody has ever said in any address so far, or will",
            "choices": ["a", "b"],
            "gold": 0,
        },
    ]
    write_jsonl(tmp_path / "mixed.jsonl", rows)
    short = [{**rows[0], "query": " ".join(words[78:80])}, {**rows[1], "query": "nobody"}]
    write_jsonl(tmp_path / "short.jsonl", short)
    (tmp_path / "tasks.yaml").write_text(
        "icl_tasks:\n"
        + "".join(
            f"  - label: {name}\n    dataset_uri: {tmp_path}/{name}.jsonl\n    icl_task_type: multiple_choice\n"
            f"    num_fewshot: [{shots}]\n"
            for name, shots in (("mixed", 1), ("short", 0))
        )
    )
    options = ["--shards", shards / "val", shards / "train", "--tokenizer", shards / "tokenizer"]
    found = run_command("python", "-m", "eval.contamination", tmp_path / "tasks.yaml", *options)
    assert found.returncode == 0, found.stderr
    assert f"mixed/1-shot: 1 of 2 examples share 13 tokens in a row with {shards}/val, {shards}/train" in found.stdout
    assert "short/0-shot: 1 of 2 examples share" in found.stdout
    assert "(2 shorter, compared whole)" in found.stdout
    assert found.stdout.count("  example 1:") == 2


def test_shards_in_which_nothing_could_be_found_are_refused(shards: Path, tmp_path: Path) -> None:
    class Named:
        name_or_path = str(tmp_path)

    shutil.copy(shards / "tokenizer" / "tokenizer.json", tmp_path)
    assert check_shards(shards / "train", Named())
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert check_shards(shards / "train", Named())  # the same words, saved anew
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"\u0120the"', '"\u0120thé"', 1))
    with pytest.raises(TaskError, match="made with another tokenizer"):
        check_shards(shards / "train", Named())
    with pytest.raises(TaskError, match="holds no shards: it has no index"):
        check_shards(tmp_path, Named())
    (tmp_path / "index.json").write_text('{"shards": []}')
    with pytest.raises(TaskError, match="lists no samples"):
        check_shards(tmp_path, Named())


def test_what_lies_across_two_blocks_of_shards_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "BLOCK", 10)
    monkeypatch.setattr(contamination, "_ids", lambda _: (np.arange(i, i + 4) for i in range(0, 40, 4)))
    blocks = list(contamination._blocks([], 5))
    seen = [tuple(block[i : i + 5].tolist()) for block in blocks for i in range(len(block) - 4)]
    assert seen == [tuple(range(i, i + 5)) for i in range(36)]
    assert len(blocks) > 2


def test_a_question_is_found_where_it_begins_a_line_and_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, int] = {}

    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [words.setdefault(word, len(words)) for word in re.findall(r" ?\S+", text)]}

    task: Any = SimpleNamespace(label="t", examples=[SimpleNamespace(question="one two three")])
    monkeypatch.setattr(contamination, "check_shards", lambda *_: [])
    for text, count in (("one two three four", 1), ("And one two three", 1), ("one two four three", 0)):
        ids = np.array(tokenizer(text)["input_ids"])
        monkeypatch.setattr(contamination, "_ids", lambda _, ids=ids: [ids])
        (found,) = contamination.contaminated([task], tokenizer, ["shards"], tokens=3)
        assert (found["contaminated"], found["too_short"]) == (count, 0)
