"""In-context-learning tasks in LLM Foundry's format: settings and rows → requests, answers → outcomes. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import metrics
from eval.questions import Prompt, Request, Scored
from eval.tasks import prompts
from eval.tasks.checking import Fetch, check_task, comparison
from eval.tasks.rows import Row, TaskError, compared_answers

# The file counts by its content, the shots one by one, the length where it cut something.
NOT_ASKED = {"dataset_uri", "num_fewshot", "max_seq_len", "label", "metric_names", "batch_size", "random_baseline"}
GIVEN_BY_RUN = {"max_new_tokens", "use_cache", "pad_token_id", "eos_token_id"}  # of generation_kwargs
COT_BUFFER = 10  # tokens more for an answer where a chain of thought is written, as LLM Foundry has it


@dataclass(frozen=True)
class Example:
    """One question: its requests (one a choice) or its prompt, and what is right."""

    requests: tuple[Request, ...]
    prompt: Prompt | None
    gold: int
    answers: tuple[str, ...]  # texts that are right, where text is generated
    shown: str  # the exact prompt
    question: str = ""  # by itself, with its right answer

    def scored(self, tokenizer: Any) -> list[str]:
        """A line for each of its requests: the tokens that are scored, as text, and which is right."""
        lines = []
        for index, request in enumerate(self.requests):
            right = "  ← right" if index == self.gold else ""
            lines.append(f"  {index}: {tokenizer.decode(list(request.continuation))!r}{right}")
        return lines


@dataclass(frozen=True)
class Task:
    label: str  # piqa/0-shot, or mmlu/5-shot/anatomy
    kind: str
    digest: str  # SHA-256 over the settings and the rows
    chance: float | None  # the score of guessing
    examples: tuple[Example, ...]
    truncated: int  # examples whose beginning was cut off to fit
    metric_names: tuple[str, ...]
    settings: Mapping[str, Any]
    batch_size: int | None

    @property
    def twice(self) -> int:
        """Examples whose right choice stands before itself: the first of equals is taken, and counts as wrong."""
        if self.kind != "multiple_choice":
            return 0
        asked = [[(r.context, r.continuation) for r in e.requests] for e in self.examples]
        return sum(a.index(a[e.gold]) != e.gold for a, e in zip(asked, self.examples, strict=True))


@dataclass(frozen=True)
class Outcome:
    """outcomes: 1 or 0 an example, of the first metric. choices: what the model chose or wrote."""

    scores: dict[str, float]
    outcomes: list[float]
    choices: list[Any]
    logprobs: list[list[float]] = field(default_factory=list)  # sums, one a choice


class Tokens:
    """A tokenizer that looks each different text up once, in one call for many."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.prefix_space = len(tokenizer(" a", add_special_tokens=False)["input_ids"]) == 1
        self._known: dict[tuple[str, bool], tuple[int, ...]] = {}

    def look_up(self, texts: Sequence[str], special: bool) -> None:
        new = [t for t in dict.fromkeys(texts) if (t, special) not in self._known]
        if new:
            for text, ids in zip(new, self.tokenizer(new, add_special_tokens=special)["input_ids"], strict=True):
                self._known[text, special] = tuple(ids)

    def __call__(self, text: str, special: bool = False) -> tuple[int, ...]:
        if (text, special) not in self._known:
            self.look_up([text], special)
        return self._known[text, special]


def build_tasks(
    settings: Mapping[str, Any],
    tokens: Tokens,
    max_len: int,
    fetch: Fetch = Path,
    most: int | None = None,
    reads: int | None = None,
) -> list[Task]:
    """One task for each number of shots and, with `has_categories`, for each category.

    settings: an entry of `icl_tasks`. max_len: tokens that a prompt and its answer may have (the task's own
    `max_seq_len` comes first, but for `reads`, what the model reads at most). most: examples of each task that are
    used, from the first.
    Raises TaskError for anything wrong with the task or its file.
    """
    path, (rows, file_digest, lines) = check_task(settings, fetch)
    kind, label, form = settings["icl_task_type"], str(settings["label"]), prompts.format_of(settings)
    names = tuple(settings.get("metric_names") or metrics.OF_KIND[kind][:1])
    generation = dict(settings.get("generation_kwargs") or {})
    length = min(int(settings.get("max_seq_len") or max_len), reads or max_len)
    asked = {key: value for key, value in settings.items() if key not in NOT_ASKED}
    tasks = []
    for shots in settings["num_fewshot"]:
        for category, part in _by_category(rows, settings, path, lines).items():
            name = f"{label}/{shots}-shot" + (f"/{category}" if category else "")
            if shots >= len(part):
                text = f"{shots} examples before each question are not there: it has {len(part)} rows"
                raise TaskError(f"{name}: num_fewshot: {text}; ask for at most {len(part) - 1}")
            examples, cut = _examples(name, part, kind, shots, settings, generation, form, tokens, length, most)
            what = [asked, shots, category, len(examples), length if cut else None, file_digest]
            digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
            tasks.append(
                Task(
                    name,
                    kind,
                    digest,
                    _chance(settings, kind, examples),
                    examples,
                    cut,
                    names,
                    settings,
                    settings.get("batch_size"),
                )
            )
    return tasks


