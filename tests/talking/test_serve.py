"""An exported folder behind transformers' server says what the run itself says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from data_prep.chat_tokenizer import main as chat_tokenizer
from tests.conftest import Command, recipe_arguments

QUESTION = "Who spoke?"


def test_a_served_folder_answers_as_the_run_does(shards: Path, tmp_path: Path, run_command: Command) -> None:
    tokenizer = tmp_path / "tokenizer"
    assert chat_tokenizer(["--tokenizer", str(shards / "tokenizer"), "--out", str(tokenizer)]) == 0
    short = ["max_duration=6ba", "eval_interval=0ba", f"tokenizer.name={tokenizer}"]
    trained = run_command("python", "train.py", *recipe_arguments(shards, tmp_path / "run", *short))
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "question.txt").write_text(QUESTION + "\n")
    options = ["--prompts", tmp_path / "question.txt", "--chat", "--temperature", "0", "--max-new-tokens", "8"]
    said = run_command("python", "-m", "recipes", "generate", tmp_path / "run", *options, "--out", tmp_path / "said")
    assert said.returncode == 0, said.stderr
    exported = run_command("python", "-m", "recipes", "export", tmp_path / "run", tmp_path / "hf", "--dtype", "fp32")
    assert exported.returncode == 0, exported.stderr
    answer = served(tmp_path / "hf", {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8})
    assert answer.strip()
    assert answer.strip() == json.loads((tmp_path / "said").read_text())["text"].strip()


def served(folder: Path, request: dict[str, object]) -> str:
    """The answer of `transformers serve` to a request in OpenAI's form."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", "--force-model", Path(*folder.parts[-2:])]
    command += ["--port", str(port), "--device", "cpu"]
    asked = urllib.request.Request(
        f"http://localhost:{port}/v1/chat/completions",
        json.dumps({"model": "any", "stream": True, **request}).encode(),
        {"Content-Type": "application/json"},
    )
    log = folder.with_suffix(".log")
    with (
        log.open("w") as said,
        subprocess.Popen(command, cwd=folder.parents[1], stdout=said, stderr=subprocess.STDOUT) as server,
    ):
        try:
            lines = answer(asked, server, log)
        finally:
            server.kill()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    return "".join(delta.get("content", "") for delta in deltas)


def answer(asked: urllib.request.Request, server: subprocess.Popen[bytes], log: Path) -> list[str]:
    deadline = time.monotonic() + 100
    while True:
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:
                return response.read().decode().splitlines()
        except urllib.error.HTTPError as error:
            raise AssertionError(log.read_text()) from error
        except urllib.error.URLError:  # it does not listen yet
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
