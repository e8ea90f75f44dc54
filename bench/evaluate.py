"""Evaluation against LLM Foundry's in-context learning and lm-evaluation-harness's `hf` model, in one process.

    python -m bench.evaluate --data FOLDER --tokenizer FOLDER --suite small       # GPT-NeoX's tokenizer; five minutes
    python -m bench.evaluate --data FOLDER --tokenizer FOLDER --suite mpt-125m    # the same; six minutes
    python -m bench.evaluate --data FOLDER --tokenizer shards/sotu/tokenizer --suite words
    python -m bench.evaluate --data FOLDER --tokenizer shards/sotu/tokenizer --suite whole

--data holds piqa.jsonl and its like in LLM Foundry's format (its scripts/eval/local_data). The first three measure
examples a CPU-second: every contender has the same model, batch size and examples, in turns, and the median of the
rounds counts. Seconds are user and system time of this process from the task's file to its score: prompts, tokens,
model; not importing, not loading the model. No answer is kept between rounds. `whole` asks every example of five tasks
of all three, once, and compares the answers. Where logits differ from `hf`'s, the longest answers are also computed in
float64, to see whose are nearer.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import transformers

from bench.machine import machine_and_versions
from bench.rivals import (
    FOUNDRY,
    HF,
    ICL,
    OURS_ICL,
    OURS_LM,
    Questions,
    computed,
    contenders,
    context_for,
    exact,
    models,
    questions,
)
from bench.suites import NOT_MEASURED, table, write_suites

ROWS = 32  # of a batch
LONGEST = 20  # answers that are also computed in float64


@dataclass(frozen=True)
class Suite:
    shape: str  # of yamls/models
    tokenizer: str
    tasks: Mapping[str, tuple[int, int | None]]  # file → few-shot examples, examples from the first (None: all)
    rounds: int


SUITES = {
    "small": Suite("mpt-quickstart", "GPT-NeoX's", {"piqa": (0, 200), "arc_easy": (5, 60)}, 3),
    "mpt-125m": Suite("mpt-125m", "GPT-NeoX's", {"piqa": (0, 60), "arc_easy": (5, 12)}, 1),
    "words": Suite("mpt-quickstart", "the quickstart's", {"piqa": (0, 200), "arc_easy": (5, 60)}, 3),
    "whole": Suite("mpt-quickstart", "the quickstart's", dict.fromkeys(ICL, (0, None)), 1),
}
HEADER = ["task", "program", "examples", "accuracy", "CPU-seconds of the rounds", "examples a CPU-second", "against it"]


def measure(name: str, suite: Suite, data: Path, tokenizer: Any) -> dict[str, Any]:
    rows, notes = [], []
    for file, (shots, examples) in suite.tasks.items():
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            asked = questions(data, file, shots, examples, Path(folder))
            built = asked.built(tokenizer)
            context = context_for(built)
            ours, theirs = models(suite.shape, tokenizer, context)
            rivals = contenders(asked, ours, theirs, tokenizer, context, ROWS)
            seconds: dict[str, list[float]] = {rival: [] for rival in rivals}
            found: dict[str, tuple[float, list[float]]] = {}
            for _ in range(suite.rounds):
                for rival, run in rivals.items():
                    start = time.process_time()
                    found[rival] = run()
                    seconds[rival].append(time.process_time() - start)
            title = f"{file}, {shots}-shot"
            rows += _rows(title, asked.examples, seconds, found)
            same = same_answers(found, ours, asked, tokenizer)
            notes.append(f"{title}: context {context} tokens; {computed(built, ROWS)}. {same}")
    return {"rows": rows, "notes": notes, "machine": f"{_machine()}; {ours.model.config.vocab_size:,} embeddings"}


def _rows(
    title: str, examples: int, seconds: Mapping[str, Sequence[float]], found: Mapping[str, tuple[float, list[float]]]
) -> list[list[str]]:
    rate = {rival: examples / statistics.median(taken) for rival, taken in seconds.items()}
    rows = []
    for rival, reference in ((FOUNDRY, None), (OURS_ICL, FOUNDRY), (HF, None), (OURS_LM, HF)):
        times = f"**{rate[rival] / rate[reference]:.1f} ×**" if reference else ""
        taken = ", ".join(f"{second:.1f}" for second in seconds[rival])
        rows.append(
            [title, rival, f"{examples:,}", f"{found[rival][0]:.4f}", taken, f"{rate[rival]:,.1f}", times],
        )
    return rows


def same_answers(found: Mapping[str, tuple[float, list[float]]], ours: Any, asked: Questions, tokenizer: Any) -> str:
    """Words on how equal the answers are. Exits where an accuracy differs."""
    for one, other in ((FOUNDRY, OURS_ICL), (HF, OURS_LM)):
        if abs(found[one][0] - found[other][0]) > 1e-6:  # LLM Foundry's metric is in float32
            sys.exit(f"error: {asked.name}: {one} has {found[one][0]}, {other} {found[other][0]}")
    theirs, here = found[HF][1], found[OURS_LM][1]
    gaps = [abs(a - b) for a, b in zip(theirs, here, strict=True)]
    longest = sorted(range(len(theirs)), key=lambda i: theirs[i])[:LONGEST]
    truth = exact(ours, asked, tokenizer, longest)
    off = [max(abs(of[i] - value) for i, value in zip(longest, truth, strict=True)) for of in (here, theirs)]
    return (
        f"Log-likelihoods of {len(gaps):,} answers: the largest difference to `hf` is {max(gaps):.1e}, "
        f"{sum(gap > 1e-4 for gap in gaps)} differ by more than 1e-4. Of the {len(longest)} largest "
        f"({-theirs[longest[-1]]:,.0f} to {-theirs[longest[0]]:,.0f} nats) ours are within {off[0]:.1e} of float64, "
        f"`hf`'s within {off[1]:.1e}."
    )


def _machine() -> str:
    return machine_and_versions("torch", "transformers", "lm-eval", "llm-foundry", "mosaicml")


def render(name: str, found: Mapping[str, Any] | None) -> list[str]:
    suite = SUITES[name]
    lines = [f"Shape of yamls/models/{suite.shape}.yaml, {suite.tokenizer} tokenizer, batches of {ROWS}.", ""]
    if found is None:
        return [*lines, *table(["task"], [[f"{task}: {NOT_MEASURED}"] for task in suite.tasks])]
    return [*lines, *table(HEADER, found["rows"]), "", *(f"- {note}" for note in found["notes"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of piqa.jsonl and its like")
    parser.add_argument("--tokenizer", type=Path, required=True, help="its folder: the one that the suite is for")
    parser.add_argument("--suite", choices=SUITES, required=True)
    arguments = parser.parse_args()
    suite = SUITES[arguments.suite]
    missing = [f"{name}.jsonl" for name in suite.tasks if not (arguments.data / f"{name}.jsonl").is_file()]
    if missing:
        sys.exit(f"error: {arguments.data} has no {', '.join(missing)}")
    datasets.disable_progress_bars()
    datasets.disable_caching()
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    measured = {arguments.suite: measure(arguments.suite, suite, arguments.data, tokenizer)}
    commands = {name: f"python -m bench.evaluate --data FOLDER --tokenizer FOLDER --suite {name}" for name in SUITES}
    write_suites("evaluate", "Evaluation: the same answers, and examples a CPU-second", commands, measured, render)


if __name__ == "__main__":
    main()
