"""s3:// in and out, against a real S3 API served on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from streaming import StreamingDataset

from recipes.training.loaders_lock import loaders_lock
from tests.data_prep.conftest import tree

REGION = "us-east-1"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 server that has the bucket `data`; the environment leads every client to it."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://{host}:{port}")  # Streaming's; fsspec's is to follow it
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", REGION)):
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="data")
    yield client
    server.stop()


def objects(store: Any, prefix: str) -> dict[str, bytes]:
    found = store.list_objects_v2(Bucket="data", Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix): store.get_object(Bucket="data", Key=entry["Key"])["Body"].read()
        for entry in found
    }


def test_from_and_to_a_bucket(store: Any, corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    lines = corpus.read_bytes().splitlines(keepends=True)
    store.put_object(Bucket="data", Key="in/a.jsonl", Body=b"".join(lines[:120]))
    store.put_object(Bucket="data", Key="in/b.jsonl", Body=b"".join(lines[120:]))
    options = ("--holdout", "0.1", "--work", tmp_path / "work")

    made = prepare("s3://data/in/*.jsonl", "--out", "s3://data/out", *options)
    assert (made.returncode, made.stderr) == (0, "")
    assert prepare(corpus, "--out", tmp_path / "here", "--holdout", "0.1").returncode == 0
    there, here = objects(store, "out/"), tree(tmp_path / "here")
    shards = [name for name in here if not name.endswith("manifest.json")]  # which names the sources
    assert there.keys() == here.keys()
    assert {name: there[name] for name in shards} == {name: here[name] for name in shards}
    assert "already done" in prepare("s3://data/in/*.jsonl", "--out", "s3://data/out", *options).stdout

    with loaders_lock():
        dataset = StreamingDataset(remote="s3://data/out", local=str(tmp_path / "read"), split="train", batch_size=1)
    assert len(dataset) > 100
    assert np.asarray(dataset[0]["tokens"]).dtype == np.uint16

    store.put_object(Bucket="data", Key="in/b.jsonl", Body=lines[0])
    changed = prepare("s3://data/in/*.jsonl", "--out", "s3://data/out", *options)
    assert changed.returncode == 1
    assert "s3://data/in/b.jsonl" in changed.stderr
    assert objects(store, "out/") == there


@pytest.mark.parametrize(
    ("source", "words"),
    [("s3://data/none.jsonl", "s3://data/none.jsonl"), ("s3://nobody/x.jsonl", "s3://nobody/x.jsonl")],
)
def test_what_is_not_there_is_words(
    store: Any, prepare: Callable[..., Any], tmp_path: Path, source: str, words: str
) -> None:
    result = prepare(source, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bucket_that_is_not_there_is_words(
    store: Any, corpus: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    result = prepare(corpus, "--out", "s3://nobody/out", "--work", tmp_path / "work")
    assert result.returncode == 1
    assert "s3://nobody/out" in result.stderr
    assert "Traceback" not in result.stderr
    assert [bucket["Name"] for bucket in store.list_buckets()["Buckets"]] == ["data"]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_server_that_is_not_there_is_words(
    overwrite: tuple[str, ...], corpus: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    server = {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    words = ("--out", "s3://data/out", "--work", tmp_path / "work", *overwrite)
    result = prepare(corpus, *words, env={**server, "AWS_MAX_ATTEMPTS": "1"})
    assert result.returncode == 1
    assert result.stderr.startswith("error: s3://data/out: EndpointConnectionError: ")
