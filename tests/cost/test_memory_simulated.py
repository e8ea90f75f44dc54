"""What memory is counted to be, against what torch's tracker counts in the step itself, on tensors without numbers."""

from __future__ import annotations

import json

from ..conftest import Command

CHECKPOINTS = "fsdp_config.activation_checkpointing=true"
PRETRAIN = "yamls/pretrain"
CASES: list[tuple[str, list[str], int, int]] = [  # recipe, overrides, GPUs, sequences of a micro-batch
    ("mpt-125m", [], 8, 16),
    ("mpt-125m", [], 1, 16),
    ("mpt-125m", [CHECKPOINTS], 8, 32),
    ("mpt-125m", [CHECKPOINTS, "model.master_weights_dtype=bf16"], 1, 32),
    ("mpt-125m", ["model.final_logit_softcapping=30.0"], 8, 16),
    ("llama-7b", ["fsdp_config.activation_checkpointing=false"], 8, 4),
    ("rwkv-169m", [], 8, 32),
    ("mpt-125m", ["selective_checkpointing=true", "model.vocab_size=2048"], 8, 32),
]
# all in one process of its own: it is a group of so many, and torch takes seconds to import what fakes its tensors
COMPARE = f"""
import json, sys
from bench.memory import compare
from recipes.config.load import load
for name, overrides, gpus, microbatch in json.loads(sys.argv[1]):
    recipe = load(f"{PRETRAIN}/{{name}}.yaml", ["model.n_layers=3", *overrides])
    found = compare(recipe, gpus, microbatch)
    print(json.dumps([found.simulated, found.ratio]))
"""


def test_the_count_is_that_of_the_step(run_command: Command) -> None:
    done = run_command("python", "-c", COMPARE, json.dumps(CASES))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES)
    for case, (simulated, ratio) in zip(CASES, found, strict=True):
        assert simulated > 0.5, case  # GiB: a step, not its weights alone
        assert 0.98 < ratio < 1.15, case


def test_one_recipe_is_shown_and_one_that_is_none_is_said(run_command: Command) -> None:
    words = ["model.n_layers=1", "--gpus", "4", "--microbatch", "2"]
    done = run_command("python", "-m", "bench.memory", f"{PRETRAIN}/mpt-125m.yaml", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"| `{PRETRAIN}/mpt-125m.yaml` | 4 | 2 | ")
    done = run_command("python", "-m", "bench.memory", f"{PRETRAIN}/mpt-125m.yaml", "--microbatch", "0")
    assert done.returncode == 1
    assert "error: microbatch: got 0, expected a positive integer." in done.stderr
    done = run_command("python", "-m", "bench.memory", f"{PRETRAIN}/mpt-125.yaml")
    assert done.returncode == 1
    assert "mpt-125.yaml" in done.stderr
    assert "Traceback" not in done.stderr
