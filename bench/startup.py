"""Start-up: from the command to the end of the first optimizer step, this project's against LLM Foundry's.

    env -u PYTHONDONTWRITEBYTECODE python -m bench.startup --out bench/results/startup.md

Both train the quickstart's model on the embedded corpus (`make data` first) from the same resolved recipe; LLM Foundry
gets `attn_impl: torch` and `loss_fn: torch_crossentropy`, without which it does not start here, and is run as its own
scripts/train/train.py. A callback writes the time when the first step has ended and ends the process. The commands
alternate; a first round that fills the bytecode caches is not counted. Where the imports' time goes is measured with
`python -X importtime`.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.machine import machine_and_versions, write_result
from bench.suites import table

RECIPE = "yamls/pretrain/mpt-quickstart.yaml"
STOPWATCH = """
import os, time
from composer import Callback
from llmfoundry.registry import callbacks

class Stopwatch(Callback):
    def batch_end(self, state, logger):
        with open(os.environ["FIRST_STEP"], "w") as file:
            file.write(repr(time.time()))
        os._exit(0)

callbacks.register("stopwatch", func=Stopwatch)
"""
# LLM Foundry's scripts/train/train.py
FOUNDRY = """
import sys
from llmfoundry.command_utils import train_from_yaml

train_from_yaml(sys.argv[1], sys.argv[2:])
"""
OURS_ALONE = ("cost", "include", "dry_run", "compile", "selective_checkpointing", "pretrained", "dpo")


def prepare(folder: Path) -> dict[str, list[str]]:
    """The recipe for both, and the commands."""
    import yaml

    from recipes.config.load import load

    (folder / "stopwatch.py").write_text(STOPWATCH)
    (folder / "foundry.py").write_text(FOUNDRY)
    changes = [f"code_paths=[{folder / 'stopwatch.py'}]", "callbacks.stopwatch={}", "save_folder=null"]
    changes += ["eval_first=false", "run_name=startup", "progress_bar=false"]
    values: dict[str, Any] = yaml.safe_load(load(RECIPE, changes).to_yaml())
    for key in OURS_ALONE:
        values.pop(key, None)
    values["callbacks"].pop("cost_monitor", None)
    (folder / "ours.yaml").write_text(yaml.safe_dump(values))
    values["model"]["attn_config"]["attn_impl"] = "torch"
    values["model"]["loss_fn"] = "torch_crossentropy"
    for loader in ("train_loader", "eval_loader"):
        values[loader].update(prefetch_factor=None, persistent_workers=False)
    values["variables"] = {}
    (folder / "foundry.yaml").write_text(yaml.safe_dump(values))
    composer = str(Path(sys.executable).with_name("composer"))
    return {
        "LLM Foundry: composer train.py": [
            composer,
            "-n",
            "1",
            str(folder / "foundry.py"),
            str(folder / "foundry.yaml"),
        ],
        "ours: composer train.py": [composer, "-n", "1", "train.py", str(folder / "ours.yaml")],
        "ours: python train.py": [sys.executable, "train.py", str(folder / "ours.yaml")],
    }


def seconds(command: list[str], folder: Path) -> float:
    """From the start of the command to the end of the first step."""
    mark = folder / "first_step"
    mark.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"FIRST_STEP": str(mark), "HF_HUB_OFFLINE": "1"}
    begun = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not mark.exists():
        sys.exit(f"error: {' '.join(command)} took no step:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return float(mark.read_text()) - begun


def imports(module: str) -> list[tuple[str, float]]:
    """Seconds of their own that the packages behind `import module` take, largest first."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-X", "importtime", "-c", f"import {module}"]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr.splitlines()
    own: dict[str, float] = defaultdict(float)
    for line in lines:
        found = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if found:
            own[found[2].partition(".")[0]] += int(found[1]) / 1e6
    return sorted(own.items(), key=lambda item: -item[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file; default: the screen")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = prepare(folder)
        for round in range(arguments.rounds + 1):
            for label, command in commands.items():
                took = seconds(command, folder)
                print(f"{label}: {took:.1f} s", flush=True)
                if round:
                    times[label].append(took)
    medians = {label: statistics.median(of) for label, of in times.items()}
    stock = next(iter(medians.values()))
    rows = [[label, f"{s:.1f}", f"{s / stock:.0%}"] for label, s in medians.items()]
    parts = {module: imports(module) for module in ("recipes.build", "llmfoundry")}
    lines = [
        "# Start-up: from the command to the end of the first step",
        "",
        f"Command: `env -u PYTHONDONTWRITEBYTECODE python -m bench.startup --rounds {arguments.rounds} "
        "--out bench/results/startup.md`",
        "",
        machine_and_versions("torch", "llm-foundry", "mosaicml", "transformers"),
        "",
        f"Median of {arguments.rounds} alternating rounds, bytecode caches filled.",
        "",
        *table(["command", "seconds", "of LLM Foundry's"], rows),
        "",
        "## Where importing goes",
        "",
        "Seconds of their own, by top-level package.",
        "",
    ]
    for module, found in parts.items():
        total = sum(s for _, s in found)
        largest = ", ".join(f"{package} {s:.2f}" for package, s in found[:14])
        lines += [f"`import {module}`: {total:.1f} s, of which {largest}.", ""]
    write_result(lines[:-1], arguments.out)


if __name__ == "__main__":
    main()
