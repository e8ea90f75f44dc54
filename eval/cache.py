"""Answers on disk, by (model digest, task digest): a killed evaluation goes on, a repeated one computes nothing.

<results' folder>/.answers/<model digest>/<task digest>.<rank>.txt, one answer a line (CRC-32, JSON), written as soon as
its batch is done. A line torn by a kill or damaged since is not an answer. No torch.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.questions import Scored, ScoringError

FOLDER = ".answers"  # beside the results
SCORING = 6  # to be raised when the same model would answer otherwise
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
        for path in sorted(file for file in self.folder.glob(f"{self.name}.*.txt") if file.is_file()):
            for line in path.read_bytes().splitlines():
                checksum, _, content = line.partition(b" ")
                if checksum == _checksum(content):
                    record = json.loads(content)
                    found[record["key"]] = _decode(record)
        return found

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Keep more answers. Raises ScoringError where they cannot be written."""
        lines = [json.dumps({"key": key, **_encode(answer)}).encode() for key, answer in answers.items()]
        path = self.folder / f"{self.name}.{self.rank}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(b"".join(_checksum(line) + b" " + line + b"\n" for line in lines))
        except OSError as error:
            raise ScoringError(f"answers cannot be kept in {path}: {error.strerror}") from None


def missing(cached: Mapping[str, Answer], batches: Sequence[Sequence[str]]) -> list[int]:
    """Which batches of keys are not answered whole; one partly known is computed anew: same batch, same bits."""
    return [i for i, keys in enumerate(batches) if not all(key in cached for key in keys)]


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def _encode(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, str):
        return {"text": answer}
    return {"logprobs": answer.logprobs, "greedy": answer.greedy, "confidence": answer.confidence}


def _decode(record: Mapping[str, Any]) -> Answer:
    if "text" in record:
        return str(record["text"])
    return Scored(tuple(record["logprobs"]), record["greedy"], record["confidence"])
