"""What is shown of shards is what is in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_prep.inspect import BORDER, decode_with_borders, document_lengths, main, shorten
from data_prep.mds import read_index, token_stream
from tests.conftest import Command


def test_shown(finished: Path, texts: list[str], tokenizer: Path, run_command: Command) -> None:
    result = run_command("python", "-m", "data_prep.inspect", finished, "--samples", "99", "--characters", "0")
    assert (result.returncode, result.stderr) == (0, "")
    manifest = json.loads((finished / "train" / "manifest.json").read_text())
    assert f"{manifest['sequences']:,} samples in 1 shards" in result.stdout
    assert f"{manifest['documents']:,} documents" in result.stdout
    assert result.stdout.count("sample 99 of 99") == 2
    assert "<|endoftext|>" + BORDER in result.stdout
    text = result.stdout.split("sample 1 of 99:\n", 1)[1].split("\n\nsample 2", 1)[0]
    first = text.split("<|endoftext|>" + BORDER)
    assert any(document.startswith(first[0]) for document in texts)
    one = run_command("python", "-m", "data_prep.inspect", finished / "val", "--samples", "0")
    assert one.returncode == 0
    assert str(finished / "train") not in one.stdout


def test_lengths_are_those_of_the_documents(finished: Path, texts: list[str], tokenizer: Path) -> None:
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    held = {json.loads(row)["text"] for row in (finished / "val" / "documents.jsonl").read_text().splitlines()}
    expected = [len(encode(text).ids) + 1 for text in texts if text not in held]
    entries = read_index(finished / "train")
    found = document_lengths(entries, [0]).tolist()
    assert found == expected[: len(found)]
    assert len(found) >= len(expected) - 3  # those in the tokens left over at the end
    stream = np.concatenate(list(token_stream(entries)))
    pair = stream[1000:1002].tolist()
    ends = [n + 2 for n in range(len(stream) - 1) if stream[n : n + 2].tolist() == pair]
    assert document_lengths(entries, pair).tolist() == np.diff([0, *ends]).tolist()


def test_lengths_where_the_border_stands_in_front(tmp_path: Path, corpus: Path, tokenizer: Path, prepare: Any) -> None:
    words = ("--bos-text", "<|endoftext|>", "--eos-text", "")
    assert prepare(corpus, "--out", tmp_path / "out", *words).returncode == 0
    assert prepare(corpus, "--out", tmp_path / "behind").returncode == 0
    front = document_lengths(read_index(tmp_path / "out" / "train"), [0], opening=1).tolist()
    behind = document_lengths(read_index(tmp_path / "behind" / "train"), [0]).tolist()
    assert front == behind[: len(front)]
    assert len(front) >= len(behind) - 1


def test_lengths_where_one_id_stands_in_front_and_behind(
    tmp_path: Path, corpus: Path, prepare: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(corpus, "--out", tmp_path / "both", "--bos-text", "<|endoftext|>").returncode == 0
    assert prepare(corpus, "--out", tmp_path / "behind").returncode == 0
    both = document_lengths(read_index(tmp_path / "both" / "train"), [0, 0], opening=1).tolist()
    behind = document_lengths(read_index(tmp_path / "behind" / "train"), [0]).tolist()
    assert both == [length + 1 for length in behind[: len(both)]]
    assert len(both) >= len(behind) - 1
    assert main([str(tmp_path / "both"), "--samples", "0"]) == 0
    assert f"  {len(both):,} document borders; tokens a document: shortest {min(both):,}" in capsys.readouterr().out


def test_borders_in_front(tokenizer: Path) -> None:
    loaded = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ids = np.array([0, *loaded.encode("one").ids, 0, *loaded.encode("two").ids], dtype=np.uint16)
    assert decode_with_borders(loaded, ids, [0], opening=1) == f"<|endoftext|>one{BORDER}<|endoftext|>two"
    assert decode_with_borders(loaded, ids, [], opening=0) == "<|endoftext|>one<|endoftext|>two"
    assert shorten("abcdefgh", 4) == "ab\n[… 4 characters …]\ngh"


def test_refusals_are_words(finished: Path, tokenizer: Path, tmp_path: Path, run_command: Callable[..., Any]) -> None:
    def said(*words: str | Path) -> str:
        result = run_command("python", "-m", "data_prep.inspect", *words)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        return str(result.stderr)

    assert "no such folder" in said(tmp_path / "none")
    assert "no index.json in it" in said(tmp_path)
    copy = Path(shutil.copytree(finished / "train", tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    assert "give --tokenizer" in said(copy)
    assert run_command("python", "-m", "data_prep.inspect", copy, "--tokenizer", tokenizer).returncode == 0
    other = Path(shutil.copytree(tokenizer, tmp_path / "other"))
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    assert "and the shards were made with" in said(finished, "--tokenizer", other)


def test_damage_in_words(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tmp_path / "shards"
    index, shard = shards / "val" / "index.json", shards / "val" / "shard.00000.mds"
    whole = json.loads((finished / "val" / "index.json").read_text())
    entry = whole["shards"][0]
    for content in (
        b"\xff\x00",
        b"[1]",
        b"{}",
        b'{"shards": [3]}',
        json.dumps({"shards": [{**entry, "samples": "x"}]}).encode(),
    ):
        shutil.copytree(finished, shards, dirs_exist_ok=True)
        index.write_bytes(content)
        assert main([str(shards / "val")]) == 1
        assert f"error: {index}: not " in capsys.readouterr().err
    for start in (0, 4, 100, 300, 600, 5000):
        shutil.copytree(finished, shards, dirs_exist_ok=True)
        content = bytearray(shard.read_bytes())
        content[start : start + 400] = b"\xff" * 400
        shard.write_bytes(content)
        status, said = main([str(shards / "val"), "--samples", "99"]), capsys.readouterr().err
        assert status == 0 or "damaged" in said  # ids alone can be any
    shard.write_bytes(shard.read_bytes()[:40])
    assert main([str(shards / "val")]) == 1
    assert f"error: {shard} is damaged (its list of samples is cut short)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("index.json", ("shards", 0, "samples"), 10**30),
        ("index.json", ("shards", 0, "column_encodings", 0), None),
        ("index.json", ("shards", 0, "column_names", 0), 3),
        ("index.json", ("shards", 0, "column_sizes", 0), "many"),
        ("index.json", ("shards", 0, "raw_data", "basename"), []),
        ("manifest.json", ("separators",), {"before": []}),
    ],
)
def test_a_damaged_index_or_manifest_is_said(
    file: str,
    keys: tuple[Any, ...],
    value: object,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished / "train", tmp_path / "train")
    content = json.loads((tmp_path / "train" / file).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (tmp_path / "train" / file).write_text(json.dumps(content))
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path / 'train' / file}: not a" in capsys.readouterr().err
