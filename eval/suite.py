"""A model through a list of in-context-learning tasks: the same for `eval/evaluate.py` and for a training run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eval.cache import Answer, AnswerCache
from eval.generation import generate
from eval.results import task_entry
from eval.scoring import Model, Progress, score
from eval.tasks.icl import Outcome, Task, Tokens, build_tasks, judge
from eval.tasks.rows import TaskError
from recipes.config.evaluation_rules import scored_part
from recipes.config.file_names import is_remote


@dataclass(frozen=True)
class Judged:
    """A task and what came of it."""

    task: Task
    outcome: Outcome
    seconds: float

    @property
    def result(self) -> dict[str, Any]:
        """The task's entry in results.json."""
        first = self.task.metric_names[0]
        is_mean = "Calibration" not in first  # of one number an example
        return task_entry(
            self.task.label,
            first,
            self.outcome.scores[first],
            self.outcome.outcomes if is_mean else None,
            self.task.chance if is_mean else None,
            len(self.task.examples),
            truncated=self.task.truncated,
            twice=self.task.twice,
            digest=self.task.digest,
            metrics=dict(self.outcome.scores),
            seconds=round(self.seconds, 3),
        )

    def examples(self) -> list[dict[str, Any]]:
        """One record an example, for comparing models."""
        records = []
        for index, example in enumerate(self.task.examples):
            record: dict[str, Any] = {
                "task": self.task.label,
                "index": index,
                "prompt": example.shown,
                "correct": self.outcome.outcomes[index],
                "chosen": self.outcome.choices[index],
            }
            if example.requests:
                record["gold"] = example.gold
                record["logprobs"] = self.outcome.logprobs[index]
            else:
                record["answers"] = list(example.answers)
            records.append(record)
        return records


def tasks_of(
    entries: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    max_len: int,
    batch_size: int,
    scratch: Path,
    subset_batches: int | None,
    reads: int | None = None,
    subset_of_category: int | None = None,
) -> list[Task]:
    """The tasks of a recipe's `icl_tasks`.

    max_len, reads: tokens that a prompt and its answer may have, and that the model reads, whatever a task wants.
    subset_batches, subset_of_category: batches of a task, and of a category of one, that are taken, from the first;
    None or -1 for all. A batch has as many examples as `batch_size` has choices.
    Raises TaskError.
    """
    tokens = Tokens(tokenizer)
    tasks = []
    for entry in entries:
        most, batches = None, subset_of_category if entry.get("has_categories") else subset_batches
        if batches is not None and batches > 0:
            choices = _choices(entry, scratch)
            most = batches * max(1, int(entry.get("batch_size") or batch_size) // choices)
        tasks += build_tasks(entry, tokens, max_len, lambda uri: fetch(uri, scratch), most, reads)
    return tasks


def subsets(settings: Mapping[str, Any], trains: bool) -> dict[str, int | None]:
    """For `tasks_of`: how much of the tasks LLM Foundry and Composer take by a recipe's settings.

    While a model is trained a task's own `icl_subset_num_batches` comes before `eval_subset_num_batches`, in an
    evaluation by itself after it; of categories only the latter is known.
    """
    own, of_all = settings["icl_subset_num_batches"], settings["eval_subset_num_batches"]
    own_first = own is not None and (trains or of_all in (None, -1))
    return {"subset_batches": own if own_first else of_all, "subset_of_category": of_all}


def run_tasks(
    tasks: Sequence[Task],
    model: Model,
    tokenizer: Any,
    max_len: int,
    batch_size: int,
    cache: Callable[[str], AnswerCache | None] = lambda digest: None,
    progress: Callable[[str, int], Progress | None] = lambda label, total: None,
) -> list[Judged]:
    """Every task's outcome. cache: the answers kept for a task digest. Raises ScoringError."""
    judged = []
    for task in tasks:
        start = time.monotonic()
        rows = task.batch_size or batch_size
        requests = [request for example in task.examples for request in example.requests]
        prompts = [example.prompt for example in task.examples if example.prompt is not None]
        told = progress(task.label, len(set(requests)) + len(set(prompts)))
        answers: dict[str, Answer] = {}
        if requests:
            scored = score(model, requests, rows, max_len, cache(task.digest), told)
            answers.update(zip((r.key for r in requests), scored, strict=True))
        if prompts:
            texts = generate(model, prompts, tokenizer, rows, cache(task.digest), told)
            if len(tokenizer(" a", add_special_tokens=False)["input_ids"]) != 1:
                texts = [f" {text}" for text in texts]  # as Composer has it where words begin with no space
            answers.update(zip((p.key for p in prompts), texts, strict=True))
        judged.append(Judged(task, judge(task, answers), time.monotonic() - start))
    return judged


def logged(judged: Sequence[Judged]) -> dict[str, float]:
    """Scores under the names that LLM Foundry logs them by."""
    return {f"metrics/{j.task.label}/{name}": value for j in judged for name, value in j.outcome.scores.items()}


def gauntlet_scores(gauntlet: Mapping[str, Any], judged: Sequence[Judged]) -> dict[str, float]:
    """LLM Foundry's own averages, by its EvalGauntlet: category and average → score.

    gauntlet: `eval_gauntlet` of a recipe. Categories of which a benchmark is not judged are left out.
    """
    from llmfoundry.callbacks import EvalGauntlet

    scored = {"/".join(j.task.label.split("/")[:2]) for j in judged if any("Accuracy" in n for n in j.outcome.scores)}
    gauntlet, _ = scored_part(gauntlet, scored)
    sizes = {j.task.label: len(j.task.examples) for j in judged}
    averages = EvalGauntlet(
        **copy.deepcopy(gauntlet),  # into which it writes
        logger_keys=[f"metrics/{j.task.label}/{n}" for j in judged for n in j.outcome.scores],
        benchmark_sizes=sizes,
    )
    metrics = {
        j.task.label: {
            name: SimpleNamespace(compute=lambda v=value: _Value(v)) for name, value in j.outcome.scores.items()
        }
        for j in judged
    }
    scores = averages.eval_after_all(SimpleNamespace(eval_metrics=metrics), None)  # type: ignore[arg-type]
    return {name.rpartition("/")[2]: float(value) for name, value in scores.items()}


def fetch(uri: str, scratch: Path) -> Path:
    """A task's file: itself where it is local, else a copy in `scratch`. Raises TaskError."""
    if not is_remote(uri):
        return Path(uri)
    from composer.utils import get_file

    copy = scratch / uri.partition(":/")[2].strip("/").replace("/", "_")
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        get_file(uri, str(copy), overwrite=True)
    except Exception as error:
        raise TaskError(
            f"{uri} cannot be fetched ({type(error).__name__}: {error}); download it and name the file"
        ) from None
    return copy


class _Value(float):
    """A score that answers `.item()`, as a metric's tensor does."""

    def item(self) -> float:
        return float(self)


def _choices(entry: Mapping[str, Any], scratch: Path) -> int:
    if entry.get("icl_task_type") not in ("multiple_choice", "schema") or is_remote(entry.get("dataset_uri")):
        return 1
    from eval.tasks.rows import read_rows

    key = entry.get("choices_key") or ("choices" if entry["icl_task_type"] == "multiple_choice" else "context_options")
    choices = read_rows(fetch(str(entry["dataset_uri"]), scratch))[0][0].get(key)
    return len(choices) if isinstance(choices, list) and choices else 1
