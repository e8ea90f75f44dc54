"""How fast an export is, against copying the same checkpoint with cp.

    python -m bench.export --gb 8 --folder /tmp        # writes bench/results/export.md

Makes a checkpoint shaped like MPT-7B, with as many layers as come to --gb (weights alone, fp32), then runs in turn and
three times each: `cp` of the checkpoint with its bytes brought to the disk, and `python -m recipes export` to fp32 and
bf16, which does the same. Bytes a second are those read; the peak memory is that of the exporting process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from bench.machine import machine_and_versions, write_result
from recipes.cost.parameters import count_parameters
from recipes.weights.hf_names import links

RESULTS = Path(__file__).parent / "results" / "export.md"
CORPUS = Path(__file__).parent.parent / "data_prep" / "sotu" / "addresses.jsonl"
ROUNDS = 3
# VmHWM is this process's alone; getrusage begins with the peak of the process that started it
PEAK = "import re,sys;from recipes.__main__ import main;c=main(sys.argv[1:]);"
PEAK += r"print(re.search(r'VmHWM:\s+(\d+)',open('/proc/self/status').read())[1]);sys.exit(c)"


def make_checkpoint(folder: Path, gigabytes: float) -> tuple[Path, int, int]:
    """A run folder with MPT-7B's widths; its path, the checkpoint's bytes and its layers."""
    model = {
        "name": "mpt_causal_lm",
        "d_model": 4096,
        "n_heads": 32,
        "vocab_size": 50432,
        "max_seq_len": 2048,
        "no_bias": True,
        "attn_config": {"alibi": True},
    }
    layer = 12 * 4096 * 4096 * 4
    model["n_layers"] = max(1, min(32, round((gigabytes * 1e9 - 50432 * 4096 * 4) / layer)))
    (folder / "checkpoints").mkdir(parents=True)
    words = [sys.executable, "-m", "data_prep.tokenizer", str(CORPUS), "--out", str(folder / "tokenizer")]
    subprocess.run([*words, "--vocab-size", "4096"], check=True, capture_output=True)
    recipe = {
        "max_seq_len": 2048,
        "model": model,
        "tokenizer": {"name": str(folder / "tokenizer")},
        "train_loader": {
            "name": "text",
            "dataset": {"local": "x", "split": "train"},
            "drop_last": True,
            "num_workers": 0,
        },
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-4},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "1ba"},
        "global_train_batch_size": 8,
        "max_duration": "1ba",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows: dict[str, list[int]] = {}
    for link in links(model):
        known = rows.setdefault(link.ours, [0, *link.shape[1:]])
        known[0] += link.shape[0]
    state = {f"model.{name}": torch.full(tuple(shape), 0.01) for name, shape in rows.items()}
    path = folder / "checkpoints" / "ep0-ba1-rank0.pt"
    torch.save({"state": {"model": state}}, path)
    os.sync()
    assert count_parameters(model).total == sum(t.numel() for t in state.values())
    return folder, path.stat().st_size, int(model["n_layers"])


def copied(source: Path, target: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    took = time.perf_counter() - start
    target.unlink()
    return took


def exported(run: Path, out: Path, dtype: str) -> tuple[float, float, int]:
    """Seconds of the whole command, seconds of writing the weights, and the peak memory in bytes."""
    start = time.perf_counter()
    command = [sys.executable, "-c", PEAK, "export", str(run), str(out), "--dtype", dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = time.perf_counter() - start
    shutil.rmtree(out)
    written = float(done.stdout.split("written in ")[1].split()[0])
    return took, written, int(done.stdout.split()[-1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=8.0, help="of the checkpoint (8; MPT-7B whole: 26.6)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where there is room for three times as much")
    arguments = parser.parse_args()
    scratch = arguments.folder / f"bench-export-{os.getpid()}"
    try:
        run, size, layers = make_checkpoint(scratch / "run", arguments.gb)
        checkpoint = run / "checkpoints" / "ep0-ba1-rank0.pt"
        copied(checkpoint, scratch / "warm.pt")
        times: dict[str, list[float]] = {"cp": [], "fp32": [], "fp32 whole": [], "bf16": [], "bf16 whole": []}
        peak = 0
        for _ in range(ROUNDS):
            times["cp"].append(copied(checkpoint, scratch / "copy.pt"))
            for dtype in ("fp32", "bf16"):
                took, written, used = exported(run, scratch / "out", dtype)
                times[dtype].append(written)
                times[f"{dtype} whole"].append(took)
                peak = max(peak, used)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    names = {
        "cp": "cp, then fsync",
        "fp32": "export to fp32, the weights",
        "fp32 whole": "export to fp32, the command",
        "bf16": "export to bf16, the weights",
        "bf16 whole": "export to bf16, the command",
    }
    lines = [
        "# Export against cp",
        "",
        f"    python -m bench.export --gb {arguments.gb:g} --folder {arguments.folder}",
        "",
        f"A checkpoint of {size / 1e9:.2f} GB, MPT-7B's widths, {layers} layers; {ROUNDS} rounds in turn, medians.",
        "All written bytes are brought to the disk. What is read was just written, and is in memory where it fits",
        "there. The command is the weights, and the start of Python, its libraries and the tokenizer, which does not",
        "grow with the model.",
        machine_and_versions("numpy", "transformers"),
        "",
        "| | seconds | spread | GB read a second | GB written a second |",
        "|---|---|---|---|---|",
    ]
    for key, name in names.items():
        middle = statistics.median(times[key])
        spread = f"{min(times[key]):.1f} – {max(times[key]):.1f}"
        written = size / 2 if key.startswith("bf16") else size
        lines.append(f"| {name} | {middle:.1f} | {spread} | {size / middle / 1e9:.2f} | {written / middle / 1e9:.2f} |")
    lines += ["", f"Peak memory of an export: {peak / 2**20:,.0f} MiB, Python and its libraries included."]
    write_result(lines, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
