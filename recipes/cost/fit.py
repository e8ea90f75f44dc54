"""Fits the coefficients of throughput.py to the measured table, and says how well they predict.

    python -m recipes.cost.fit            # fits on the rows marked fit, writes measured/coefficients.json
    python -m recipes.cost.fit --check    # only prints the errors of the coefficients in the file

Both print a table of README.md as well: how the largest micro-batch that memory.py allows compares with the table's.

Least squares on log(predicted / measured tokens a second), with Huber's loss, because some rows ran into their memory
limit and are slow for a reason that no coefficient here describes. Coefficients are positive, so their logarithms are
fitted; a weak pull to the starting values holds those the data say little about.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.cost.flops import FlopsPerToken, flops_per_token
from recipes.cost.hardware import Gpu, find_gpu
from recipes.cost.memory import largest_microbatch
from recipes.cost.setup import Setup, read_setup
from recipes.cost.throughput import COEFFICIENTS_PATH, load_coefficients, step_time

TABLE_PATH = Path(__file__).parent / "measured" / "mpt_benchmarks.csv"

# (d_model, n_heads, n_layers) of LLM Foundry's scripts/train/yamls/pretrain/mpt-*.yaml as measured: learned positions
# and biases. The parameter counts of the table are these models'.
MPT_SIZES: Mapping[str, tuple[int, int, int]] = {
    "125m": (768, 12, 12),
    "350m": (1024, 16, 24),
    "760m": (1536, 12, 24),
    "1b": (2048, 16, 24),
    "3b": (2560, 20, 32),
    "7b": (4096, 32, 32),
    "13b": (5120, 40, 40),
    "30b": (7168, 56, 48),
    "70b": (8192, 64, 80),
}
MPT_VOCAB_SIZE = 50368

START: Mapping[str, float] = {
    "matrix_ampere": 0.8,  # share of the peak
    "matrix_hopper": 0.7,
    "attention_ampere": 0.6,
    "attention_hopper": 0.35,
    "width": 200.0,  # d0
    "head_dim": 10.0,  # h0
    "elementwise_bytes": 60.0,  # a token, layer and unit of width
    "logit_bytes": 10.0,  # a token and word
    "latency_us": 2.0,  # a collective, device and layer
    "optimizer_bytes": 30.0,  # a parameter
    "communication": 0.5,  # share of the link time that is not hidden
    "fp8": 1.6,  # matrix products in FP8 over 16 bits
}
HUBER = 0.08  # residuals beyond this weigh linearly
PULL = 0.02  # standard deviations of residual a factor of e from the start costs


@dataclass(frozen=True)
class Row:
    """One measured run and what it takes to predict it."""

    setup: Setup
    gpu: Gpu
    flops: FlopsPerToken
    tokens_per_s_per_gpu: float
    mfu: float
    part: str  # fit or held_out
    name: str


def load_rows() -> list[Row]:
    with TABLE_PATH.open(encoding="utf-8") as file:
        return [_row(row) for row in csv.DictReader(line for line in file if not line.startswith("#"))]


def _row(row: Mapping[str, str]) -> Row:
    setup = dataclasses.replace(read_setup(recipe_of(row), int(row["gpus"])), loss="fused")  # as LLM Foundry has it
    return Row(
        setup=setup,
        gpu=find_gpu(row["gpu"]),
        flops=flops_per_token(setup.model, setup.seq_len),
        tokens_per_s_per_gpu=float(row["tokens_per_s_per_gpu"]),
        mfu=float(row["mfu_pct"]) / 100,
        part=row["part"],
        name=f"{row['model']} {row['seq_len']} {row['gpus']}x {row['gpu']} {row['precision']}",
    )


def recipe_of(row: Mapping[str, str]) -> dict[str, Any]:
    """The recipe that a row of the table ran, with LLM Foundry's keys."""
    d_model, n_heads, n_layers = MPT_SIZES[row["model"]]
    microbatch = int(row["microbatch_sequences"])
    return {
        "model": {"d_model": d_model, "n_heads": n_heads, "n_layers": n_layers, "vocab_size": MPT_VOCAB_SIZE},
        "max_seq_len": int(row["seq_len"]),
        "precision": row["precision"],
        "device_train_microbatch_size": microbatch,
        "global_train_batch_size": microbatch * int(row["grad_accum"]) * int(row["gpus"]),
        "max_duration": "30ba",
        "fsdp_config": {
            "sharding_strategy": row["sharding"],
            "mixed_precision": row["fsdp_mixed_precision"],
            "activation_checkpointing": row["activation_checkpointing"] == "true",
        },
    }


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """Coefficients that predict `rows` best, from START."""
    import numpy as np  # only here: plans do without
    from scipy.optimize import least_squares

    start = np.log(list(START.values()))

    def residuals(logs: Any) -> Any:
        c = dict(zip(START, np.exp(logs).tolist(), strict=True))
        predicted = [step_time(r.setup, r.gpu, c, r.flops).tokens_per_s_per_gpu for r in rows]
        errors = [math.log(p / r.tokens_per_s_per_gpu) for p, r in zip(predicted, rows, strict=True)]
        return np.concatenate([errors, PULL * (logs - start)])

    found = least_squares(residuals, start, loss="huber", f_scale=HUBER)
    return dict(zip(START, np.exp(found.x).tolist(), strict=True))


