"""A small corpus and a tokenizer trained on it by the real command, once for all tests here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.engines import EngineSettings
from data_prep.sources import sha256_of_file
from tests.conftest import ROOT, Command

CORPUS = ROOT / "data_prep" / "sotu" / "addresses.jsonl"
VOCAB_SIZE = 512

Rows = Sequence["dict[str, Any] | bytes"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """200 documents of 20 to 3,000 characters, some with characters of 2, 3 and 4 bytes."""
    rng = random.Random(0)
    addresses = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    documents = []
    for number in range(200):
        address = rng.choice(addresses)
        start = rng.randrange(len(address) - 3000) if len(address) > 3000 else 0
        documents.append(address[start : start + rng.choice((20, 200, 1000, 3000))] + f"\n\n{number} naïve “日本” 😀\t")
    return documents


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """The documents as JSONL."""
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    rows = [json.dumps({"id": number, "text": text}, ensure_ascii=number % 2 == 0) for number, text in enumerate(texts)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, corpus: Path, run_command: Command) -> Path:
    """A tokenizer of 512 tokens."""
    out = tmp_path_factory.mktemp("tokenizer") / "bpe512"
    result = run_command("python", "-m", "data_prep.tokenizer", corpus, "--out", out, "--vocab-size", str(VOCAB_SIZE))
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Path, run_command: Command) -> Path:
    """One finished output, with a held-out part. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("finished") / "shards"
    words = ("--out", out, "--tokenizer", tokenizer, "--seq-len", "64", "--holdout", "0.1")
    result = run_command("python", "-m", "data_prep.pretrain", corpus, *words)
    assert result.returncode == 0, result.stderr
    assert "sequences of 64 tokens" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr  # no bar without a terminal
    return out


@pytest.fixture
def prepare(run_command: Command, tokenizer: Path) -> Callable[..., Any]:
    """Run `python -m data_prep.pretrain` with this tokenizer, sequences of 64 tokens and further words."""

    def run(*words: str | Path, **options: Any) -> Any:
        common = ("--tokenizer", tokenizer, "--seq-len", "64")
        return run_command("python", "-m", "data_prep.pretrain", *words, *common, **options)

    return run


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (objects, or bytes as they are) into a JSONL file."""

    def write(rows: Rows, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
        return path

    return write


def engine_settings(name: str, path: str | Path, allow_special: bool = False) -> EngineSettings:
    """Settings of an engine for the tokenizer.json that is at a path now."""
    return EngineSettings(name, str(path), sha256_of_file(path), allow_special)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
