"""What the benchmarks make of their measurements; the figures here are made up."""

from __future__ import annotations

from typing import Any

from bench import train
from recipes.cost.flops import causal_flops_per_token, llm_foundry_flops_per_token


def result(tokens_per_s: float, **more: Any) -> dict[str, Any]:
    shape = {"d_model": 2048, "n_heads": 16, "n_layers": 24, "vocab_size": 50368}
    made = {"sequences": 16, "n_layers": 24, "shape": shape, "tokens_per_s": tokens_per_s, "peak_bytes": 1e9}
    return {**made, "loss": 2.0, "machine": "", "device": "NVIDIA H200", "matmul_flops": None, **more}


def cells(row: dict[str, Any], side: str) -> list[str]:
    lines = train.render("CUDA", {"rows": [{"name": "1B", "seq_len": 2048, **row}]})
    line = next(line for line in lines if line.startswith(f"| 1B | 2,048 | {side} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_shares_of_the_peak_and_of_stock() -> None:
    row = {"stock": result(20_000), "ours": result(60_000), "ours, compiled": result(70_000, n_layers=20)}
    section = train.model_section(result(0)["shape"], 2048, "ours")
    counted = [llm_foundry_flops_per_token(section, 2048), causal_flops_per_token(section, 2048)]
    assert cells(row, "ours")[5:7] == [f"{flops * 60_000 / 989.5e12:.1%}" for flops in counted]
    assert cells(row, "ours")[-1] == "3.00"
    assert cells(row, "ours, compiled")[-1] == "other layers"


def test_what_could_not_be_measured_says_why() -> None:
    row = {"stock": None, "ours": {"why": "failed: RuntimeError"}, "ours, compiled": result(70_000)}
    assert cells(row, "stock")[3] == "out of memory"
    assert cells(row, "ours")[3] == "failed: RuntimeError"
    assert cells(row, "ours, compiled")[-1] == ""
