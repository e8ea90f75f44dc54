"""Training speed: this project's MPT against LLM Foundry's own, in the same run.

    python -m bench.train --suite cpu        # a small MPT, about four minutes on two cores
    python -m bench.train --suite cuda       # MPT-125M, 1B, 3B and 7B shapes on one GPU, about half an hour
    python -m bench.train --suite cuda --missing    # goes on where that was cut off

All train the same model (same seed, same first weights) on the same random tokens through Composer's Trainer, with the
same callbacks and optimizer; "compiled" is `compile: true` with `fused_adamw`, which takes the same steps. Stock is LLM
Foundry's model class with `attn_impl: torch`, the only one it has without a source build of flash-attn, and `loss_fn:
torch_crossentropy`. Each measurement is a process of its own; the sides alternate; a step's time is the median of all
steps after the first two, over all rounds. On a GPU that runs out of memory the micro-batch is halved, then (7B) layers
are taken away; what ran is in the table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.machine import machine_and_versions
from bench.suites import NOT_MEASURED, known, table, write_suites

SIDES = {"CPU": ("stock", "ours"), "CUDA": ("stock", "ours", "ours, compiled")}
WARM_UP = 2  # steps
SMALL = {"d_model": 256, "n_heads": 4, "n_layers": 4, "vocab_size": 8192}
# LLM Foundry's sized MPT files (scripts/train/yamls/pretrain)
LARGE = {
    "125M": {"d_model": 768, "n_heads": 12, "n_layers": 12},
    "1B": {"d_model": 2048, "n_heads": 16, "n_layers": 24},
    "3B": {"d_model": 2560, "n_heads": 20, "n_layers": 32},
    "7B": {"d_model": 4096, "n_heads": 32, "n_layers": 32},
}
TOKENS_OF_A_MICROBATCH = {"125M": 65536, "1B": 32768, "3B": 16384, "7B": 8192}  # at most; halved where it does not fit
CPU_TOKENS = 4096
CASES: dict[str, list[tuple[str, dict[str, int], int, int]]] = {  # name, shape, sequence length, sequences
    "CPU": [("small", SMALL, 512, CPU_TOKENS // 512), ("small", SMALL, 2048, CPU_TOKENS // 2048)],
    "CUDA": [
        (name, {**shape, "vocab_size": 50368}, length, max(1, TOKENS_OF_A_MICROBATCH[name] // length))
        for name, shape in LARGE.items()
        for length in (2048, 8192)
    ],
}
COMMANDS = {suite: f"python -m bench.train --suite {suite.lower()}" for suite in CASES}
ROUNDS, STEPS = {"CPU": 2, "CUDA": 1}, {"CPU": 5, "CUDA": 12}
FIRST = [("1B", 8192), ("3B", 8192)]  # a GPU may be there for minutes only


def model_section(shape: Mapping[str, int], seq_len: int, side: str) -> dict[str, Any]:
    """LLM Foundry's `model:` keys."""
    stock = {"attn_impl": "torch"} if side == "stock" else {}
    loss = {"loss_fn": "torch_crossentropy"} if side == "stock" else {}
    config = {"expansion_ratio": 4, "max_seq_len": seq_len, "no_bias": True, "use_train_metrics": False}
    return {**shape, **config, **loss, "attn_config": {"alibi": True, **stock}}


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train in this process; seconds of each step, peak bytes, and the last loss; or that memory ran out."""
    import logging
    import resource
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    import torch
    from composer import Callback, Trainer
    from composer.callbacks import LRMonitor, MemoryMonitor, SpeedMonitor
    from composer.loggers import InMemoryLogger
    from composer.optim import DecoupledAdamW
    from llmfoundry.models.mpt import modeling_mpt as foundry

    on_gpu = torch.cuda.is_available()
    if job["side"] != "stock":
        from recipes.models.mpt import ComposerMPTCausalLM as Model
        from recipes.training.processes import flush_denormals

        if not on_gpu:
            flush_denormals()  # as a run does
    else:
        Model = foundry.ComposerMPTCausalLM

    class Clock(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.last = 0.0

        def batch_end(self, state: Any, logger: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if int(state.timestamp.batch) > WARM_UP:
                self.seconds.append(now - self.last)
            self.last = now

    class Tokens(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return job["sequences"] * (job["steps"] + WARM_UP)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(index)
            ids = torch.randint(job["shape"]["vocab_size"], (job["seq_len"],), generator=generator)
            return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids, dtype=torch.bool)}

    torch.manual_seed(17)
    section = model_section(job["shape"], job["seq_len"], job["side"])
    model = Model(tokenizer=None, **section, init_device="cuda" if on_gpu else "cpu")
    optimizer: type[torch.optim.Optimizer] = DecoupledAdamW
    if job["side"] == "ours, compiled":
        from recipes.models.compiling import compile_blocks
        from recipes.training.optimizers import FusedAdamW

        compile_blocks(model)
        optimizer = FusedAdamW
    logged = InMemoryLogger()
    clock = Clock()
    trainer = Trainer(
        model=model,
        train_dataloader=torch.utils.data.DataLoader(Tokens(), batch_size=job["sequences"]),
        optimizers=optimizer(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0),
        max_duration=f"{job['steps'] + WARM_UP}ba",
        precision="amp_bf16" if on_gpu else "fp32",
        device_train_microbatch_size=job["sequences"],
        callbacks=[SpeedMonitor(window_size=10), LRMonitor(), MemoryMonitor(), clock],
        loggers=[logged],
        progress_bar=False,
        seed=17,
    )
    try:
        trainer.fit()
    except torch.OutOfMemoryError:
        return {"oom": True}
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": clock.seconds,
        "peak_bytes": peak,
        "loss": float(logged.data["loss/train/total"][-1][1]),
        "machine": machine_and_versions("torch", "llm-foundry", "mosaicml"),
        "device": torch.cuda.get_device_name() if on_gpu else None,
        "matmul_flops": None if on_gpu else _matmul_flops(),
    }


def _matmul_flops() -> float:
    """FLOP/s of one large fp32 matrix product, the machine's practical limit: the best of ten."""
    import torch

    n = 2048
    a = torch.randn(n, n)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begun)
    return 2 * n**3 / best


