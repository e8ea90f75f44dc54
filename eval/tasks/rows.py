"""Reading a task's rows: JSON lines with the fields that its type needs, or words about the line that lacks one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Fields by task type: name → what it must be.
FIELDS: dict[str, dict[str, str]] = {
    "language_modeling": {"context": "text", "continuation": "text"},
    "multiple_choice": {"query": "text", "choices": "a list of texts", "gold": "an index into choices"},
    "schema": {"context_options": "a list of texts", "continuation": "text", "gold": "an index into context_options"},
    "generation_task_with_answers": {"context": "text", "answer": "text"},
}


class TaskError(ValueError):
    """A task that cannot be evaluated, in words with file and line."""


def read_rows(path: Path) -> tuple[list[Row], str, list[int]]:
    """The rows of a JSONL file, the SHA-256 of its content, and the line that each row stands on.

    Raises TaskError for a file that is missing, empty or not JSON lines.
    """
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").split("\n")  # not at U+2028 and the like, which JSON has in its texts
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"the task's file {path} cannot be read: {error}") from None
    rows, numbers = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\ud" in line.lower():
                json.dumps(row, ensure_ascii=False).encode()  # half a pair of surrogates is no text
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise TaskError(f"{path}:{number}: got {type(row).__name__}, expected a JSON object")
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise TaskError(f"{path} holds no examples")
    return rows, hashlib.sha256(content).hexdigest(), numbers


def check_rows(
    rows: Sequence[Row],
    kind: str,
    where: str,
    renamed: Mapping[str, str],
    lines: Sequence[int],
    compared: Callable[[str], str] = str.strip,
) -> None:
    """Raise TaskError at the first row that lacks a field of its type or has a wrong one.

    where: the file, for messages. renamed: the task's own names for fields, such as {"query": "question"}. lines: that
    of each row. compared: what of a generated answer is compared.
    """
    for number, row in zip(lines, rows, strict=True):
        for field, expected in FIELDS[kind].items():
            name = renamed.get(field, field)
            place = f"{where}:{number}: {name!r}"
            if name not in row or row[name] is None:
                raise TaskError(f"{place} is missing; a {kind} example needs {', '.join(_needed(kind, renamed))}")
            value = row[name]
            if expected == "text" and not isinstance(value, str):
                raise TaskError(f"{place}: got {value!r}, expected text")
            if field == "continuation" and not value.strip():
                raise TaskError(f"{place}: got {value!r}, expected text that is not empty: nothing would be scored")
            if expected == "a list of texts" and not (
                isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)
            ):
                raise TaskError(f"{place}: got {value!r}, expected a list of texts, at least one and none empty")
            if field == "gold":
                choices = row[renamed.get("choices", "choices") if kind == "multiple_choice" else _options(renamed)]
                whole = isinstance(value, int) and not isinstance(value, bool)
                if not whole or not 0 <= value < len(choices):
                    last = len(choices) - 1
                    raise TaskError(
                        f"{place}: got {value!r}, expected an index from 0 to {last}: there are {last + 1} choices"
                    )
        aliases = row.get("aliases") or []
        if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
            raise TaskError(f"{where}:{number}: 'aliases': got {aliases!r}, expected a list of texts")
        if kind == "generation_task_with_answers" and not compared_answers(row, compared):
            empty = not any(answer.strip() for answer in (row["answer"], *aliases))
            mend = "" if empty else "; give an alias, or set do_normalization: false"
            raise TaskError(
                f"{where}:{number}: nothing of the answer {row['answer']!r} is compared: any text has it{mend}"
            )


def compared_answers(row: Row, compared: Callable[[str], str]) -> list[str]:
    """The answer and its aliases, without those of which nothing is compared, such as `The`: any text has them."""
    return [answer for answer in dict.fromkeys([row["answer"], *(row.get("aliases") or [])]) if compared(answer)]


def _needed(kind: str, renamed: Mapping[str, str]) -> list[str]:
    return [renamed.get(field, field) for field in FIELDS[kind]]


def _options(renamed: Mapping[str, str]) -> str:
    return renamed.get("context_options", "context_options")
