"""Evaluation against LLM Foundry's in-context learning and lm-evaluation-harness's `hf` model: examples a CPU-second.

    python -m bench.evaluate --data FOLDER --out bench/results/evaluate.md

FOLDER holds piqa.jsonl and arc_easy.jsonl in LLM Foundry's format (its scripts/eval/local_data). The model is a run of
this project's, the quickstart's by default, with ALiBi, so that its context can be as long as the prompts are; the `hf`
model is the same weights in transformers' own MPT. Every contender has the same batch size and examples, in turns, and
the median of the rounds counts. PIQA is asked once more of a model with 50,368 embeddings, as those with GPT-NeoX's
tokenizer have, whose output layer is most of the work. Seconds are user and system time of this process from the task's
file to its score: prompts, tokens, model; not importing, not loading the model. No answer is kept between rounds.
"""

import argparse
import copy
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch

from bench.machine import machine_and_versions, write_result
from eval import harness_tasks
from eval.backbone import Backbone
from eval.batching import padded, plan
from eval.harness_lm import ScoringLM
from eval.scoring import PASSES
from eval.suite import run_tasks, tasks_of
from eval.vectors import ENOUGH_TOKENS

ROUND_UP = 64  # tokens: the context is the longest prompt, rounded up; LLM Foundry pads everything to it
TASKS = {  # name: (file, few-shot examples, between question and answer)
    "PIQA, 0-shot": ("piqa", 0, "Answer: "),
    "ARC-easy, 5-shot": ("arc_easy", 5, "\nAnswer: "),
}
WIDE, FEWER = 50_368, 3  # embeddings of models with GPT-NeoX's tokenizer, on a third of the examples
FOUNDRY, OURS_ICL, HF, OURS_LM = "LLM Foundry ICL", "ours, same task", "harness, hf", "harness, ours"
Contender = Callable[[], tuple[float, list[float]]]  # → accuracy, log-likelihoods of the answers


def task_files(data: Path, work: Path, examples: int) -> dict[str, dict[str, Any]]:
    """The first examples of each task, as an `icl_tasks` entry and as a task of the harness."""
    made = {}
    for title, (name, shots, delimiter) in TASKS.items():
        lines = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:examples]
        path = work / f"{name}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        entry = {
            "label": name,
            "dataset_uri": str(path),
            "icl_task_type": "multiple_choice",
            "num_fewshot": [shots],
            "continuation_delimiter": delimiter,
        }
        harness = {
            "task": f"bench_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "fewshot_split": "test",
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}" + delimiter.rstrip(),
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (work / f"{name}.yaml").write_text(json.dumps(harness))  # JSON is YAML
        made[title] = {"icl": entry, "yaml": str(work / f"{name}.yaml"), "examples": len(lines)}
    return made


def models(run: Path, context: int, vocabulary: int | None) -> tuple[Any, Any, Any]:
    """(Composer model, the same in transformers' own MPT, tokenizer) with a context of so many tokens.

    vocabulary: embeddings to have in all; the further ones are noise, which costs what words would.
    """
    from llmfoundry.utils import builders
    from transformers import MptConfig, MptForCausalLM

    from recipes import build
    from recipes.weights.trained import find_trained

    trained = find_trained(run)
    with trained.tensors() as files:
        weights = {name: files.rows(name).float() for name in files.shapes()}
    section = {**copy.deepcopy(dict(trained.model)), "max_seq_len": context}
    if vocabulary is not None:
        words = weights["transformer.wte.weight"]
        torch.manual_seed(0)
        more = torch.randn(vocabulary - len(words), words.shape[1]) * words.std()
        weights["transformer.wte.weight"] = torch.cat([words, more])
        section["vocab_size"] = vocabulary
    build.register_components()
    tokenizer = builders.build_tokenizer(trained.recipe["tokenizer"]["name"], {})
    ours = build.build_model(section, tokenizer, None, None).eval()
    ours.model.load_state_dict(weights)
    config = MptConfig(
        d_model=section["d_model"],
        n_heads=section["n_heads"],
        n_layers=section["n_layers"],
        vocab_size=section["vocab_size"],
        max_seq_len=context,
    )
    theirs = MptForCausalLM(config).eval()
    absent, unknown = theirs.load_state_dict(weights, strict=False)
    if unknown or set(absent) > {"lm_head.weight"}:
        sys.exit(f"error: {run} is not of an MPT that transformers has too: {[*unknown, *absent][0]} does not fit")
    theirs.tie_weights()
    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        gap = float((ours.model(ids).logits - theirs(ids).logits).abs().max())
    assert gap < 1e-3, f"the two models differ by {gap}"
    return ours, theirs, tokenizer


def contenders(
    task: dict[str, Any], ours: Any, theirs: Any, tokenizer: Any, context: int, batch: int, work: Path
) -> dict[str, Contender]:
    from composer import Trainer
    from llmfoundry.utils import builders
    from lm_eval.models.huggingface import HFLM

    trainer = Trainer(model=ours, progress_bar=False)
    backbone = Backbone(ours, context)
    hf = HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=batch, max_length=context, device="cpu")
    lm = ScoringLM(lambda: backbone, tokenizer, context, batch)

    def foundry() -> tuple[float, list[float]]:
        evaluators, _ = builders.build_icl_evaluators(
            [copy.deepcopy(task["icl"])], tokenizer, context, batch, destination_dir=str(work)
        )
        trainer.eval(eval_dataloader=evaluators)
        (metrics,) = [trainer.state.eval_metrics[e.label] for e in evaluators]
        return float(next(iter(metrics.values())).compute()), []

    def ours_icl() -> tuple[float, list[float]]:
        tasks = tasks_of([task["icl"]], tokenizer, context, batch, work, None)
        (judged,) = run_tasks(tasks, lambda: backbone, tokenizer, context, batch)
        return next(iter(judged.outcome.scores.values())), []

    def harness(model: Any) -> tuple[float, list[float]]:
        (result,), examples = harness_tasks.evaluate(model, harness_tasks.load_tasks([task["yaml"]], [], None))
        return result["score"], [value for example in examples for value in example["logprobs"]]

    return {
        FOUNDRY: foundry,
        OURS_ICL: ours_icl,
        HF: functools.partial(harness, hf),
        OURS_LM: functools.partial(harness, lm),
    }


