"""Damaged shards are found, by their size in no time and by their digest when asked."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import verify
from data_prep.manifest import MANIFEST, load_manifest, shard_problems
from recipes.config.check import load_checked
from recipes.config.keys import RecipeError
from recipes.preflight.training import preflight
from tests.conftest import ROOT, Command


@pytest.fixture
def shards(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "shards"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_whole(finished: Path, run_command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_command("python", "-m", "data_prep.verify", finished)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 splits are whole" in result.stdout
    here = run_command("python", "-m", "data_prep.verify", ".", cwd=finished / "train")
    assert (here.returncode, here.stderr) == (0, "")
    assert verify.main([str(finished / "val")]) == 0
    assert "1 splits are whole" in capsys.readouterr().out
    second = shutil.copytree(finished, tmp_path / "second")
    assert verify.main([str(finished / "val"), str(second)]) == 0
    assert "3 splits are whole" in capsys.readouterr().out
    flip(second / "val" / "shard.00000.mds")
    assert verify.main([str(finished / "val"), str(second)]) == 1
    assert f"corrupt shard {second / 'val'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("train/shard.00000.mds", flip, "corrupt shard {}"),
        ("train/shard.00000.mds", cut, "missing or truncated shard {}: "),
        ("val/shard.00000.mds", Path.unlink, "missing or truncated shard {}: not there"),
        ("val/documents.jsonl", flip, "corrupt file {}"),
        ("train/index.json", flip, "corrupt file {}"),
    ],
)
def test_damage(name: str, damage: Callable[[Path], Any], said: str, shards: Path, run_command: Command) -> None:
    damage(shards / name)
    result = run_command("python", "-m", "data_prep.verify", shards)
    assert result.returncode == 1
    assert said.format(shards / name) in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_split_and_missing_manifest(shards: Path, tmp_path: Path, run_command: Command) -> None:
    shutil.rmtree(shards / "val")
    result = run_command("python", "-m", "data_prep.verify", shards)
    assert result.returncode == 1
    assert f"missing split {shards / 'val'}" in result.stderr
    (shards / "train" / MANIFEST).write_text("{")
    assert "not a manifest this version can read" in run_command("python", "-m", "data_prep.verify", shards).stderr
    for folder, words in ((tmp_path / "none", "no such folder"), (tmp_path, "no manifest.json in it")):
        result = run_command("python", "-m", "data_prep.verify", folder)
        assert result.returncode == 1
        assert words in result.stderr


def test_problems_by_size(shards: Path) -> None:
    manifest = load_manifest(shards / "train")
    assert manifest is not None
    assert shard_problems(shards / "train", manifest) == []
    flip(shards / "train" / "shard.00000.mds")
    assert shard_problems(shards / "train", manifest) == []  # only the digest tells
    cut(shards / "train" / "shard.00000.mds")
    size = manifest.shards[0].bytes
    path = shards / "train" / "shard.00000.mds"
    expected = f"missing or truncated shard {path}: {size - 1:,} bytes, expected {size:,}"
    assert shard_problems(shards / "train", manifest) == [expected]


def test_no_manifest_and_unknown_ones(tmp_path: Path, shards: Path) -> None:
    assert load_manifest(tmp_path / "none") is None
    assert load_manifest(tmp_path) is None
    value = json.loads((shards / "train" / MANIFEST).read_text())
    for changed in ({**value, "version": 2}, {**value, "extra": 1}, {"version": 1}, []):
        (shards / "train" / MANIFEST).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="not a manifest this version can read"):
            load_manifest(shards / "train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seq_len": "abc"}, 'seq_len: got "abc", expected int'),
        ({"tokens": None}, "tokens: got null, expected int"),
        ({"documents": True}, "documents: got true, expected int"),
        ({"splits": 3}, "splits: got 3, expected list"),
        ({"splits": [1]}, "splits: got 1, expected str"),
        ({"sources": "x"}, 'sources: got "x", expected list'),
        ({"shards": [3]}, "shards: got 3, expected dict"),
        ({"shards": [{"name": "a", "bytes": "many", "sha256": "", "samples": 1}]}, "shards.bytes: got"),
        ({"separators": {"before": [], "after": ["x"]}}, 'separators: got "x", expected int'),
        ({"left_out": {"too short": 1.5}}, "left_out: got 1.5, expected int"),
        ({"tokenizer": None}, "tokenizer: got null, expected dict"),
        ({"loss_tokens": []}, "loss_tokens: got [], expected int or null"),
        ({"seq_len": 0}, "a seq_len above 0"),
    ],
)
def test_fields_of_other_types(changes: dict[str, Any], said: str, shards: Path) -> None:
    path = shards / "train" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=re.escape(f"{path}: not a manifest this version can read (")) as error:
        load_manifest(shards / "train")
    assert said in str(error.value)


@pytest.mark.parametrize("module", ["verify", "inspect", "mixture"])
@pytest.mark.parametrize("content", [b"\xff\x00" * 500, b"", b"[" * 100_000, b"null"])
def test_garbage_in_words(
    module: str, content: bytes, shards: Path, run_command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards / "train" / MANIFEST).write_bytes(content)
    main = importlib.import_module(f"data_prep.{module}").main
    words = {"mixture": [f"{shards}=1", "--out", str(shards / "m.yaml")]}.get(module, [str(shards / "train")])
    assert main(words) == 1
    assert f"{shards / 'train' / MANIFEST}: not a manifest this version can read (" in capsys.readouterr().err
    long_name = "x" * 300
    words = {"mixture": [f"{long_name}=1", "--out", str(shards / "m.yaml")]}.get(module, [long_name])
    assert main(words) == 1
    assert "x" * 300 in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train/index.json", None, "index.json cannot be read ("),  # of the same size, so that only reading tells
        ("train/manifest.json", b"\xff\x00" * 500, "manifest.json: not a manifest this version can read ("),
        (
            "train/manifest.json",
            b'{"version": 1, "seq_len": "x"}',
            "manifest.json: not a manifest this version can read (",
        ),
        ("train/shard.00000.mds", b"", "missing or truncated shard"),
    ],
)
def test_training_hears_it_before_it_begins(name: str, content: bytes | None, said: str, shards: Path) -> None:
    path = shards / name
    path.write_bytes(b"\xfe" * path.stat().st_size if content is None else content)
    where = [f"train_loader.dataset.local={shards}", "train_loader.dataset.split=train", "max_seq_len=64"]
    texts = [problem.text for problem in preflight(load_checked(ROOT / "yamls/pretrain/mpt-quickstart.yaml", where))]
    assert any(str(path) in text and said in text for text in texts), texts
    where[0] = f"train_loader.dataset.local={'x' * 300}"
    with pytest.raises(RecipeError, match="255 are possible"):
        load_checked(ROOT / "yamls/pretrain/mpt-quickstart.yaml", where)


def test_manifest_and_commands_import_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "streaming", "llmfoundry", "pyarrow", "datasets", "rich", "huggingface_hub"}
    for module, also in (("data_prep.manifest", {"numpy", "tokenizers"}), ("data_prep.pretrain", set())):
        code = f"import sys, {module}; print(*sys.modules)"
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert not (heavy | also) & set(result.stdout.split())


def test_names_that_a_terminal_cannot_show_are_escaped(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / os.fsdecode(b"w\xff \xe6\x97\xa5")))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1", errors="strict"))
    assert verify.main([str(folder)]) == 0
    sys.stdout.flush()
    assert rb"/w\udcff \u65e5/train: 1 shards" in written.getvalue()
