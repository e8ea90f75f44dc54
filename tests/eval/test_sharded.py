"""A model that is sharded over two processes, from a checkpoint that they wrote in pieces, and from a full one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.vocabulary import BLOCK

from ..conftest import ROOT, Command, recipe_arguments

RECIPE = ROOT / "yamls" / "eval" / "quickstart.yaml"
SHARDED = "fsdp_config={sharding_strategy: FULL_SHARD, state_dict_type: sharded}"


@pytest.fixture(scope="module")
def sharded(shards: Path, run_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sharded")
    result = run_command("launch", "-n", "2", "train.py", *recipe_arguments(shards, run, SHARDED))
    assert result.returncode == 0, result.stdout + result.stderr
    return run


def test_one_process_or_a_sharded_model_on_two(
    sharded: Path, shards: Path, suite: Path, run_command: Command, tmp_path: Path
) -> None:
    asked = [str(RECIPE), f"models.0.run={sharded}", f"eval_loader.dataset.local={shards}", "max_seq_len=32"]
    kind = "icl_task_type: multiple_choice, num_fewshot: [0]"
    entries = ", ".join(f"{{label: {name}, dataset_uri: {suite}/{name}.jsonl, {kind}}}" for name in ("cloze", "dates"))
    asked.append(f"icl_tasks=[{entries}]")
    asked += ["contamination=null", "samples.max_new_tokens=5"]
    one = run_command("python", "eval/evaluate.py", *asked, f"results={tmp_path}/one.json")
    assert one.returncode == 0, one.stdout + one.stderr
    two = run_command("launch", "-n", "2", "eval/evaluate.py", *asked, SHARDED, f"results={tmp_path}/two/two.json")
    assert two.returncode == 0, two.stdout + two.stderr
    (whole,), (pieces,) = (
        json.loads(p.read_text())["models"] for p in (tmp_path / "one.json", tmp_path / "two/two.json")
    )
    assert Path(whole["checkpoint"]).is_dir()
    assert pieces["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert [t["score"] for t in pieces["tasks"]] == [t["score"] for t in whole["tasks"]]
    assert pieces["samples"] == whole["samples"]


def test_a_full_checkpoint_into_a_sharded_model(
    whole: Path, shards: Path, run_command: Command, tmp_path: Path
) -> None:
    asked = [str(RECIPE), f"models.0.run={whole}", f"eval_loader.dataset.local={shards}", "max_seq_len=32"]
    asked += ["icl_tasks=null", "contamination=null", "samples=null"]
    # two batches, of which one has many blocks of rows and the other a single one
    samples = sum(shard["samples"] for shard in json.loads((shards / "val" / "index.json").read_text())["shards"])
    asked.append(f"device_eval_batch_size={samples - 20}")
    assert (samples - 20) * 31 > 2 * BLOCK["cpu"][1] > 2 * 20 * 31
    losses = []
    for number, words in enumerate((("python", "eval/evaluate.py"), ("launch", "-n", "2", "eval/evaluate.py"))):
        more = [f"results={tmp_path}/{number}.json", *([SHARDED] if number else [])]
        result = run_command(*words, *asked, *more)
        assert result.returncode == 0, result.stdout + result.stderr
        losses.append(json.loads((tmp_path / f"{number}.json").read_text())["models"][0]["loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
