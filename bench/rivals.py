"""Evaluation's contenders, on one model: LLM Foundry's in-context learning, the harness's `hf` model, and ours as both.

The model has the shape of one of this project's, with random weights and ALiBi, so that its context can be as long as
the prompts are; the `hf` model is the same weights in transformers' own MPT.
"""

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval import harness_results, harness_tasks
from eval.backbone import Backbone
from eval.batching import padded, plan
from eval.harness_lm import ScoringLM
from eval.questions import Request, Scored
from eval.scoring import PASSES
from eval.suite import run_tasks, tasks_of
from eval.tasks.icl import Task
from eval.vectors import ENOUGH_TOKENS
from recipes import parts
from recipes.config.load import load

ROUND_UP = 64  # tokens: the context is the longest prompt, rounded up; LLM Foundry pads everything to it
WORDS_ROUND_UP = 128  # embeddings: those of the tokenizer, rounded up
FOUNDRY, OURS_ICL, HF, OURS_LM = "LLM Foundry ICL", "ours, same task", "harness, hf", "harness, ours"
UNLIMITED = 10**6  # tokens
Contender = Callable[[], tuple[float, list[float]]]  # → accuracy, log-likelihoods of the answers

CHOICES = {"icl_task_type": "multiple_choice"}
TEXTS = {"icl_task_type": "language_modeling"}
ICL: dict[str, dict[str, str]] = {  # file → LLM Foundry's settings of the task
    "copa": {**CHOICES, "continuation_delimiter": " "},
    "piqa": {**CHOICES, "continuation_delimiter": "Answer: "},
    "arc_easy": {**CHOICES, "continuation_delimiter": "\nAnswer: "},
    "lambada_openai_small": {**TEXTS, "continuation_delimiter": " "},
    "jeopardy_small": {**TEXTS, "continuation_delimiter": "\nAnswer: "},
}


@dataclass(frozen=True)
class Questions:
    """The first examples of a task: as an `icl_tasks` entry, and as a task file of the harness."""

    name: str
    icl: dict[str, Any]
    yaml: str
    examples: int
    folder: Path

    def built(self, tokenizer: Any) -> Task:
        (task,) = tasks_of([self.icl], tokenizer, UNLIMITED, 1, self.folder, None)
        return task


def questions(data: Path, name: str, shots: int, examples: int | None, folder: Path) -> Questions:
    """examples: how many, from the first; None for all. folder: where the files are written."""
    lines = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:examples]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    icl = {"label": name, "dataset_uri": str(path), "num_fewshot": [shots], **ICL[name]}
    between = ICL[name]["continuation_delimiter"].rstrip()
    asked = {"doc_to_text": "{{context.strip()}}" + between, "doc_to_target": "{{continuation.strip()}}"}
    if ICL[name]["icl_task_type"] == "multiple_choice":
        asked = {"doc_to_text": "{{query}}" + between, "doc_to_choice": "choices", "doc_to_target": "gold"}
    harness = {
        "task": f"bench_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": shots,
        "output_type": "multiple_choice" if "doc_to_choice" in asked else "loglikelihood",
        **asked,
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(harness))  # JSON is YAML
    return Questions(name, icl, str(folder / f"{name}.yaml"), len(lines), folder)