def longest_prompt(task: dict[str, Any], tokenizer: Any, work: Path) -> int:
    tasks = tasks_of([task["icl"]], tokenizer, 10**6, 1, work, None)
    return max(len(r.context) + len(r.continuation) for t in tasks for e in t.examples for r in e.requests)


def computed_tokens(task: dict[str, Any], tokenizer: Any, work: Path, rows: int) -> str:
    """What bounds the gain: the tokens that go through the model, with padding, one way and the other."""
    (built,) = tasks_of([task["icl"]], tokenizer, 10**6, 1, work, None)
    requests = list(dict.fromkeys(request for example in built.examples for request in example.requests))
    lengths = sorted((len(request.inputs) for request in requests), reverse=True)
    theirs = sum(lengths[i] * len(lengths[i : i + rows]) for i in range(0, len(lengths), rows))
    batches = plan(requests, rows * PASSES["cpu"], 10**6)
    ours = sum(padded(batch, requests, rows, ENOUGH_TOKENS["cpu"]) for batch in batches)
    scored = sum(len(request.continuation) for request in requests)
    return (
        f"Tokens through the model: {theirs:,} with logits for each (`hf`'s batches), here {ours:,}, with logits for "
        f"{scored:,}."
    )


def measure(arguments: argparse.Namespace, work: Path) -> list[str]:
    import transformers

    from recipes.weights.trained import find_trained

    transformers.logging.set_verbosity_error()
    lines = [
        "| task | embeddings | program | examples a CPU-second | against it | accuracy | CPU-seconds of the rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    trained = find_trained(arguments.run)
    words = transformers.AutoTokenizer.from_pretrained(trained.recipe["tokenizer"]["name"])
    files = task_files(arguments.data, work, arguments.examples)
    small = trained.model["vocab_size"]
    measured = [(title, task, small) for title, task in files.items()]
    few = work / "few"
    few.mkdir()
    wide = task_files(arguments.data, few, max(1, arguments.examples // FEWER))
    measured += [(title, wide[title], WIDE) for title in list(wide)[:1]]
    for title, task, vocabulary in measured:
        longest, tokens = longest_prompt(task, words, work), computed_tokens(task, words, work, arguments.batch_size)
        context = -(-(longest + 1) // ROUND_UP) * ROUND_UP
        ours, theirs, tokenizer = models(arguments.run, context, None if vocabulary == small else vocabulary)
        rivals = contenders(task, ours, theirs, tokenizer, context, arguments.batch_size, work)
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        answers: dict[str, tuple[float, list[float]]] = {}
        for _ in range(arguments.rounds):
            for rival, run in rivals.items():
                start = time.process_time()
                answers[rival] = run()
                seconds[rival].append(time.process_time() - start)
        rate = {rival: task["examples"] / statistics.median(taken) for rival, taken in seconds.items()}
        for rival, reference in ((FOUNDRY, None), (OURS_ICL, FOUNDRY), (HF, None), (OURS_LM, HF)):
            times = "" if reference is None else f"**{rate[rival] / rate[reference]:.1f} ×**"
            rounds = ", ".join(f"{taken:.1f}" for taken in seconds[rival])
            accuracy = f"{answers[rival][0]:.4f}"
            lines.append(
                f"| {title} | {vocabulary:,} | {rival} | {rate[rival]:,.1f} | {times} | {accuracy} | {rounds} |"
            )
        assert answers[FOUNDRY][0] == answers[OURS_ICL][0] or abs(answers[FOUNDRY][0] - answers[OURS_ICL][0]) < 1e-6
        gap = max(abs(a - b) for a, b in zip(answers[HF][1], answers[OURS_LM][1], strict=True))
        largest = max(map(abs, answers[HF][1]))
        notes.append(
            f"{title}, {vocabulary:,} embeddings: {task['examples']} examples, context {context} tokens; the largest "
            f"difference of a log-likelihood to `hf` is {gap:.1e}, of {largest:,.0f} nats. {tokens}"
        )
    return [*lines, "", *notes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of piqa.jsonl and arc_easy.jsonl")
    parser.add_argument("--run", type=Path, default=Path("runs/mpt-quickstart"), help="(%(default)s)")
    parser.add_argument("--examples", type=int, default=200, help="of each task, from the first (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    missing = [name for name, _, _ in TASKS.values() if not (arguments.data / f"{name}.jsonl").is_file()]
    if missing:
        sys.exit(f"error: {arguments.data} has no {', '.join(f'{name}.jsonl' for name in missing)}")
    datasets.disable_progress_bars()
    datasets.disable_caching()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        table = measure(arguments, Path(folder))
    options = f"--examples {arguments.examples} --batch-size {arguments.batch_size} --rounds {arguments.rounds}"
    command = f"python -m bench.evaluate --data FOLDER --run {arguments.run} {options}"
    versions = machine_and_versions("torch", "transformers", "lm-eval", "llm-foundry", "mosaicml")
    write_result(
        ["# Evaluation: examples a CPU-second", "", f"    {command}", "", f"{versions}.", "", *table], arguments.out
    )


if __name__ == "__main__":
    main()
