"""The rows of preferences in a JSON Lines file, as far as they can be judged without a tokenizer. Pure Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.conversations import BadExample, checked_messages

ANSWERS = ("chosen", "rejected")
EXPECTED = "expected prompt, and chosen and rejected that differ, as text or messages"
Messages = list[dict[str, str]]  # role and content


def read_conversations(path: Path) -> Iterator[tuple[int, list[Messages]]]:
    """The chosen and the rejected conversation of each row, with the number of its line, from 1.

    A row is {"prompt": …, "chosen": …, "rejected": …}. Each is text, or messages: the answers' may begin with the
    prompt's, which is then not asked for (as TRL and UltraFeedback have it).

    Raises ValueError for a file that cannot be read or holds no row, and for a row that is no pair, naming its line.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not at U+2028 and the like
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if lines == [""]:
        raise ValueError(f"{path} holds no pair")
    for number, line in enumerate(lines, 1):
        try:
            two = _two_conversations(json.loads(line))
        except (KeyError, ValueError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}:{number}: {EXPECTED}: {said}") from None
        yield number, two


def _two_conversations(row: Any) -> list[Messages]:
    """Both answers with what they answer.

    Raises BadExample where nothing is preferred to anything, and the loss would pull at ends of turns alone, or at 0.
    """
    if not isinstance(row, dict):
        raise BadExample(f"got {type(row).__name__}")
    both = [_conversation(row, answer) for answer in ANSWERS]
    for answer, messages in zip(ANSWERS, both, strict=True):
        if not messages[-1]["content"]:
            raise BadExample(f"{answer} is empty")
    chosen, rejected = both
    if chosen[:-1] != rejected[:-1]:
        raise BadExample("chosen and rejected answer different prompts")
    if chosen == rejected:
        raise BadExample("chosen and rejected are the same")
    return both


def _conversation(row: Mapping[str, Any], answer: str) -> Messages:
    """The messages that end with an answer. Raises BadExample, and KeyError for what is missing."""
    said = row[answer]
    if isinstance(said, list) and said[:1] and isinstance(said[0], dict) and said[0].get("role") != "assistant":
        return checked_messages({"messages": said})
    asked = _messages(row["prompt"], "user", "prompt")
    return checked_messages({"messages": [*asked, *_messages(said, "assistant", answer)]})


def _messages(said: Any, role: str, key: str) -> list[Any]:
    if not isinstance(said, (str, list)):
        raise BadExample(f"{key} is {type(said).__name__}, expected text or messages")
    return said if isinstance(said, list) else [{"role": role, "content": said}]
