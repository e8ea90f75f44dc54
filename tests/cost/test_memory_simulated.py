"""What memory is counted to be, against what torch's tracker counts in the step itself, on tensors without numbers."""

from __future__ import annotations

import pytest

from bench.memory import compare
from recipes.config.load import load
from recipes.planning.listing import YAMLS

CHECKPOINTS = "fsdp_config.activation_checkpointing=true"


@pytest.mark.parametrize(
    ("name", "overrides", "gpus", "microbatch"),
    [
        ("mpt-125m", [], 8, 16),
        ("mpt-125m", [], 1, 16),
        ("mpt-125m", [CHECKPOINTS], 8, 32),
        ("mpt-125m", [CHECKPOINTS], 1, 32),
        ("mpt-125m", ["model.master_weights_dtype=bf16"], 1, 16),
        ("mpt-125m", ["model.final_logit_softcapping=30.0"], 8, 16),
        ("llama-7b", ["fsdp_config.activation_checkpointing=false"], 8, 4),
        ("rwkv-169m", [], 8, 32),
    ],
)
def test_the_count_is_that_of_the_step(name: str, overrides: list[str], gpus: int, microbatch: int) -> None:
    recipe = load(YAMLS / f"pretrain/{name}.yaml", ["model.n_layers=3", *overrides])
    found = compare(recipe, gpus, microbatch)
    assert found.simulated > 0.5  # GiB: a step, not its weights alone
    assert 0.98 < found.ratio < 1.15
