"""Compares estimates with what published runs say they took.

python -m recipes.cost.published
"""

from __future__ import annotations

import argparse
import csv
import signal
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.cost.estimate import Range, estimate, gpu_hours_of, usd_of_flops
from recipes.cost.fit import load_rows
from recipes.cost.hardware import find_gpu

TABLE_PATH = Path(__file__).parent / "measured" / "published_runs.csv"

# "GPT-3 costs 4.6 million dollars" (Lambda, OpenAI's GPT-3 Language Model: A Technical Overview, June 2020): 3.14e23
# FLOPs (Brown et al. 2020, table D.1) at an assumed 28 TFLOP/s a V100 is 355 GPU-years, at the lowest price of 2020.
GPT_3_FLOPS = 3.14e23
GPT_3_ASSUMED_FLOPS_PER_S = 28e12
GPT_3_USD_PER_GPU_HOUR = 1.48


@dataclass(frozen=True)
class Comparison:
    run: str
    stated_gpu_hours: float
    gpu_hours: Range
    mfu: float | None  # steady state, predicted
    whole_run_share: float  # of the predicted steady state that the run kept

    @property
    def inside(self) -> bool:
        return self.stated_gpu_hours in self.gpu_hours


def compare() -> list[Comparison]:
    with TABLE_PATH.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [_compare(row) for row in rows]


def recipe_of(row: Mapping[str, str]) -> dict[str, Any]:
    """A published run as a recipe; a micro-batch that its source does not state is the largest that fits."""
    return {
        "model": {
            "d_model": int(row["d_model"]),
            "n_heads": int(row["n_heads"]),
            "n_layers": int(row["n_layers"]),
            "vocab_size": int(row["vocab_size"]),
            "tie_word_embeddings": row["tied"] == "true",
            "no_bias": True,
            "attn_config": {
                "attn_type": "grouped_query_attention",
                "kv_n_heads": int(row["kv_n_heads"]),
                "alibi": True,
            },
            "ffn_config": {
                "ffn_type": "mptglu" if row["gated"] == "true" else "mptmlp",
                "ffn_hidden_size": int(row["ffn_hidden_size"]),
            },
        },
        "max_seq_len": int(row["seq_len"]),
        "global_train_batch_size": int(row["global_batch_sequences"]),
        "device_train_microbatch_size": int(row["microbatch_sequences"]) if row["microbatch_sequences"] else "auto",
        "max_duration": f"{int(float(row['tokens']))}tok",
        "precision": "amp_bf16",
        "fsdp_config": {
            "sharding_strategy": "FULL_SHARD",
            "mixed_precision": "PURE",
            "activation_checkpointing": row["activation_checkpointing"] == "true",
        },
    }


def typical_mfu(gpu: str) -> float:
    """Median steady-state MFU of the measured table at 16 bits, for a run whose shape is not known."""
    family = find_gpu(gpu).efficiency_like
    rows = load_rows()
    return statistics.median(r.mfu for r in rows if r.gpu.efficiency_like == family and "fp8" not in r.setup.precision)


def _compare(row: Mapping[str, str]) -> Comparison:
    stated = float(row["gpu_hours"])
    gpu = find_gpu(row["gpu"])
    if row["d_model"]:
        plan = estimate(recipe_of(row), gpu.name, int(row["gpus"]))
        assert plan.gpu_hours is not None
        assert plan.tokens is not None
        steady = plan.tokens / plan.tokens_per_s_per_gpu / 3600
        return Comparison(row["run"], stated, plan.gpu_hours, plan.mfu, steady / stated)
    peak = gpu.peak("bf16")
    assert peak is not None
    flops = 6 * float(row["params_active"]) * float(row["tokens"])
    steady = flops / (peak * typical_mfu(gpu.name)) / 3600
    return Comparison(row["run"], stated, gpu_hours_of(steady), typical_mfu(gpu.name), steady / stated)


def gpt_3() -> list[tuple[str, float]]:
    """The famous figure from its own assumptions, and what the same FLOPs cost on a real A100, as (how, dollars)."""
    a100 = find_gpu("a100-80gb")
    peak, prices = a100.peak("bf16"), a100.price_range_usd_per_hour()
    assert peak is not None
    assert prices is not None
    lambda_2020 = usd_of_flops(GPT_3_FLOPS, GPT_3_ASSUMED_FLOPS_PER_S, GPT_3_USD_PER_GPU_HOUR)
    result = [(f"V100 at an assumed 28 TFLOP/s and {GPT_3_USD_PER_GPU_HOUR} USD/h", lambda_2020)]
    hours = gpu_hours_of(GPT_3_FLOPS / (peak * typical_mfu(a100.name)) / 3600)
    for usd_per_hour, gpu_hours in zip(prices, (hours.low, hours.high), strict=True):
        mfu = GPT_3_FLOPS / (gpu_hours * 3600 * peak)
        result.append((f"A100 at {mfu:.0%} MFU and {usd_per_hour} USD/h", gpu_hours * usd_per_hour))
    return result


def main() -> None:
    print(f"{'run':16} {'stated GPU-hours':>17} {'estimated range':>27} {'steady MFU':>11} {'kept':>6}")
    comparisons = compare()
    for c in comparisons:
        estimated = f"{c.gpu_hours.low:,.0f} to {c.gpu_hours.high:,.0f}"
        outside = "" if c.inside else "  outside"
        mfu = "" if c.mfu is None else f"{c.mfu:.1%}"
        print(f"{c.run:16} {c.stated_gpu_hours:>17,.0f} {estimated:>27} {mfu:>11} {c.whole_run_share:>6.0%}{outside}")
    print(f"{sum(c.inside for c in comparisons)} of {len(comparisons)} inside\n\nGPT-3 ({GPT_3_FLOPS:.3g} FLOPs):")
    for how, usd in gpt_3():
        print(f"  {usd / 1e6:5.2f} million USD  {how}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    argparse.ArgumentParser(
        prog="python -m recipes.cost.published", description=(__doc__ or "").partition("\n")[0]
    ).parse_args()
    main()