def measure(
    suite: str, name: str, shape: dict[str, int], seq_len: int, sequences: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row after each round: all sides, alternating, ours first."""
    job: dict[str, Any] = {
        side: _first_to_try(suite, side, name, {"shape": dict(shape), "seq_len": seq_len, "sequences": sequences})
        for side in SIDES[suite]
    }
    failed: dict[str, Any] = {}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES[suite]}
    for _ in range(rounds):
        for side in reversed(SIDES[suite]):
            while job[side] is not None:
                result = _in_a_process({**job[side], "side": side, "steps": STEPS[suite]})
                if "why" in result:
                    failed[side] = result
                    job[side], found[side] = None, []
                    break
                if not result.get("oom"):
                    found[side].append(result)
                    break
                found[side].clear()
                job[side] = _smaller(name, job[side])
        yield _row(suite, name, seq_len, job, found, failed)


def _row(
    suite: str,
    name: str,
    seq_len: int,
    job: Mapping[str, Any],
    found: Mapping[str, list[dict[str, Any]]],
    failed: Mapping[str, Any],
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "seq_len": seq_len}
    for side in SIDES[suite]:
        if not found[side]:
            row[side] = failed.get(side)
            continue
        seconds = statistics.median(s for result in found[side] for s in result["seconds"])
        row[side] = {
            "sequences": job[side]["sequences"],
            "n_layers": job[side]["shape"]["n_layers"],
            "shape": job[side]["shape"],
            "tokens_per_s": job[side]["sequences"] * seq_len / seconds,
            "peak_bytes": max(result["peak_bytes"] for result in found[side]),
            **{key: found[side][-1][key] for key in ("loss", "machine", "device", "matmul_flops")},
        }
        print(f"{name} {seq_len} {side}: {row[side]['tokens_per_s']:,.0f} tokens/s", flush=True)
    return row


def _first_to_try(suite: str, side: str, name: str, job: dict[str, Any]) -> dict[str, Any] | None:
    """What memory is counted to suffice for, or not by much: each try that runs out of memory takes a minute."""
    if suite == "CPU":
        return job
    import torch

    from recipes.cost.hardware import find_gpu
    from recipes.cost.memory import memory
    from recipes.cost.setup import read_setup

    there = torch.cuda.mem_get_info()[1] / 2**30
    tried: dict[str, Any] | None = job
    while tried is not None:
        job = tried
        recipe = {
            "max_seq_len": tried["seq_len"],
            "model": model_section(tried["shape"], tried["seq_len"], side),
            "global_train_batch_size": tried["sequences"],
            "device_train_microbatch_size": tried["sequences"],
        }
        if memory(read_setup(recipe, 1), find_gpu("h200")).total_gib <= 1.15 * there:
            return tried
        tried = _smaller(name, tried)
    return job


def _smaller(name: str, job: dict[str, Any]) -> dict[str, Any] | None:
    if job["sequences"] > 1:
        return {**job, "sequences": job["sequences"] // 2}
    layers = job["shape"]["n_layers"] - 4
    return {**job, "shape": {**job["shape"], "n_layers": layers}} if name == "7B" and layers > 0 else None


def _in_a_process(job: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "bench.train", "--job", json.dumps(job), "--job-out", str(out)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr, flush=True)
            lines = done.stderr.strip().splitlines()
            return {"why": f"failed: {lines[-1][:100] if lines else f'exit {done.returncode}'}"}
        result: dict[str, Any] = json.loads(out.read_text())
        return result


def _limit_flops(suite: str, found: Mapping[str, Any] | None) -> float:
    """FLOP/s of a large product on the machine: the most that any process of the suite got, one limit for all rows."""
    results = [
        row[side]
        for row in (found["rows"] if found else ())
        for side in SIDES[suite]
        if row[side] and "why" not in row[side]
    ]
    return max((result["matmul_flops"] or 0.0 for result in results), default=0.0)


def render(suite: str, found: Mapping[str, Any] | None) -> list[str]:
    from recipes.cost.flops import causal_flops_per_token, llm_foundry_flops_per_token
    from recipes.cost.hardware import gpu_from_device_name

    shares = "MFU, LLM Foundry's | MFU, causal half" if suite == "CUDA" else "of a matrix product, causal half"
    header = ["model", "tokens a sequence", "side", "sequences × layers", "tokens/s", *shares.split(" | ")]
    header += ["peak GB", "last loss", "× stock"]
    rows = []
    limit = _limit_flops(suite, found)
    for name, _, seq_len, _ in CASES[suite]:
        row = next((r for r in found["rows"] if (r["name"], r["seq_len"]) == (name, seq_len)), None) if found else None
        for side in SIDES[suite]:
            start = [name, f"{seq_len:,}", side]
            if row is None:
                rows.append([*start, NOT_MEASURED, *[""] * (len(header) - 4)])
                continue
            result = row[side]
            if result is None or "why" in result:
                rows.append([*start, result["why"] if result else "out of memory", *[""] * (len(header) - 4)])
                continue
            section = model_section(result["shape"], seq_len, side)
            rate = result["tokens_per_s"]
            if suite == "CUDA":
                gpu = gpu_from_device_name(result["device"])
                peak = (gpu.peak("bf16") if gpu else None) or float("nan")
                counted = [llm_foundry_flops_per_token(section, seq_len) * rate / peak]
                counted.append(causal_flops_per_token(section, seq_len) * rate / peak)
            else:
                counted = [causal_flops_per_token(section, seq_len) * rate / limit]
            stock, speedup = row["stock"] or {}, ""
            if side != "stock" and "tokens_per_s" in stock:  # with fewer layers it is another model
                alike = stock["n_layers"] == result["n_layers"]
                speedup = f"{rate / stock['tokens_per_s']:.2f}" if alike else "other layers"
            rows.append(
                [*start, f"{result['sequences']} × {result['n_layers']}", f"{rate:,.0f}"]
                + [f"{share:.1%}" for share in counted]
                + [f"{result['peak_bytes'] / 1e9:.2f}", f"{result['loss']:.4f}", speedup]
            )
    lines = table(header, rows)
    if suite == "CPU" and found:
        limits = []
        for row in found["rows"]:
            result = row["ours"] or {}
            if "shape" not in result:  # it failed
                continue
            flops = causal_flops_per_token(model_section(result["shape"], row["seq_len"], "ours"), row["seq_len"])
            limits.append(f"{limit / flops:,.0f} tokens/s at {row['seq_len']:,}")
        lines += [
            "",
            "The limit: all products of the causal half at the speed of one large fp32 product "
            f"({limit / 1e9:,.0f} GFLOP/s here at best), nothing else: {', '.join(limits)}.",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    parser.add_argument("--only", metavar="MODEL[-TOKENS]", help="measure these rows alone, such as 1B-8192")
    parser.add_argument("--rounds", type=int, help="of all sides, for each row (default: 2 on a CPU, 1 on a GPU)")
    parser.add_argument("--missing", action="store_true", help="only rows that this machine has not measured yet")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--job-out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--render", action="store_true", help="write the table anew from what was measured")
    arguments = parser.parse_args()
    if arguments.job:
        arguments.job_out.write_text(json.dumps(work(json.loads(arguments.job))))
        return
    title = "Training: tokens a second, this project against LLM Foundry"
    if not arguments.render:
        import torch

        suite = (arguments.suite or ("cuda" if torch.cuda.is_available() else "cpu")).upper()
        if (suite == "CUDA") != torch.cuda.is_available():
            sys.exit(f"error: suite {suite.lower()}: this machine has {'a' if suite == 'CPU' else 'no'} GPU")
        before = known("train").get(suite, {"rows": []})
        rows = {(row["name"], row["seq_len"]): row for row in before["rows"]}
        cases = [case for case in CASES[suite] if arguments.only in (None, f"{case[0]}-{case[2]}", case[0])]
        cases.sort(key=lambda case: (case[0], case[2]) not in FIRST)
        if not cases:
            known_cases = ", ".join(f"{case[0]}-{case[2]}" for case in CASES[suite])
            sys.exit(f"error: --only: got {arguments.only}, expected one of {known_cases}")
        if arguments.missing and before.get("machine") == machine_and_versions("torch", "llm-foundry", "mosaicml"):
            cases = [case for case in cases if (case[0], case[2]) not in rows]
        # written after each round: a machine may be there for half an hour only
        for row in (row for case in cases for row in measure(suite, *case, arguments.rounds or ROUNDS[suite])):
            rows[row["name"], row["seq_len"]] = row
            here = [row[side]["machine"] for side in SIDES[suite] if row[side] and "machine" in row[side]]
            machine = here[0] if here else before.get("machine", "")
            if before["rows"] and machine != before["machine"]:
                rows, before = {(row["name"], row["seq_len"]): row}, {"rows": []}  # rows of one machine are compared
            write_suites("train", title, COMMANDS, {suite: {"machine": machine, "rows": list(rows.values())}}, render)
        return
    write_suites("train", title, COMMANDS, {}, render)


if __name__ == "__main__":
    main()