def models(shape: str, tokenizer: Any, context: int) -> tuple[Any, Any]:
    """yamls/models/SHAPE.yaml as a Composer model, and the same weights in transformers' own MPT."""
    from transformers import MptConfig, MptForCausalLM

    section = dict(load(f"yamls/models/{shape}.yaml", [f"max_seq_len={context}"])["model"])
    words = -(-len(tokenizer) // WORDS_ROUND_UP) * WORDS_ROUND_UP
    alibi = {"attn_impl": "flash", "alibi": True}
    section |= {"vocab_size": words, "no_bias": True, "init_device": "cpu", "attn_config": alibi}
    parts.register_components()
    torch.manual_seed(0)
    ours = parts.build_model(section, tokenizer, None, None).eval()
    sizes = {key: section[key] for key in ("d_model", "n_heads", "n_layers", "vocab_size", "max_seq_len")}
    theirs = MptForCausalLM(MptConfig(**sizes)).eval()
    absent, unknown = theirs.load_state_dict(ours.model.state_dict(), strict=False)
    assert {*unknown, *absent} <= {"lm_head.weight"}, [*unknown, *absent]
    theirs.tie_weights()
    ids = torch.arange(1, 33)[None]
    with torch.no_grad():
        gap = float((ours.model(ids).logits - theirs(ids).logits).abs().max())
    assert gap < 1e-3, f"the two models differ by {gap}"
    return ours, theirs


def context_for(task: Task) -> int:
    longest = max(len(r.context) + len(r.continuation) for example in task.examples for r in example.requests)
    return -(-(longest + 1) // ROUND_UP) * ROUND_UP


def contenders(
    asked: Questions, ours: Any, theirs: Any, tokenizer: Any, context: int, rows: int
) -> dict[str, Contender]:
    """rows: of a batch. Both harness contenders are asked by this project's own runner, whose savings `hf` has too."""
    from composer import Trainer
    from llmfoundry.utils import builders
    from lm_eval.models.huggingface import HFLM

    trainer = Trainer(model=ours, progress_bar=False)
    backbone = Backbone(ours, context)
    hf = HFLM(pretrained=theirs, tokenizer=tokenizer, batch_size=rows, max_length=context, device="cpu")
    lm = ScoringLM(lambda: backbone, tokenizer, context, rows)

    def foundry() -> tuple[float, list[float]]:
        evaluators, _ = builders.build_icl_evaluators(
            [copy.deepcopy(asked.icl)], tokenizer, context, rows, destination_dir=str(asked.folder)
        )
        trainer.eval(eval_dataloader=evaluators)
        (metrics,) = [trainer.state.eval_metrics[e.label] for e in evaluators]
        return float(next(iter(metrics.values())).compute()), []

    def ours_icl() -> tuple[float, list[float]]:
        tasks = tasks_of([asked.icl], tokenizer, context, rows, asked.folder, None)
        (judged,) = run_tasks(tasks, lambda: backbone, tokenizer, context, rows)
        return next(iter(judged.outcome.scores.values())), []

    def harness(model: Any) -> tuple[float, list[float]]:
        (result,), examples = harness_results.evaluate(model, harness_tasks.load_tasks([asked.yaml], [], None))
        return result["score"], [value for example in examples for value in example["logprobs"]]

    return {
        FOUNDRY: foundry,
        OURS_ICL: ours_icl,
        HF: functools.partial(harness, hf),
        OURS_LM: functools.partial(harness, lm),
    }


def exact(ours: Any, asked: Questions, tokenizer: Any, places: list[int]) -> list[float]:
    """Log-likelihoods of some of the harness's requests by the same model in float64, one pass each."""
    model = copy.deepcopy(ours.model).double()
    wanted: list[Request] = []

    class Listener(ScoringLM):
        def _score(self, asked: Any, owners: Any) -> Any:
            wanted.extend(asked)
            return [Scored((0.0,), False, 0.0)] * len(asked)

    listener = Listener(lambda: Backbone(ours, UNLIMITED), tokenizer, UNLIMITED, 1)
    harness_results.evaluate(listener, harness_tasks.load_tasks([asked.yaml], [], None))
    totals = []
    for place in places:
        request = wanted[place]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request.inputs])).logits[0, -len(request.continuation) :]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(request.continuation)[:, None])
        totals.append(float(chosen.sum()))
    return totals


def computed(task: Task, rows: int) -> str:
    """What bounds the gain: tokens through the model, with padding, and logits, one way and the other."""
    requests = list(dict.fromkeys(request for example in task.examples for request in example.requests))
    lengths = sorted((len(request.inputs) for request in requests), reverse=True)
    theirs = sum(lengths[i] * len(lengths[i : i + rows]) for i in range(0, len(lengths), rows))
    batches = plan(requests, rows * PASSES["cpu"], UNLIMITED)
    ours = sum(padded(batch, requests, rows, ENOUGH_TOKENS["cpu"]) for batch in batches)
    scored = {r.inputs[:end] for r in requests for end in range(len(r.context), len(r.inputs) + 1)}
    return (
        f"tokens through the model: {theirs:,} with logits for each (`hf`'s batches), here {ours:,}, with logits for "
        f"{len(scored):,}"
    )
