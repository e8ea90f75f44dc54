"""Mixtures: what is told of them is what streaming draws."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.mixture import main
from recipes.config.load import load
from recipes.training.loaders_lock import loaders_lock
from tests.conftest import Command

DRAW = """
import collections, json, sys, yaml
from streaming import Stream, StreamingDataset
given = yaml.safe_load(open(sys.argv[1]))["train_loader"]["dataset"]
streams = {name: Stream(**values) for name, values in given["streams"].items()}
data = StreamingDataset(streams=list(streams.values()), epoch_size=given["epoch_size"], shuffle=True, batch_size=1)
drawn = collections.Counter()
first = {row.tobytes(): name for n, name in enumerate(streams) for row in
         (data[i]["tokens"] for i in range(data.sample_offset_per_stream[n],
                                           data.sample_offset_per_stream[n] + data.samples_per_stream[n]))}
for sample in data:
    drawn[first[sample["tokens"].tobytes()]] += 1
print(json.dumps(drawn))
"""


@pytest.fixture
def sources(
    prepare: Callable[..., Any], jsonl: Callable[..., Path], texts: list[str], tmp_path: Path
) -> dict[str, dict[str, Any]]:
    """Two prepared sources; their manifests."""
    found = {}
    for name, some in (("web", texts[:150]), ("code", texts[150:])):
        rows = jsonl([{"text": text} for text in some], f"{name}.jsonl")
        assert prepare(rows, "--out", tmp_path / name, "--holdout", "0.1").returncode == 0
        found[name] = json.loads((tmp_path / name / "train" / "manifest.json").read_text())
    return found


def test_told_and_drawn(sources: dict[str, dict[str, Any]], tmp_path: Path, run_command: Command) -> None:
    tokens = 3 * sources["code"]["tokens"]
    out = tmp_path / "mix.yaml"
    words = (f"{tmp_path}/web=1", f"{tmp_path}/code/=3", "--tokens", str(tokens), "--out", out)
    result = run_command("python", "-m", "data_prep.mixture", *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "code: 75.0% = " in result.stdout
    assert f"tokens of {sources['code']['tokens']:,}: 2.25 epochs" in result.stdout
    assert "note" not in result.stdout
    value = yaml.safe_load(out.read_text())
    assert value["tokenizer"]["name"] == str(Path(sources["web"]["tokenizer"]["path"]).parent)
    held_out = {loader["label"]: loader["dataset"] for loader in value["eval_loader"]}
    assert {label: (d["local"], d["split"]) for label, d in held_out.items()} == {
        name: (str(tmp_path / name), "val") for name in ("web", "code")
    }
    assert value["train_loader"]["dataset"]["epoch_size"] == round(tokens / 64)

    with loaders_lock():
        drawn = run_command("python", "-c", DRAW, out)
    assert drawn.returncode == 0, drawn.stderr
    counts = json.loads(drawn.stdout.splitlines()[-1])
    samples = round(tokens / 64)
    assert abs(counts["web"] - samples / 4) <= 1
    assert abs(counts["code"] - samples * 3 / 4) <= 1
    assert "is there already" in run_command("python", "-m", "data_prep.mixture", *words).stderr


def test_without_tokens_nothing_is_repeated(
    sources: dict[str, dict[str, Any]], tmp_path: Path, run_command: Command
) -> None:
    words = (f"{tmp_path}/web=0.5", f"{tmp_path}/code=0.5", "--out", tmp_path / "mix.yaml")
    result = run_command("python", "-m", "data_prep.mixture", *words)
    odd = tmp_path / 'a"b: #c\u2028\x85\x7f\x01\t\n\ufeff日本😀\\'
    odd.symlink_to(tmp_path / "web")
    quoted = run_command("python", "-m", "data_prep.mixture", f"{odd}=1", "--out", tmp_path / "odd.yaml")
    assert quoted.returncode == 0, quoted.stderr
    read: Any = load(tmp_path / "odd.yaml", ["max_seq_len=64", "seed=1"])
    assert [stream["local"] for stream in read["train_loader"]["dataset"]["streams"].values()] == [str(odd)]
    (stream,) = yaml.safe_load((tmp_path / "odd.yaml").read_text())["train_loader"]["dataset"]["streams"].values()
    assert stream["local"] == str(odd)
    for folder in ("a/web-2", "b/web", "2024", "1e5"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "web", tmp_path / folder)
    words = ("a/web-2=1", "b/web=1", "web=1", "2024=1", "1e5=1", "--out", "names.yaml")
    assert run_command("python", "-m", "data_prep.mixture", *words, cwd=tmp_path).returncode == 0
    recipe: Any = load(tmp_path / "names.yaml", ["max_seq_len=64", "seed=1"])  # as train.py reads it
    streams = recipe["train_loader"]["dataset"]["streams"]
    assert list(streams) == ["web-2", "web", "web-3", "2024", "1e5"]
    assert streams["1e5"]["local"] == "1e5"
    assert streams["2024"]["local"] == "2024"
    least = min(manifest["tokens"] for manifest in sources.values())
    assert f"50.0% = {least:,} tokens of {least:,}: 1.00 epochs" in result.stdout


def test_refusals_are_words(
    sources: dict[str, dict[str, Any]], prepare: Callable[..., Any], corpus: Path, tmp_path: Path, run_command: Command
) -> None:
    assert prepare(corpus, "--out", tmp_path / "longer", "--seq-len", "64").returncode == 0
    changed = json.loads((tmp_path / "longer" / "train" / "manifest.json").read_text())
    (tmp_path / "longer" / "train" / "manifest.json").write_text(json.dumps({**changed, "seq_len": 128}))
    for name, separators in (("other", {"before": [], "after": [1]}), ("${x}", None)):
        copied = Path(shutil.copytree(tmp_path / "web", tmp_path / name)) / "train" / "manifest.json"
        value = json.loads(copied.read_text())
        copied.write_text(json.dumps({**value, "separators": separators or value["separators"]}))
    for words, said in (
        (
            [f"{tmp_path}/web=1", f"{tmp_path}/other=2"],
            "were made with another separator of documents: {'before': [], 'after': [1]} and",
        ),
        ([f"{tmp_path}/${{x}}=1"], "recipes take ${...} for a variable; give a name without it"),
        ([f"{tmp_path}/web"], "expected FOLDER=SHARE with a share above 0"),
        ([f"{tmp_path}/web=-1"], "expected FOLDER=SHARE with a share above 0"),
        ([f"{tmp_path}/none=1"], "its main splits: none"),
        ([f"{tmp_path}/web=1", f"{tmp_path}/web=2"], "is given twice"),
        ([f"{tmp_path}/web=1", f"{tmp_path}/longer=2"], "were made with another --seq-len: 128 and 64"),
        ([f"{tmp_path}/web=1", "--tokens", "0"], "--tokens 0: expected the tokens of a run"),
    ):
        result = run_command("python", "-m", "data_prep.mixture", *words, "--out", tmp_path / "mix.yaml")
        assert result.returncode == 1
        assert said in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "mix.yaml").exists()
    words = (f"{tmp_path}/web=1", "--overwrite", "--out", corpus)
    assert "expected a file named .yaml" in run_command("python", "-m", "data_prep.mixture", *words).stderr


def test_sources_that_hold_out_other_shares_are_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, holdout in (("one", 0.1), ("two", 0.05)):
        path = Path(shutil.copytree(finished, tmp_path / name)) / "train" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "options": {**manifest["options"], "holdout": holdout}}))
    assert main([f"{tmp_path}/one=1", f"{tmp_path}/two=1", "--out", str(tmp_path / "mix.yaml")]) == 0
    assert "note: one was made with --holdout 0.1 and two with 0.05: documents" in capsys.readouterr().out


def test_a_full_disk_leaves_the_old_file(
    sources: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "mix.yaml"
    out.write_text("old: 1\n")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([f"{tmp_path}/web=1", "--out", str(out), "--overwrite"]) == 1
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert out.read_text() == "old: 1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
