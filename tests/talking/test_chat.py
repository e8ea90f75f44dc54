"""A conversation in the terminal: what is a command, and what is said to the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.talking import chat
from recipes.talking.generate import Sampling


@pytest.mark.parametrize("end", ["", "/quit", "/exit"])
def test_commands_are_not_said_to_the_model(
    end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["/exti", "/what is it?", end, "never read"])
    asked: list[str] = []

    def complete(loaded: Any, messages: list[dict[str, str]], *_: Any) -> str:
        asked.append(messages[-1]["content"])
        return "A question."

    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: SimpleNamespace(name="m", max_seq_len=100))
    monkeypatch.setattr(chat, "chat_ids", lambda loaded, messages: messages)
    monkeypatch.setattr(chat, "complete", complete)
    chat.chat(Path("m"), Sampling())
    assert asked == ["/what is it?"]
    assert "/exti is no command: an empty line, /quit or /exit ends" in capsys.readouterr().err
    assert next(lines) == "never read"


def test_what_is_no_text_is_asked_with_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, asked = iter(["caf\udce9", ""]), []

    def complete(loaded: Any, messages: list[dict[str, str]], *_: Any) -> str:
        asked.extend(message["content"] for message in messages)
        return "Coffee."

    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(chat, "load_model", lambda *_, **__: SimpleNamespace(name="m", max_seq_len=100))
    monkeypatch.setattr(chat, "chat_ids", lambda loaded, messages: messages)
    monkeypatch.setattr(chat, "complete", complete)
    chat.chat(Path("m"), Sampling(), system="na\udcefve")
    assert asked == ["na?ve", "caf?"]
