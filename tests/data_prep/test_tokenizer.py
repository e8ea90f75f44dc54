"""The tokenizer command: what it writes, that it is deterministic, and that it never saw what is held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from data_prep.holdout import is_held_out
from tests.conftest import Command
from tests.data_prep.conftest import tree


@pytest.fixture
def train(run_command: Command) -> Callable[..., Any]:
    def run(*words: str | Path, **options: Any) -> Any:
        return run_command("python", "-m", "data_prep.tokenizer", *words, **options)

    return run


def test_transformers_loads_it(tokenizer: Path, texts: list[str]) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert loaded.is_fast
    assert len(loaded) == 512
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id) == (0, 0, 0, 1)
    assert loaded("<|endoftext|>")["input_ids"] == [0]
    assert loaded.vocab_size + len(loaded.get_added_vocab()) >= 512
    for text in [*texts, "\x00\x7f  ﬁ e\u0301 \u2028 \U0001d518\r\n"]:
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_says_bytes_a_token(train: Callable[..., Any], corpus: Path, texts: list[str], tmp_path: Path) -> None:
    result = train(corpus, "--out", tmp_path / "t", "--vocab-size", "300", "--holdout", "0.1")
    assert result.returncode == 0, result.stderr
    trained = [text for text in texts if not is_held_out(text, 0.1)]
    size = sum(len(text.encode()) for text in trained)
    assert f"300 tokens, from {len(trained)} documents, {size:,} bytes" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in trained)
    assert f"{size / tokens:.3f} bytes/token on {size:,} bytes of them = {tokens:,} tokens" in result.stdout


def test_same_bytes_from_any_number_of_threads(
    train: Callable[..., Any], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    for name, env in (
        ("one", {"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "1"}),
        ("three", {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "2"}),
    ):
        assert train(corpus, "--out", tmp_path / name, "--vocab-size", "512", env=env).returncode == 0
        assert tree(tmp_path / name) == tree(tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three"]  # nothing hidden is left


def test_held_out_documents_are_not_seen(train: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"text": f"{n} to the {n}th"} for n in range(400)]
    kept = [row for row in rows if not is_held_out(row["text"], 0.2)]
    assert len(kept) < len(rows)
    for name, source in (("all", rows), ("kept", kept)):
        path = jsonl(source, f"{name}.jsonl")
        assert train(path, "--out", tmp_path / name, "--vocab-size", "300", "--holdout", "0.2").returncode == 0
    assert tree(tmp_path / "all")["tokenizer.json"] == tree(tmp_path / "kept")["tokenizer.json"]


def test_again_otherwise_and_over(train: Callable[..., Any], corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    assert train(corpus, "--out", out, "--vocab-size", "300").returncode == 0
    before = tree(out)
    assert "already done" in train(corpus, "--out", out, "--vocab-size", "300").stdout
    refused = train(corpus, "--out", out, "--vocab-size", "301", "--holdout", "0.1")
    assert refused.returncode == 1
    assert "was made with another --holdout, another --vocab-size" in refused.stderr
    assert tree(out) == before
    assert train(corpus, "--out", out, "--vocab-size", "301", "--overwrite").returncode == 0
    assert json.loads((out / "training.json").read_text())["made"]["vocab_size"] == 301


def test_too_little_text_is_said(train: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> None:
    result = train(jsonl([{"text": "abab abab"}]), "--out", tmp_path / "t", "--vocab-size", "1000")
    assert result.returncode == 0
    assert "not 1,000: no other pair occurs twice" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.jsonl", "--out", "t", "--vocab-size", "300"], "none.jsonl: no such file or folder"),
        (["rows.jsonl", "--out", "t", "--vocab-size", "300"], "rows.jsonl:2: 'text' is a number, expected a string"),
        (["rows.jsonl", "--out", "t", "--vocab-size", "257"], "--vocab-size 257: expected 258 or more"),
        (["rows.jsonl", "--out", "t", "--vocab-size", "300", "--holdout", "1"], "--holdout 1: expected a fraction"),
        (["rows.jsonl", "--out", "", "--vocab-size", "300"], "--out '': expected a path to write to"),
        (["rows.jsonl", "--out", "theirs", "--vocab-size", "300"], "holds something that this command did not write"),
    ],
)
def test_refusals_are_words(
    words: list[str], said: str, train: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    jsonl([{"text": "abc"}, {"text": 3}])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "training.json").write_text("{}")  # another program's
    result = train(*words, cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "theirs"]
