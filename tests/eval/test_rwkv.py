"""RWKV all the way, as commands: trained by two processes as by one, evaluated as a run and as an exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval import harness
from eval.results import examples_path
from recipes.talking.generate import Sampling, complete
from recipes.talking.loading import load_model

from ..conftest import ROOT, Command, losses, recipe_arguments

QUICKSTART = ROOT / "yamls" / "pretrain" / "rwkv-quickstart.yaml"


def arguments(shards: Path, run: Path, *more: str) -> list[str]:
    mpt = recipe_arguments(shards, run, "max_duration=6ba", *more)
    return [str(QUICKSTART), *(argument for argument in mpt[1:] if not argument.startswith("model.n_heads"))]


@pytest.fixture(scope="module")
def run(shards: Path, run_command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rwkv")
    hub = f"callbacks.hf_checkpointer={{save_folder: {folder}/hf, save_interval: 1dur, precision: float32}}"
    done = run_command("python", "train.py", *arguments(shards, folder, hub))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_learn_what_one_does(run: Path, shards: Path, run_command: Command, tmp_path: Path) -> None:
    two = run_command("launch", "-n", "2", "train.py", *arguments(shards, tmp_path))
    assert two.returncode == 0, two.stdout + two.stderr
    assert "2 devices × 1 micro-batches × 4" in two.stdout
    alone = losses(run)
    assert len(alone) == 6
    assert alone[5] < alone[0]
    assert losses(tmp_path) == pytest.approx(alone, rel=2e-5)


def test_a_run_and_what_it_exports_answer_alike(
    run: Path, shards: Path, suite: Path, run_command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    exported = run_command("python", "-m", "recipes", "export", run, out, "--dtype", "fp32")
    assert exported.returncode == 0, exported.stderr
    assert "RwkvForCausalLM" in exported.stdout
    task = f"{{label: cloze, dataset_uri: {suite}/cloze.jsonl, icl_task_type: multiple_choice, num_fewshot: [0]}}"
    asked = [f"models=[{{run: {run}}}, {{folder: {out}}}]", f"icl_tasks=[{task}]", "max_seq_len=32"]
    asked += [f"eval_loader.dataset.local={shards}", "contamination=null", "samples=null"]
    asked.append(f"results={tmp_path}/r.json")
    judged = run_command("python", "eval/evaluate.py", str(ROOT / "yamls" / "eval" / "quickstart.yaml"), *asked)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    ours, theirs = json.loads((tmp_path / "r.json").read_text())["models"]
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    assert theirs["tasks"][0]["score"] == ours["tasks"][0]["score"]

    harness_task = tmp_path / "dates.yaml"
    shipped = ROOT / "yamls" / "eval" / "harness" / "sotu_dates.yaml"
    harness_task.write_text(shipped.read_text().replace("shards/sotu/tasks", str(suite)))
    answers = []
    for number, model in enumerate((run, out)):
        result = tmp_path / f"{number}.json"
        assert harness.main([str(model), "--tasks", str(harness_task), "--out", str(result)]) == 0
        answers.append([json.loads(line)["logprobs"] for line in examples_path(result).read_text().splitlines()])
    assert len(answers[0]) > 0
    for one, other in zip(*answers, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_what_the_run_saved_opens_and_writes(run: Path) -> None:
    """A checkpoint, and what LLM Foundry's hf_checkpointer wrote, in transformers' own class."""
    loaded = load_model(run)
    prompt = loaded.tokenizer("The Congress")["input_ids"]
    ids = torch.tensor([prompt])
    theirs = AutoModelForCausalLM.from_pretrained(run / "hf" / "huggingface" / "ba6").eval()
    assert type(theirs).__module__ == "transformers.models.rwkv.modeling_rwkv"
    with torch.no_grad():
        assert (theirs(ids, use_cache=False).logits - loaded.model(ids).logits).abs().max() < 1e-5
    said = complete(loaded, prompt, Sampling(max_new_tokens=6, temperature=0).checked())
    tokens = theirs.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, len(prompt) :]
    assert said == loaded.tokenizer.decode(tokens, skip_special_tokens=True)
