"""Start-up: from the command to the end of the first optimizer step, this project's against LLM Foundry's.

    env -u PYTHONDONTWRITEBYTECODE python -m bench.startup --rounds 3 --stock ENVIRONMENT/bin/python \\
        --out bench/results/startup.md

ENVIRONMENT is LLM Foundry as it installs itself, with its own pins, made outside this folder, whose pins uv would take:
`uv venv ENVIRONMENT; uv pip install --python ENVIRONMENT/bin/python llm-foundry==0.22.0 'setuptools<81'`. Without
--stock it is measured in this project's environment alone, which has less to import.

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
IMPORTS = (
    "from recipes.training.startup import light_imports; exec('with light_imports(): import recipes.build')",
    "import recipes.build",
    "import llmfoundry",
)
OURS_ALONE = ("cost", "include", "dry_run", "compile", "selective_checkpointing", "pretrained", "dpo")


def prepare(folder: Path, stock: Path | None) -> dict[str, list[str]]:
    """The recipe for both, and the commands; LLM Foundry's own, the one that others are compared with, first."""
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
    ours, theirs = ["train.py", str(folder / "ours.yaml")], [str(folder / "foundry.py"), str(folder / "foundry.yaml")]
    commands = {}
    if stock is not None:
        commands["LLM Foundry with its own pins: composer"] = [*_composer(stock), *theirs]
        commands["LLM Foundry with its own pins: python"] = [str(stock), *theirs]
    here = Path(sys.executable)
    commands["LLM Foundry in this environment: composer"] = [*_composer(here), *theirs]
    commands["LLM Foundry in this environment: python"] = [str(here), *theirs]
    commands["ours: composer"] = [*_composer(here), *ours]
    commands["ours: python -m recipes.launch"] = [str(here), "-m", "recipes.launch", "-n", "1", *ours]
    commands["ours: python"] = [str(here), *ours]
    return commands


def _composer(python: Path) -> list[str]:
    return [str(python.with_name("composer")), "-n", "1"]


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


def imports(statement: str) -> list[tuple[str, float]]:
    """Seconds of their own that the packages behind an import take, largest first."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-X", "importtime", "-c", statement]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr.splitlines()
    own: dict[str, float] = defaultdict(float)
    for line in lines:
        found = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if found:
            own[found[2].partition(".")[0]] += int(found[1]) / 1e6
    return sorted(own.items(), key=lambda item: -item[1])


def _versions(python: Path) -> str:
    packages = ("torch", "llm-foundry", "mosaicml", "transformers")
    statement = f"from importlib.metadata import version; print(*(p + ' ' + version(p) for p in {packages}), sep=', ')"
    return subprocess.run([str(python), "-c", statement], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stock", type=Path, metavar="PYTHON", help="of an environment with LLM Foundry's own pins")
    parser.add_argument("--out", type=Path, help="Markdown file; default: the screen")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = prepare(folder, arguments.stock)
        for round in range(arguments.rounds + 1):
            for label, command in commands.items():
                took = seconds(command, folder)
                print(f"{label}: {took:.1f} s", flush=True)
                if round:
                    times[label].append(took)
    medians = {label: statistics.median(of) for label, of in times.items()}
    foundry = [s for label, s in medians.items() if label.endswith("composer") and not label.startswith("ours")]
    rows = [[label, f"{s:.1f}", *(f"{s / of:.0%}" for of in foundry)] for label, s in medians.items()]
    header = ["command", "seconds", *(["of LLM Foundry's with its own pins"] if arguments.stock else [])]
    header.append("of LLM Foundry's in this environment")
    parts = {statement: imports(statement) for statement in IMPORTS}
    lines = [
        "# Start-up: from the command to the end of the first step",
        "",
        f"Command: `env -u PYTHONDONTWRITEBYTECODE python -m bench.startup --rounds {arguments.rounds} "
        f"{'--stock ENVIRONMENT/bin/python ' if arguments.stock else ''}--out bench/results/startup.md`",
        "",
        machine_and_versions("torch", "llm-foundry", "mosaicml", "transformers"),
        *([f"LLM Foundry's own pins: {_versions(arguments.stock)}"] if arguments.stock else []),
        "",
        f"Median of {arguments.rounds} alternating rounds, bytecode caches filled.",
        "",
        *table(header, rows),
        "",
        "## Where importing goes",
        "",
        "Seconds of their own, by top-level package, each measured once, after the rounds above, under",
        "`python -X importtime`: no median, so that a sum can come out above the whole start in the table.",
        "",
    ]
    for statement, found in parts.items():
        total = sum(s for _, s in found)
        largest = ", ".join(f"{package} {s:.2f}" for package, s in found[:14])
        lines += [f"`{statement}`: {total:.1f} s, of which {largest}.", ""]
    write_result(lines[:-1], arguments.out)


if __name__ == "__main__":
    main()
