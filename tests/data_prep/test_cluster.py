"""--engine ray: the bytes of a run on one machine, also where a node dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.cluster import _check_node, _versions
from data_prep.errors import Interrupted
from data_prep.staging import PLAN
from tests.conftest import ROOT
from tests.data_prep.conftest import tree

NODE_OPTIONS = {"num_cpus": 1, "object_store_memory": 80 << 20}
# Notes which node looks at a document, and takes its time.
FILTER = """
import sys, time

def keep(row):
    time.sleep(0.002)
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        with open({folder!r} + "/" + ray.get_runtime_context().get_node_id(), "a") as file:
            file.write(".")
    return row["id"] % 7 != 0
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each, as far as Ray knows."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={**NODE_OPTIONS, "include_dashboard": False})
    made.add_node(**NODE_OPTIONS)
    yield made
    made.shutdown()


def test_a_node_dies_half_way(
    cluster: Any, corpus: Path, tokenizer: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "keep.py").write_text(FILTER.format(folder=str(tmp_path / "nodes")))
    large = tmp_path / "large.jsonl"
    large.write_bytes(corpus.read_bytes() * 10)
    options = ["--filter", f"{tmp_path}/keep.py:keep", "--holdout", "0.1", "--part-mb", "0.05", "--dedup"]
    local = prepare(large, "--out", tmp_path / "local", *options, "--workers", "2")
    assert local.returncode == 0, local.stderr

    out = tmp_path / "ray"
    words = [sys.executable, "-m", "data_prep.pretrain", str(large), "--out", str(out), *options]
    words += ["--tokenizer", str(tokenizer), "--seq-len", "64", "--engine", "ray", "--ray-address", cluster.address]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        seen = tmp_path / "nodes"
        while process.poll() is None and (len(finished(out)) < 8 or len(list(seen.iterdir())) < 2):
            time.sleep(0.01)
        at_the_kill = len(finished(out))
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        said, complained = process.communicate(timeout=120)
    assert (process.returncode, complained) == (0, "")
    assert len(list(seen.iterdir())) == 2  # both nodes had work
    assert 8 <= at_the_kill < 40  # of about 90
    assert tree(out) == tree(tmp_path / "local")
    assert "workers: " in said


def finished(out: Path) -> list[Path]:
    return list((out / ".preparing" / "parts").glob("[0-9]*"))


def test_bad_rows_and_bad_addresses_in_words(
    cluster: Any, prepare: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = jsonl([{"text": "good text " * 400}] * 50 + [b'{"text": 3}\n'] + [{"text": "more"}] * 10)
    common = ("--out", tmp_path / "out", "--part-mb", "0.02")
    result = prepare(rows, *common, "--engine", "ray", "--ray-address", cluster.address)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {rows}:51: 'text' is a number, expected a string.")
    assert not (tmp_path / "out").exists()

    for address in ("nowhere", "127.0.0.1:1"):
        result = prepare(rows, *common, "--engine", "ray", "--ray-address", address)
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: --engine ray: no cluster at {address} (")
        assert "ray start --head" in result.stderr


def test_ray_is_an_extra(prepare: Callable[..., Any], corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = prepare(corpus, "--out", tmp_path / "out", "--engine", "ray", env=environment, cwd=tmp_path)
    assert result.returncode == 1
    assert "error: --engine ray: Ray is not installed here" in result.stderr
    assert "pip install" in result.stderr
    assert prepare(corpus, "--out", tmp_path / "out", env=environment, cwd=tmp_path).returncode == 0


def test_a_node_that_sees_other_files_or_has_other_engines_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    here = {name: str(version) for name, version in _versions().items()}
    with pytest.raises(Interrupted, match=r"node \S+ does not see .*/out/\.preparing; give an --out .* that all nodes"):
        _check_node(tmp_path / "out" / ".preparing", str(ROOT), here)
    with pytest.raises(Interrupted, match="has no folder /nowhere; all nodes must see the same files"):
        _check_node(tmp_path, "/nowhere", here)
    (tmp_path / PLAN).write_text("{}")
    with pytest.raises(Interrupted, match=r"has gigatoken \S+, not 0\.1; install the same on all nodes"):
        _check_node(tmp_path, str(ROOT), {**here, "gigatoken": "0.1"})
    _check_node(tmp_path, str(ROOT), here)
