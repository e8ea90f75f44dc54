"""An --out that is a URL: made here, copied there, gone on with after a kill, and never half there.

The store is fsspec's `file://`, which goes through the same calls as s3://.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import PrepError
from data_prep.manifest import load_manifest
from data_prep.storage import local_output
from data_prep.uploading import MADE_TO_COPY, UPLOADED, RemoteOutput, work_folder
from tests.data_prep.conftest import tree


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store" / "shards"


@pytest.fixture
def upload(store: Path, tmp_path: Path, prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Prepare into the store."""
    return lambda *words: prepare(*words, "--out", f"file://{store}", "--work", tmp_path / "work")


def test_same_files_as_here(
    corpus: Path, upload: Callable[..., Any], prepare: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    result = upload(corpus, "--holdout", "0.1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "the manifest of 'train' last" in result.stdout
    assert not (tmp_path / "work").exists()
    assert prepare(corpus, "--out", tmp_path / "here", "--holdout", "0.1").returncode == 0
    assert tree(store) == tree(tmp_path / "here")
    assert "already done" in upload(corpus, "--holdout", "0.1").stdout

    refused = upload(corpus)
    assert refused.returncode == 1
    assert f"file://{store}/train was made otherwise:\n  --holdout: 0.1 -> 0.0" in refused.stderr
    (store / "val" / "shard.00000.mds").unlink()
    damaged = upload(corpus, "--holdout", "0.1")
    assert f"file://{store}/val/shard.00000.mds: not there" in damaged.stderr
    assert upload(corpus, "--holdout", "0.1", "--overwrite").returncode == 0
    assert tree(store) == tree(tmp_path / "here")
    assert upload(corpus, "--overwrite", "--dtype", "int32").returncode == 0
    assert json.loads((store / "train" / "manifest.json").read_text())["dtype"] == "int32"


def test_what_others_wrote_is_left_alone(corpus: Path, upload: Callable[..., Any], store: Path) -> None:
    (store / "train").mkdir(parents=True)
    (store / "train" / "index.json").write_text("{}")
    for options in ([], ["--overwrite"]):
        result = upload(corpus, *options)
        assert result.returncode == 1
        assert "train was not written by this command (no manifest.json in it)" in result.stderr
    assert tree(store) == {"train/index.json": b"{}"}


def test_an_upload_that_is_cut_off_goes_on(
    corpus: Path, prepare: Callable[..., Any], upload: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    assert prepare(corpus, "--out", work, "--holdout", "0.1").returncode == 0
    expected = tree(work)
    (work / MADE_TO_COPY).touch()
    manifest = load_manifest(work / "val")
    assert manifest is not None
    shutil.copytree(work / "val", store / "val")  # as if the run had been killed behind the held-out split
    lines = [
        {"url": f"file://{store}", "key": f"val/{record.name}", "sha256": record.sha256}
        for record in (*manifest.shards, *manifest.files)
    ]
    (work / UPLOADED).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"url": "fi')
    noted = (work / UPLOADED).read_text()
    begun = json.dumps({"url": f"file://{store}", "begun": ["val", "train"], "replaced": []})
    (work / UPLOADED).write_text(f"{begun}\n{noted}")
    before = (store / "val" / "shard.00000.mds").stat().st_mtime_ns
    result = upload(corpus, "--holdout", "0.1")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(store) == expected
    assert (store / "val" / "shard.00000.mds").stat().st_mtime_ns == before
    assert not work.exists()


def test_files_and_splits_of_others_stay(
    corpus: Path, upload: Callable[..., Any], prepare: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    (store / "train").mkdir(parents=True)
    source = Path(shutil.copy(corpus, store / "train" / "a.jsonl"))
    for options in ([], ["--overwrite"]):
        refused = upload(source, *options)
        assert refused.returncode == 1
        assert "train was not written by this command" in refused.stderr
    assert tree(store) == {"train/a.jsonl": corpus.read_bytes()}
    source.unlink()

    assert upload(corpus, "--holdout", "0.1").returncode == 0
    before = tree(store)
    for options in ([], ["--overwrite"]):
        refused = upload(corpus, "--split", "extra", "--holdout", "0.05", *options)
        assert refused.returncode == 1
        assert f"file://{store}/val belongs to file://{store}/train" in refused.stderr
    assert tree(store) == before

    (store / "val" / "notes.md").write_text("mine")
    assert upload(corpus, "--overwrite").returncode == 0  # without a held-out split: the old one would be trained on
    assert sorted(tree(store)) == ["train/index.json", "train/manifest.json", "train/shard.00000.mds", "val/notes.md"]


def test_a_replacement_that_is_cut_off_goes_on(
    corpus: Path, upload: Callable[..., Any], prepare: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    assert upload(corpus, "--holdout", "0.1").returncode == 0
    assert prepare(corpus, "--out", tmp_path / "here", "--dtype", "int32").returncode == 0
    expected = tree(tmp_path / "here")
    store.chmod(0o755)
    blocked = store / "train" / "shard.00000.mds"
    blocked.unlink()
    blocked.mkdir()  # the copy fails here, when the old manifest is gone
    failed = upload(corpus, "--overwrite", "--dtype", "int32")
    assert failed.returncode == 1
    assert not (store / "train" / "manifest.json").exists()
    blocked.rmdir()
    result = upload(corpus, "--dtype", "int32")
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(store) == expected


def test_a_store_that_fails_is_words(corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    result = prepare(corpus, "--out", "nothing://bucket/x", "--work", tmp_path / "work")
    assert result.returncode == 1
    assert "unknown scheme nothing://" in result.stderr
    result = prepare(corpus, "--out", "file:///proc/none/x", "--work", tmp_path / "work")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert (tmp_path / "work" / "train" / "manifest.json").exists()  # what was made is kept


def test_shards_that_stood_in_the_work_folder_stay(
    corpus: Path, prepare: Callable[..., Any], upload: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    assert prepare(corpus, "--out", tmp_path / "work").returncode == 0
    before = tree(tmp_path / "work")
    assert upload(corpus).returncode == 0
    assert tree(tmp_path / "work") == before == tree(store)


@pytest.mark.parametrize("url", ["s3://", "gs:///", "://x/y", "memory://x/y"])
def test_a_url_that_names_no_place_is_words(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrepError, match=f"--out {url}: "):
        RemoteOutput(url)
    with pytest.raises(PrepError, match="expected a path on this machine"):
        local_output(url)
    assert not list(tmp_path.iterdir())


def test_where_it_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert work_folder("s3://a/b", None).parent == tmp_path / "data_prep"
    assert work_folder("s3://a/b", None) != work_folder("s3://a/c", None)
    assert RemoteOutput(f"file://{tmp_path}/x/").url == f"file://{tmp_path}/x"
