"""Attention, forward and backward: this project's against LLM Foundry's `torch`, flash-attn, and SDPA without a bias.

    python -m bench.attention --suite cpu       # 1k to 16k tokens, memory to 128k; minutes on two cores
    python -m bench.attention --suite cuda      # 1k to 128k tokens on one GPU

One sequence, causal, with ALiBi except for the last row of each length, which is the practical limit: torch's fused
attention without any bias. Masks and biases are built before the clock starts, for all kernels: a model builds them
once a batch, not in each layer. On a GPU the shortest lengths show what Python takes to start a kernel. FLOPs are
those of the causal half, 2·S²·H·D forward and 2.5 times that backward (five products instead of two). On a CPU
denormal numbers count as zero for all kernels, as in this project's runs. Peak memory is what the call adds to inputs,
mask and bias that lie there already; how it grows from 1k to 128k tokens is measured apart, in one call a length, on a
CPU with a single head.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.machine import machine_and_versions
from bench.pictures import picture
from bench.suites import NOT_MEASURED, RESULTS, known, table, write_suites
from recipes.reports.charts import Line

LENGTHS = {"CPU": [2**n for n in range(10, 15)], "CUDA": [2**n for n in range(10, 18)]}
HEADS, HEAD_DIM = {"CPU": 4, "CUDA": 16}, {"CPU": 64, "CUDA": 128}  # those of the small model and of MPT-1B
MEMORY_LENGTHS = [2**n for n in range(10, 18)]
MEMORY_HEADS = {"CPU": 1, "CUDA": 16}
MEMORY_KERNELS = ("LLM Foundry torch", "ours")
REPEATS = {"CPU": 3, "CUDA": 20}
CALLS, SHORT = {"CPU": 1, "CUDA": 10}, 8192  # between two looks at the clock, up to so many tokens
KERNELS = {
    "CPU": ("LLM Foundry torch", "ours", "SDPA without bias"),
    "CUDA": ("LLM Foundry torch", "ours", "flash-attn 2", "FlashAttention 4", "SDPA without bias"),
}
COMMANDS = {suite: f"python -m bench.attention --suite {suite.lower()}" for suite in LENGTHS}


def build(kernel: str, S: int, H: int, D: int, device: str) -> tuple[Callable[..., Any], list[Any]]:
    """A function of (q, k, v), each (1, H, S, D), and those three with gradients on."""
    import torch
    from llmfoundry.models.layers.attention import build_attn_bias, gen_slopes, scaled_multihead_dot_product_attention

    from recipes.models import attention
    from recipes.models.attention import KERNELS as OURS
    from recipes.models.attention import Layer
    from recipes.models.backends import resolve
    from recipes.models.masks import Batch

    # a training run has one length: what is compiled for it, not for all lengths, is measured
    torch._dynamo.reset()
    attention._compiled_flex_attention = None
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    qkv = [torch.randn(1, S, H, D, device=device, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    if kernel == "LLM Foundry torch":
        bias = torch.zeros(1, H, 1, S, device=device)
        bias = build_attn_bias("torch", bias, H, S, causal=True, alibi=True, alibi_bias_max=8)

        def stock(*qkv: torch.Tensor) -> torch.Tensor:
            flat = (t.transpose(1, 2).flatten(2) for t in qkv)  # (1, S, H * D)
            return scaled_multihead_dot_product_attention(*flat, H, H, attn_bias=bias, is_causal=True, training=True)[0]

        return stock, qkv
    if kernel == "SDPA without bias":
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), qkv
    name = {"ours": "flash", "flash-attn 2": "flash2", "FlashAttention 4": "flash4"}[kernel]
    run = OURS[resolve(name, device, ["alibi"], D)]
    batch = Batch(slopes=gen_slopes(H, 8, torch.device(device), return_1d=True))
    layer = Layer(scale=D**-0.5, window=-1, softcap=None, alibi=True)
    return lambda q, k, v: run(q, k, v, batch, layer, 0.0), qkv


def measure(kernel: str, S: int, suite: str) -> dict[str, Any]:
    """Median seconds and peak bytes, or why there are none."""
    import torch

    device = "cuda" if suite == "CUDA" else "cpu"
    H, D = HEADS[suite], HEAD_DIM[suite]
    if too_much := _too_much(kernel, S, H, device):
        return {"why": too_much}
    try:
        torch._functorch.config.donated_buffer = False  # several backward passes go through one graph below
        function, qkv = build(kernel, S, H, D, device)
        weights = torch.randn_like(function(*qkv).detach())  # the first call compiles, and builds mask and bias
        torch.autograd.grad(function(*qkv), qkv, weights)
        peak = _peak_of(lambda: torch.autograd.grad(function(*qkv), qkv, weights), device)
        times: list[tuple[float, float]] = []
        calls = CALLS[suite] if S <= SHORT else 1
        for _ in range(REPEATS[suite]):
            begun = _now(device)
            for _ in range(calls):
                out = function(*qkv)
            middle = _now(device)
            for call in range(calls):
                torch.autograd.grad(out, qkv, weights, retain_graph=call + 1 < calls)
            times.append(((middle - begun) / calls, (_now(device) - middle) / calls))
    except torch.OutOfMemoryError:
        return {"why": "out of memory"}
    except ValueError as error:  # a kernel that is not installed, in words
        return {"why": str(error).partition(",")[0]}
    except Exception as error:  # of a compiler: the other rows are measured all the same
        print(error, file=sys.stderr, flush=True)
        return {"why": f"failed: {type(error).__name__}"}
    forward, backward = (statistics.median(part) for part in zip(*times, strict=True))
    return {"forward_s": forward, "backward_s": backward, "peak_bytes": peak}


def measure_memory(kernel: str, S: int, suite: str) -> dict[str, Any]:
    """Peak bytes of one forward and backward call, or why there are none."""
    import torch

    device, H, D = "cuda" if suite == "CUDA" else "cpu", MEMORY_HEADS[suite], HEAD_DIM[suite]
    if too_much := _too_much(kernel, S, H, device):
        return {"why": too_much}
    try:
        function, qkv = build(kernel, S, H, D, device)
        with torch.no_grad():  # compiles, and builds mask and bias
            weights = torch.ones_like(function(*qkv))
        if device == "cuda":  # where compiling the backward pass, and choosing its kernels, takes memory
            torch.autograd.grad(function(*qkv), qkv, weights)
        return {"peak_bytes": _peak_of(lambda: torch.autograd.grad(function(*qkv), qkv, weights), device)}
    except torch.OutOfMemoryError:
        return {"why": "out of memory"}


def _too_much(kernel: str, S: int, H: int, device: str) -> str | None:
    """Why LLM Foundry's S×S scores would not fit, in words."""
    # scores and bias added up, softmax, its input and the gradients of both, at least, in fp32
    needed, there = 5 * 4 * H * S * S, _memory(device) // (1 if device == "cuda" else 2)  # others use a CPU's too
    if kernel != "LLM Foundry torch" or needed <= there:
        return None
    return f"not run: takes about {needed / 1e9:,.0f} GB, may take {there / 1e9:,.0f}"