def judge(task: Task, answers: Mapping[str, Scored | str]) -> Outcome:
    """What the answers, by key of the request or prompt, are worth."""
    outcomes: list[float] = []
    confidences: list[float] = []
    calibrated: list[float] = []
    choices: list[Any] = []
    sums: list[list[float]] = []
    for example in task.examples:
        if example.prompt is not None:
            text = answers[example.prompt.key]
            assert isinstance(text, str)
            outcomes.append(float(_matches(task, text, example.answers)))
            choices.append(text)
            continue
        scored = [a for a in (answers[r.key] for r in example.requests) if isinstance(a, Scored)]
        sums.append([a.total for a in scored])
        if task.kind == "language_modeling":
            outcomes.append(float(scored[0].greedy))
            choices.append(scored[0].greedy)
            confidences.append(scored[0].confidence)
            calibrated.append(outcomes[-1])
        else:
            choice = metrics.chosen(scored)
            outcomes.append(float(choice == example.gold))
            choices.append(choice)
            best, confidence = metrics.choice_confidence(scored)
            confidences.append(confidence)
            calibrated.append(float(best == example.gold))
    scores = {
        name: metrics.calibration_error(confidences, calibrated)
        if "Calibration" in name
        else sum(outcomes) / len(outcomes)
        for name in task.metric_names
    }
    return Outcome(scores, outcomes, choices, sums)


def _matches(task: Task, text: str, answers: Sequence[str]) -> bool:
    settings = task.settings
    return metrics.exact_match(
        text,
        answers,
        settings.get("early_stopping_criteria"),
        settings.get("cot_delimiter") or "",
        settings.get("do_normalization", True),
    )


def _examples(
    name: str,
    rows: Sequence[Row],
    kind: str,
    shots: int,
    settings: Mapping[str, Any],
    generation: Mapping[str, Any],
    form: prompts.Format,
    tokens: Tokens,
    length: int,
    most: int | None,
) -> tuple[tuple[Example, ...], int]:
    texts = list(prompts.texts_of(rows, kind, shots, form, tokens.prefix_space))[:most]
    tokens.look_up([t.before for t in texts], special=True)
    tokens.look_up([part for t in texts for part in (*t.questions, *t.answers)], special=False)
    generated = kind == "generation_task_with_answers"
    room, new_tokens = length, 0
    if generated:
        longest = max(len(tokens(text, special=True)) for text in prompts.longest_answer(rows, form))
        longest += COT_BUFFER if form.cot_delimiter else 0
        new_tokens = generation.get("max_new_tokens", max(longest, 1))
        room = length - max(longest, new_tokens)
        if room <= 0:
            what = f"the longest answer has {longest} tokens" if longest >= new_tokens else f"it asks for {new_tokens}"
            raise TaskError(f"{name}: {what}, the context {length}: nothing is left to ask")
    asked = {key: value for key, value in generation.items() if key not in GIVEN_BY_RUN}
    examples, cut = [], 0
    for index, text in enumerate(texts):
        before = _without_end(tokens(text.before, special=True), tokens.tokenizer.eos_token_id)
        where = f"{name}, example {index + 1}"
        requests, too_long = [], False
        for question in text.questions:
            context = before + tokens(question)
            for answer in text.answers:
                continuation = tokens(answer)
                keep = room - len(continuation)
                if keep <= 0:
                    raise TaskError(
                        f"{where}: an answer of {len(continuation)} tokens leaves no room in {room}: {answer!r}"
                    )
                too_long |= len(context) > keep
                requests.append(Request(context[-keep:], continuation, where))
        if not all(before + tokens(question) for question in text.questions):
            mend = "write one, set prompt_string, or leave the example out"
            raise TaskError(f"{where}: there is no question, so that nothing comes before the answer: {mend}")
        prompt = None
        if generated:
            context = before + tokens(text.questions[0])
            too_long = len(context) > room
            stops = tuple(settings.get("early_stopping_criteria") or ())
            prompt = Prompt(context[-room:], new_tokens, stops, json.dumps(asked, sort_keys=True), where)
        answers = tuple(compared_answers(rows[index], comparison(settings))) if generated else ()
        cut += too_long
        question = text.questions[text.gold if kind == "schema" else 0]
        gap = form.continuation_delimiter[len(form.continuation_delimiter.rstrip()) :] or " "
        right = rows[index]["answer"] if generated else text.answers[text.gold if kind == "multiple_choice" else 0]
        if question[-1:].isspace() or right[:1].isspace():  # else the prompt has lost it, and tokenizers add it or not
            gap = ""
        alone = f"{question}{gap}{right}".strip()
        examples.append(Example(tuple(requests), prompt, text.gold, answers, text.before + question, alone))
    return tuple(examples), cut


def _without_end(ids: tuple[int, ...], end: int | None) -> tuple[int, ...]:
    """Without the end-of-text that some tokenizers put behind everything."""
    return ids[:-1] if end is not None and len(ids) > 1 and ids[-1] == end else ids


def _chance(settings: Mapping[str, Any], kind: str, examples: Sequence[Example]) -> float | None:
    """The task's own `random_baseline`, else that of choosing blindly; no text is right by chance."""
    if settings.get("random_baseline") is not None:
        return float(settings["random_baseline"])
    if kind in ("multiple_choice", "schema"):
        return sum(1 / len(example.requests) for example in examples) / len(examples)
    return 0.0


def _by_category(
    rows: Sequence[Row], settings: Mapping[str, Any], path: str | Path, lines: Sequence[int]
) -> dict[str, list[Row]]:
    if not settings.get("has_categories"):
        return {"": list(rows)}
    for number, row in zip(lines, rows, strict=True):
        if "category" not in row:
            raise TaskError(f"{path}:{number}: 'category' is missing, and the task has has_categories: true")
    names = sorted({str(row["category"]) for row in rows})
    return {name: [row for row in rows if str(row["category"]) == name] for name in names}
