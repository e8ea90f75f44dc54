"""LLM Foundry's prompts, text for text: what comes before, the question, the answers. No torch.

The rules are those of llmfoundry.eval.datasets.in_context_learning_evaluation; what a task's YAML does not set has the
defaults below, which are LLM Foundry's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from eval.tasks.rows import Row


@dataclass(frozen=True)
class Format:
    """How a task's rows become text."""

    prompt_string: str = ""  # once, before everything
    prelimiter: str = ""  # before each question
    example_delimiter: str = "\n"  # between examples
    continuation_delimiter: str = " "  # between question and answer
    cot_delimiter: str = ""  # between a chain of thought and its answer
    strip_dataset: bool = True
    fewshot_random_seed: int = 1234
    context_key: str = ""
    choices_key: str = ""


@dataclass(frozen=True)
class Texts:
    """One example as text: `before` is tokenised by itself, then each question after it, then each answer."""

    before: str
    questions: tuple[str, ...]  # one; several for schema
    answers: tuple[str, ...]  # one; several for multiple choice; none where text is generated
    gold: int = 0


def format_of(settings: Mapping[str, Any]) -> Format:
    known = {field.name for field in fields(Format)}
    given = {key: value for key, value in settings.items() if key in known and value is not None}
    if "question_prelimiter" in settings:
        given["prelimiter"] = settings["question_prelimiter"]
    return Format(**given)


def texts_of(rows: Sequence[Row], kind: str, shots: int, form: Format, prefix_space: bool) -> Iterator[Texts]:
    """Every example in order; the few-shot examples are drawn as LLM Foundry draws them.

    prefix_space: whether the tokenizer's words begin with a space, so that answers do.
    """
    if form.strip_dataset:
        rows = [{k: v.strip() if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    chosen = random.Random(form.fewshot_random_seed)
    has_cot = any("chain_of_thought" in row for row in rows)
    for index, row in enumerate(rows):
        before = form.prompt_string
        for shot in _shots(len(rows), shots, index, chosen):
            before += _question(rows[shot], kind, form, before) + _answer(rows[shot], kind, form, has_cot)
        if kind == "schema":
            yield Texts(
                before, _contexts(row, form, before), (_spaced(row["continuation"], prefix_space),), row["gold"]
            )
            continue
        question = _question(row, kind, form, before)
        if form.strip_dataset:
            question = question.rstrip()  # a prompt that ends in a space makes for degenerate answers
        if kind == "multiple_choice":
            answers = tuple(_spaced(choice, prefix_space) for choice in row[form.choices_key or "choices"])
        elif kind == "language_modeling":
            answers = (_spaced(row["continuation"], prefix_space),)
        else:
            answers = ()
        yield Texts(before, (question,), answers, row.get("gold", 0) if kind == "multiple_choice" else 0)


def longest_answer(rows: Sequence[Row], form: Format) -> list[str]:
    """Every text that a model may have to write, for the room that it needs."""
    has_cot = any("chain_of_thought" in row for row in rows)
    texts = []
    for row in rows:
        for answer in [row["answer"], *(row.get("aliases") or [])]:
            texts.append(f"{row.get('chain_of_thought') or ''}{form.cot_delimiter}{answer}" if has_cot else answer)
    return texts


def _shots(rows: int, shots: int, index: int, chosen: random.Random) -> Sequence[int]:
    """Other rows' indices, in the order of a Python set, which is LLM Foundry's."""
    if shots == 0:
        return ()
    picked = set(chosen.sample(range(rows), min(rows - 1, shots)))
    if index in picked:
        picked.remove(index)
        if len(picked) < rows - 1:
            another = chosen.choice(range(rows))
            while another in picked or another == index:
                another = chosen.choice(range(rows))
            picked.add(another)
    return tuple(picked)


def _question(row: Row, kind: str, form: Format, preceding: str) -> str:
    if kind == "schema":
        context = row[form.choices_key or "context_options"][row["gold"]]
        delimiter = form.example_delimiter if preceding else ""
        return f"{form.prelimiter}{delimiter}{context}{form.continuation_delimiter}"
    name = form.context_key or ("query" if kind == "multiple_choice" else "context")
    delimiter = form.example_delimiter if preceding else ""
    return f"{delimiter}{form.prelimiter}{row[name]}{form.continuation_delimiter}"


def _answer(row: Row, kind: str, form: Format, has_cot: bool) -> str:
    """The right answer, as a few-shot example shows it."""
    if kind == "multiple_choice":
        return row[form.choices_key or "choices"][row["gold"]]
    if kind == "generation_task_with_answers":
        return f"{row.get('chain_of_thought') or ''}{form.cot_delimiter}{row['answer']}" if has_cot else row["answer"]
    return row["continuation"]


def _contexts(row: Row, form: Format, preceding: str) -> tuple[str, ...]:
    """Every context of a schema example. Only after other text is the delimiter of the continuation put behind it."""
    options = row[form.choices_key or "context_options"]
    if not preceding:
        return tuple(f"{form.prelimiter}{option}" for option in options)
    delimiter = form.continuation_delimiter.rstrip() if form.strip_dataset else form.continuation_delimiter
    return tuple(f"{form.prelimiter}{form.example_delimiter}{option}{delimiter}" for option in options)


def _spaced(answer: str, prefix_space: bool) -> str:
    return f" {answer}" if prefix_space and not answer.startswith(" ") else answer