def errors(rows: Sequence[Row], coefficients: Mapping[str, float]) -> list[float]:
    """|predicted / measured - 1| of tokens a second, in the order of the rows."""
    predicted = [step_time(r.setup, r.gpu, coefficients, r.flops).tokens_per_s_per_gpu for r in rows]
    return [abs(p / r.tokens_per_s_per_gpu - 1) for p, r in zip(predicted, rows, strict=True)]


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def accuracy(rows: Sequence[Row], coefficients: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Median, 90th percentile and largest error by part of the table."""
    parts = {
        "fit": [r for r in rows if r.part == "fit"],
        "held_out": [r for r in rows if r.part == "held_out"],
        "all": rows,
    }
    table = {}
    for name, part in parts.items():
        e = errors(part, coefficients)
        table[name] = {"rows": len(e), "median": quantile(e, 0.5), "p90": quantile(e, 0.9), "max": max(e)}
    return {name: {k: round(v, 4) for k, v in part.items()} for name, part in table.items()}


def microbatch_ratio(row: Row) -> float:
    """The largest micro-batch that is estimated to fit, over the one that ran."""
    assert row.setup.microbatch_sequences is not None
    unbounded = dataclasses.replace(row.setup, global_batch_sequences=10**9)
    return largest_microbatch(unbounded, row.gpu) / row.setup.microbatch_sequences


def microbatch_table(rows: Sequence[Row]) -> list[str]:
    """Lines of README.md: those ratios with and without activation checkpointing."""
    lines = [
        "| estimated over measured micro-batch | rows | smallest | median | p90 | largest |",
        "|---|---|---|---|---|---|",
    ]
    for on in (False, True):
        ratios = [microbatch_ratio(row) for row in rows if (row.setup.recompute == "blocks") == on]
        figures = [min(ratios), quantile(ratios, 0.5), quantile(ratios, 0.9), max(ratios)]
        name = f"activation checkpointing {'on' if on else 'off'}"
        lines.append(f"| {name} | {len(ratios)} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.cost.fit", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="print the errors of the coefficients in the file, fit nothing"
    )
    check = parser.parse_args(arguments).check
    rows = load_rows()
    coefficients = dict(load_coefficients()) if check else fit([r for r in rows if r.part == "fit"])
    coefficients = {name: float(f"{value:.4g}") for name, value in coefficients.items()}
    found = accuracy(rows, coefficients)
    for name, part in found.items():
        figures = "  ".join(f"{figure} {part[figure]:.1%}" for figure in ("median", "p90", "max"))
        print(f"{name:9} {part['rows']:4.0f} rows  {figures}")
    print("\n".join(["", *microbatch_table(rows)]))
    if not check:
        content = {"command": "python -m recipes.cost.fit", "errors": found, "coefficients": coefficients}
        COEFFICIENTS_PATH.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {COEFFICIENTS_PATH}")


if __name__ == "__main__":
    main()
