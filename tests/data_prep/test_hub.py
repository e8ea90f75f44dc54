"""hf:// as input, through huggingface_hub, against a server on this machine that answers as the hub does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.data_prep.conftest import tree

REPO = "someone/words"
COMMIT = {"id": "1" * 40, "title": "More words", "date": "2026-01-02T03:04:05.000Z"}


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for to list a data set and to read its files."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in (f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/revision/main"):
            self.answer({"id": REPO, "sha": COMMIT["id"], "private": False, "tags": [], "siblings": []})
        elif path.startswith(f"/api/datasets/{REPO}/tree/main"):
            folder = path.removeprefix(f"/api/datasets/{REPO}/tree/main").strip("/")
            inside = [name for name in self.files if name.startswith(f"{folder}/" if folder else "")]
            folders = {name.rpartition("/")[0] for name in inside} - {folder, ""}
            self.answer([*map(self.entry, inside), *({"type": "directory", "path": f, "oid": "2"} for f in folders)])
        elif path.startswith(f"/datasets/{REPO}/resolve/main/"):
            self.send_part(self.files[path.removeprefix(f"/datasets/{REPO}/resolve/main/")])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        self.answer([self.entry(name) for name in asked if name in self.files])

    def entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": "3", "lastCommit": COMMIT}

    def answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_part(self, content: bytes) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> Iterator[dict[str, bytes]]:
    """The files of a data set, which a server shows; the environment leads every client to it."""
    lines = corpus.read_bytes().splitlines(keepends=True)
    files = {"data/a.jsonl": b"".join(lines[:120]), "data/b.jsonl": b"".join(lines[120:]), "README.md": b"Words."}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield files
    server.shutdown()
    server.server_close()


def test_from_the_hub(hub: dict[str, bytes], corpus: Path, prepare: Callable[..., Any], tmp_path: Path) -> None:
    assert prepare(corpus, "--out", tmp_path / "here").returncode == 0
    here = tree(tmp_path / "here")
    for number, source in enumerate((f"hf://datasets/{REPO}/data", f"hf://datasets/{REPO}/data/*.jsonl")):
        out = tmp_path / str(number)
        made = prepare(source, "--out", out, "--part-mb", "0.1")
        assert (made.returncode, made.stderr) == (0, "")
        there = tree(out)
        assert there.keys() == here.keys()
        assert all(there[name] == here[name] for name in here if not name.endswith("manifest.json"))
        sources = json.loads(there["train/manifest.json"])["sources"]
        assert [one["path"] for one in sources] == [f"hf://datasets/{REPO}/data/{name}.jsonl" for name in "ab"]
        assert "already done" in prepare(source, "--out", out).stdout

    hub["data/b.jsonl"] += b'{"text": "One more."}\n'
    changed = prepare(f"hf://datasets/{REPO}/data", "--out", tmp_path / "0")
    assert changed.returncode == 1
    assert "data/b.jsonl" in changed.stderr


@pytest.mark.parametrize("source", ["hf://datasets/nobody/nothing/a.jsonl", f"hf://datasets/{REPO}/none.jsonl"])
@pytest.mark.usefixtures("hub")
def test_what_is_not_there_is_said(source: str, prepare: Callable[..., Any], tmp_path: Path) -> None:
    refused = prepare(source, "--out", tmp_path / "out")
    assert refused.returncode == 1
    assert source in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", [f"hf://datasets/{REPO}/data/a.jsonl", f"hf://datasets/{REPO}/data/*.jsonl"])
def test_a_hub_that_cannot_be_reached_is_not_an_empty_one(
    source: str, prepare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = prepare(source, "--out", tmp_path / "out")
    assert refused.returncode == 1
    assert f"error: {source}: Cannot reach" in refused.stderr
    assert "HF_HUB_OFFLINE" in refused.stderr
