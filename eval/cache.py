"""Answers on disk, by (model digest, task digest): a killed evaluation goes on, a repeated one computes nothing.

<results' folder>/.answers/<model digest>/<task digest>.<rank>.jsonl, one answer a line, written as soon as its batch is
done. A line torn by a kill is not an answer. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.questions import Scored

FOLDER = ".answers"  # beside the results
SCORING = 2  # to be raised when the same model would answer otherwise
DIGITS = 24  # of a digest in a file name
Answer = Scored | str  # to a Request, to a Prompt


class AnswerCache:
    """The answers that one model has given to one task."""

    def __init__(self, folder: Path, model_digest: str, task_digest: str, rank: int = 0) -> None:
        self.folder = folder / FOLDER / f"{model_digest[:DIGITS]}-{SCORING}"
        self.name = task_digest[:DIGITS]
        self.rank = rank

    def read(self) -> dict[str, Answer]:
        """Every answer, whichever process wrote it, by the key of its request."""
        found: dict[str, Answer] = {}
        for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    found[record["key"]] = _decode(record)
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def add(self, answers: Mapping[str, Answer]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, **_encode(answer)}) for key, answer in answers.items()]
        with (self.folder / f"{self.name}.{self.rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))


def missing(cached: Mapping[str, Answer], batches: Sequence[Sequence[str]]) -> list[int]:
    """Which batches of keys are not answered whole; one partly known is computed anew: same batch, same bits."""
    return [i for i, keys in enumerate(batches) if not all(key in cached for key in keys)]


def _encode(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"text": answer}
    return {"logprobs": answer.logprobs, "greedy": answer.greedy, "confidence": answer.confidence}


def _decode(record: Mapping[str, Any]) -> Answer:
    if "text" in record:
        return str(record["text"])
    logprobs = tuple(float(x) for x in record["logprobs"])
    if any(map(math.isnan, logprobs)):
        raise ValueError("no score")  # damage, or to be computed and refused again
    return Scored(logprobs, bool(record["greedy"]), float(record["confidence"]))
