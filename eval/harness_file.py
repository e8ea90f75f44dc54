"""harness.json has what one model answered: of later calls the tasks are put beside those of earlier ones. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.results import examples_path
from recipes import json_lines


def refuse_other_models(out: Path, digest: str, harness: str) -> None:
    """Raises ValueError where the file has results of another model, or of another version of the harness."""
    content, entry = _earlier(out)
    if entry is None:
        return
    mend = "name another file with --out, or remove this one"
    if entry.get("digest") != digest:
        whose = f"{entry.get('name')} ({entry.get('checkpoint')})"
        text = f"{out} has the results of another model, checkpoint or precision, {whose}, which would be lost"
        raise ValueError(f"{text}: {mend}")
    if content.get("harness") != harness:
        raise ValueError(f"{out} has results of {content.get('harness')}, and this is {harness}: {mend}")


def refuse_fewer_examples(out: Path, tasks: Mapping[str, int], limit: int | None) -> None:
    """Raises ValueError where a task's score in the file is of more examples than the one that would replace it.

    tasks: the examples that each has, by its label.
    """
    _, entry = _earlier(out)
    for task in (entry or {}).get("tasks", []) if limit is not None else []:
        here, before = tasks.get(task["label"]), task.get("examples") or 0
        if here is not None and limit is not None and before > min(limit, here):
            text = f"{out} has {task['label']} of {before:,} examples, which {min(limit, here):,} would replace"
            raise ValueError(f"--limit: {text}: name another file with --out, or leave --limit out")


def with_earlier_tasks(
    out: Path, content: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """The same content and examples, before them those of the file's tasks that were not asked now."""
    before, entry = _earlier(out)
    (model,) = content["models"]
    labels = {task["label"] for task in model["tasks"]}
    kept = [task for task in (entry or {}).get("tasks", []) if task["label"] not in labels]
    if not kept or entry is None:
        return dict(content), list(examples)
    names = {task["label"] for task in kept}
    records = [r for r in json_lines.read(examples_path(out)) if r and r.get("task") in names]
    merged = {**model, "tasks": [*kept, *model["tasks"]], "seconds": entry.get("seconds", 0) + model["seconds"]}
    data = {**before.get("data", {}), **content["data"]}
    return {**content, "data": data, "models": [merged]}, [*records, *examples]


def _earlier(out: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the file holds and its one model; None where it is not there, or not whole."""
    try:
        content = json.loads(out.read_text(encoding="utf-8"))
        (model,) = content["models"]
        if not all(isinstance(task["label"], str) for task in model["tasks"]):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None
    return content, model
