"""What every test shares: no network, the repository's root as the place that commands run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from recipes.reports.runs import read_metrics

from .warm import WarmPython

os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("TESTED_ON") != "cuda":  # the same tests on every machine; `make test-gpu` is for kernels
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What Composer leaves behind where a test trains in this process: no launcher has started the commands of other tests.
OF_A_LAUNCHER = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each command would compile the project anew

ROOT = Path(__file__).resolve().parent.parent

# Folders of tests that start whole commands: first, so that no process is left alone with them at the end.
LONG = ("training", "eval", "callbacks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONG)


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """A run in this process counts denormal numbers as zero; the next test must not."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `python` whose imports are done."""
    server = WarmPython(tmp_path_factory.mktemp("warm"))
    yield server.executable
    server.end()


@pytest.fixture(scope="session")
def run_command(warm_python: Path) -> Command:
    """Run a command of the project as a user would, in the repository or in another folder."""

    def run(
        *arguments: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
        environment = {**own, "PYTHONPATH": str(ROOT), **(env or {})}
        words = [str(warm_python if a == "python" else a) for a in arguments]
        if words[0] == "launch":
            words[:1] = [str(warm_python), "-m", "recipes.launch"]
        if words[0] == "composer":
            words[0] = str(Path(sys.executable).with_name("composer"))
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a recipe into the test's own folder."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def can_unshare() -> bool:
    """Whether this user may mount file systems that only some processes see."""
    try:
        return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A file of one object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- whole runs, shrunk to seconds --------------------------------------------------------------------------------

QUICKSTART = ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml"
STEPS = 24
LOSS = "loss/train/total"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory, run_command: Command) -> Path:
    """A folder with a small tokenizer and shards of 32 tokens, made by the project's own commands."""
    folder = tmp_path_factory.mktemp("shards")
    lines = (ROOT / "data_prep" / "sotu" / "addresses.jsonl").read_text().splitlines()[:12]
    corpus = write_jsonl(folder / "corpus.jsonl", ({"text": json.loads(line)["text"][:20_000]} for line in lines))
    tokenizer = folder / "tokenizer"
    made = run_command("python", "-m", "data_prep.tokenizer", corpus, "--out", tokenizer, "--vocab-size", 512)
    assert made.returncode == 0, made.stderr
    options = ["--tokenizer", tokenizer, "--seq-len", "32", "--holdout", "0.2"]
    made = run_command("python", "-m", "data_prep.pretrain", corpus, "--out", folder, *options)
    assert made.returncode == 0, made.stderr
    return folder


def recipe_arguments(shards: Path, run: Path, *more: str) -> list[str]:
    """The quickstart recipe shrunk to seconds."""
    sizes = ["model.d_model=32", "model.n_heads=2", "model.n_layers=2", "model.vocab_size=512", "max_seq_len=32"]
    batches = ["global_train_batch_size=8", "device_train_microbatch_size=4", "device_eval_batch_size=8"]
    length = [
        f"max_duration={STEPS}ba",
        "scheduler.t_warmup=4ba",
        f"eval_interval={STEPS // 2}ba",
        "eval_subset_num_batches=2",
    ]
    data = [f"{loader}.dataset.local={shards}" for loader in ("train_loader", "eval_loader")]
    files = [f"save_folder={run}/checkpoints", "save_interval=3ba", f"tokenizer.name={shards / 'tokenizer'}"]
    return [str(QUICKSTART), *sizes, *batches, *length, *data, *files, "progress_bar=false", *more]


def losses(run: Path) -> dict[int, float]:
    """Training loss by step; where a killed run repeated steps, the last value."""
    return {int(r["step"]): r[LOSS] for r in read_metrics(run / "metrics.jsonl") if LOSS in r}


def summary(run: Path) -> Mapping[str, float]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="session")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory, run_command: Command) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole")
    result = run_command("python", "train.py", *recipe_arguments(shards, run))
    assert result.returncode == 0, result.stderr
    (run / "output.txt").write_text(result.stdout)
    return run
