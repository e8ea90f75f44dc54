"""What a step's memory is counted to be before a run (recipes/cost/memory.py), against what torch counts in the step.

    python -m bench.memory        # writes bench/results/memory.md, in about ten minutes, without a GPU
    python -m bench.memory yamls/pretrain/mpt-7b-8k.yaml max_seq_len=16384 --gpus 64 --microbatch 2  # of one, shown

Every pretraining recipe on as few GPUs as hold it (yamls/README.md), and the choices that change memory, one at a time.
bench/simulated.py says how the step is simulated, and what of a GPU's memory it cannot see.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import warnings
from pathlib import Path

from bench.machine import machine_and_versions, write_result
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe, load
from recipes.cost.architecture import positive_integer
from recipes.cost.hardware import find_gpu
from recipes.cost.memory import GIB, memory
from recipes.cost.setup import read_setup
from recipes.planning.listing import GPU, YAMLS, plan_of, rows

RESULTS = Path(__file__).parent / "results" / "memory.md"
# One thing at a time, of a model small enough to be quick: overrides, GPUs, sequences of a micro-batch.
CHOICES: dict[str, tuple[str, list[str], int, int]] = {
    "MPT": ("pretrain/mpt-125m", [], 8, 8),
    "one GPU": ("pretrain/mpt-125m", [], 1, 8),
    "activation checkpointing": ("pretrain/mpt-125m", ["fsdp_config.activation_checkpointing=true"], 8, 8),
    "the same on one GPU": ("pretrain/mpt-125m", ["fsdp_config.activation_checkpointing=true"], 1, 8),
    "selective checkpointing": ("pretrain/mpt-125m", ["selective_checkpointing=true"], 8, 8),
    "the same of few words": (
        "pretrain/mpt-125m",
        ["selective_checkpointing=true", "model.vocab_size=2048", "model.n_layers=4"],
        8,
        8,
    ),
    "SHARD_GRAD_OP": ("pretrain/mpt-1b", ["fsdp_config.sharding_strategy=SHARD_GRAD_OP"], 8, 2),
    "gradients reduced in fp32": ("pretrain/mpt-125m", ["fsdp_config.mixed_precision=DEFAULT"], 8, 8),
    "precision: fp32": ("pretrain/mpt-125m", ["precision=fp32"], 8, 8),
    "attn_impl: torch": ("pretrain/mpt-125m", ["model.attn_config.attn_impl=torch"], 8, 2),
    "loss_fn: torch_crossentropy": ("pretrain/mpt-125m", ["model.loss_fn=torch_crossentropy"], 8, 2),
    "soft-capped logits": ("pretrain/mpt-125m", ["model.final_logit_softcapping=30.0"], 8, 8),
    "norms of queries and keys": ("pretrain/mpt-125m", ["model.attn_config.qk_ln=true"], 8, 8),
    "grouped queries, one GPU": ("pretrain/mpt-1b-gqa", [], 1, 2),
    "LLaMA": ("pretrain/llama-7b", ["model.n_layers=8", "fsdp_config.activation_checkpointing=false"], 8, 2),
    "its norms in fp32": (
        "pretrain/llama-7b",
        ["model.n_layers=8", "fsdp_config.activation_checkpointing=false", "model.norm_type=rmsnorm"],
        8,
        2,
    ),
    "RWKV": ("pretrain/rwkv-169m", [], 8, 8),
    "RWKV on one GPU": ("pretrain/rwkv-169m", [], 1, 8),
    "LoRA": ("finetune/mpt-7b-instruct-lora", ["model.n_layers=8"], 8, 4),
    "DPO": ("finetune/mpt-7b-dpo", ["model.n_layers=8"], 8, 1),
}


@dataclasses.dataclass(frozen=True)
class Compared:
    """GiB of one device: weights, gradients and optimizer, and what comes to them in a step, by both counts."""

    states: float
    counted: float
    simulated: float

    @property
    def ratio(self) -> float:
        return (self.states + self.counted) / (self.states + self.simulated)


def compare(recipe: Recipe, gpus: int, microbatch: int) -> Compared:
    """The estimator's count beside torch's; neither has what only a device holds (the estimator's `overhead`)."""
    from bench.simulated import simulated_bytes

    setup = dataclasses.replace(read_setup(recipe.values, gpus), microbatch_sequences=microbatch)
    parts = memory(setup, find_gpu(GPU))
    states = parts.weights_gib + parts.gradients_gib + parts.optimizer_gib
    counted = parts.total_gib - parts.overhead_gib - states
    return Compared(states, counted, simulated_bytes(recipe, gpus, microbatch) / GIB - states)


def _line(name: str, gpus: int, microbatch: int, found: Compared) -> str:
    figures = f"{found.states:.2f} | {found.counted:.2f} | {found.simulated:.2f} | {found.ratio:.3f}"
    line = f"| {name} | {gpus} | {microbatch} | {figures} |"
    print(line, flush=True)
    return line


def _table(first: str, lines: list[str]) -> list[str]:
    columns = (first, "GPUs", "micro-batch", "states", "step, counted", "step, simulated", "counted / simulated")
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, help="one recipe, and its overrides; default: all, to --out")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--gpus", type=int, default=8, help="of one recipe (default: %(default)s)")
    parser.add_argument("--microbatch", type=int, default=1, help="sequences, of one recipe (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="Markdown file (default: %(default)s)")
    chosen = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    if chosen.recipe:
        _one(chosen.recipe, chosen.overrides, chosen.gpus, chosen.microbatch)
    else:
        _all(chosen.out)


def _one(path: Path, overrides: list[str], gpus: int, microbatch: int) -> None:
    try:
        found = compare(load(path, overrides), gpus, positive_integer("microbatch", microbatch))
    except (RecipeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    print("\n".join(_table("recipe", [])[:2]))
    _line(f"`{path}`", gpus, microbatch, found)


def _all(out: Path) -> None:
    ratios: list[float] = []
    choices, recipes = [], []
    for name, (path, overrides, gpus, microbatch) in CHOICES.items():
        found = compare(load(YAMLS / f"{path}.yaml", overrides), gpus, microbatch)
        ratios.append(found.ratio)
        choices.append(_line(name, gpus, microbatch, found))
    for row in rows():
        if row.kind == "pretrain":
            plan = plan_of(row)
            found = compare(row.recipe, plan.gpus, plan.microbatch_sequences)
            ratios.append(found.ratio)
            recipes.append(_line(f"`{row.name}`", plan.gpus, plan.microbatch_sequences, found))
    lines = [
        "# Memory of a step: counted by the plan, and by torch in the step",
        "",
        "Command: `python -m bench.memory`",
        "",
        machine_and_versions("torch", "mosaicml", "llm-foundry"),
        "",
        "GiB of one device. States are weights, gradients and optimizer. A plan adds what only a device holds: a GiB",
        "for CUDA's context and communication, and 4 % that the allocator cannot use.",
        f"Counted / simulated is {min(ratios):.3f} to {max(ratios):.3f}, the median {statistics.median(ratios):.3f}.",
        "",
        *_table("choice", choices),
        *_table("recipe", recipes),
    ]
    write_result(lines, out)


if __name__ == "__main__":
    main()