def _peak_of(call: Callable[[], Any], device: str) -> int:
    before = _start_peak(device)
    call()
    return _peak(device) - before


def _now(device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _memory(device: str) -> int:
    import psutil
    import torch

    if device == "cpu":
        return psutil.virtual_memory().available
    gc.collect()
    torch.cuda.empty_cache()  # what earlier calls left with the allocator is free
    return torch.cuda.mem_get_info()[0]


def _start_peak(device: str) -> int:
    """Begin to watch memory; bytes in use now. On a CPU Linux keeps the peak of the process and can forget it."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed and the C library kept would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    import torch

    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def rate(row: Mapping[str, Any], suite: str) -> float:
    """FLOP/s of forward and backward together, causal half."""
    flops = 3.5 * 2 * row["S"] ** 2 * HEADS[suite] * HEAD_DIM[suite]
    return flops / (row["forward_s"] + row["backward_s"])


def render(suite: str, found: Mapping[str, Any] | None) -> list[str]:
    header = ["tokens", "kernel", "forward ms", "backward ms", "TFLOP/s", "peak MB", "× LLM Foundry torch", "of SDPA"]
    rows, measured = [], {(r["kernel"], r["S"]): r for r in (found["rows"] if found else [])}
    for S in LENGTHS[suite]:
        for kernel in KERNELS[suite]:
            row = measured.get((kernel, S))
            if row is None or "why" in row:
                rows.append([f"{S:,}", kernel, row["why"] if row else NOT_MEASURED, *[""] * 5])
                continue
            total = row["forward_s"] + row["backward_s"]
            against = [measured[other, S] for other in ("LLM Foundry torch", "SDPA without bias")]
            ratios = ["" if "why" in o else (o["forward_s"] + o["backward_s"]) / total for o in against]
            cells = [f"{row['forward_s'] * 1e3:,.1f}", f"{row['backward_s'] * 1e3:,.1f}"]
            cells += [f"{rate(row, suite) / 1e12:.3f}", f"{row['peak_bytes'] / 1e6:,.0f}"]
            cells += [f"{ratios[0]:.1f}" if ratios[0] else "", f"{ratios[1]:.0%}" if ratios[1] else ""]
            rows.append([f"{S:,}", kernel, *cells])
    shape = f"{HEADS[suite]} heads of {HEAD_DIM[suite]}, {'fp32' if suite == 'CPU' else 'bf16'}, one sequence."
    lines = [shape, "", *table(header, rows)]
    if found:
        lines += ["", f"![TFLOP/s against tokens](attention-{suite.lower()}.svg)"]
    return [*lines, "", *render_memory(suite, found)]


def render_memory(suite: str, found: Mapping[str, Any] | None) -> list[str]:
    """Peak memory by length, and how many times that of half the length: 2 is linear, 4 quadratic."""
    measured = {(r["kernel"], r["S"]): r for r in (found or {}).get("memory", [])}
    header, rows = ["tokens"], []
    for kernel in MEMORY_KERNELS:
        header += [f"{kernel}: peak MB", "× half the tokens"]
    for S in MEMORY_LENGTHS:
        cells = []
        for kernel in MEMORY_KERNELS:
            row, half = measured.get((kernel, S)), measured.get((kernel, S // 2), {})
            if row is None or "why" in row:
                cells += [row["why"] if row else NOT_MEASURED, ""]
                continue
            grown = f"{row['peak_bytes'] / half['peak_bytes']:.1f}" if half.get("peak_bytes") else ""
            cells += [f"{row['peak_bytes'] / 1e6:,.0f}", grown]
        rows.append([f"{S:,}", *cells])
    heads = MEMORY_HEADS[suite]
    return [f"Memory of one call, {heads} head{'s' if heads > 1 else ''}:", "", *table(header, rows)]


def plot(suite: str, rows: list[dict[str, Any]]) -> str:
    """TFLOP/s against the logarithm of the length, as an SVG that stands alone."""
    lines = []
    for colour, kernel in enumerate(KERNELS[suite]):
        points = [
            (r["S"].bit_length() - 1, rate(r, suite) / 1e12) for r in rows if r["kernel"] == kernel and "why" not in r
        ]
        lines.append(Line(kernel, points, colour, marked=True))
    return picture(lines, "log2 of the tokens", "TFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    parser.add_argument("--render", action="store_true", help="write the table anew from what was measured")
    arguments = parser.parse_args()
    if not arguments.render:
        import torch

        from recipes.training.processes import flush_denormals

        suite = (arguments.suite or ("cuda" if torch.cuda.is_available() else "cpu")).upper()
        if (suite == "CUDA") != torch.cuda.is_available():
            sys.exit(f"error: suite {suite.lower()}: this machine has {'a' if suite == 'CPU' else 'no'} GPU")
        if suite == "CPU":
            flush_denormals()
        found: dict[str, Any] = {"machine": machine_and_versions("torch", "llm-foundry"), "rows": [], "memory": []}
        for S in LENGTHS[suite]:
            for kernel in KERNELS[suite]:
                found["rows"].append({"kernel": kernel, "S": S, **measure(kernel, S, suite)})
                print(found["rows"][-1], flush=True)
            write({suite: found})  # after each length: a machine may be there for minutes only
        for S in MEMORY_LENGTHS:
            for kernel in MEMORY_KERNELS:
                found["memory"].append({"kernel": kernel, "S": S, **measure_memory(kernel, S, suite)})
                print(found["memory"][-1], flush=True)
            write({suite: found})
        return
    write({})


def write(measured: Mapping[str, Any]) -> None:
    for suite, found in {**known("attention"), **measured}.items():
        (RESULTS / f"attention-{suite.lower()}.svg").write_text(plot(suite, found["rows"]))
    write_suites("attention", "Attention: time, speed and memory", COMMANDS, measured, render)


if __name__ == "__main__":
    main()
