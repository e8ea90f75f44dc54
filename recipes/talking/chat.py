"""A conversation in the terminal: `python -m recipes chat CHECKPOINT_OR_FOLDER`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from recipes.talking.generate import Sampling, chat_ids, complete
from recipes.talking.loading import Loaded, load_model

HELP = "an empty line, /quit or /exit ends, /reset forgets the conversation"


def chat(
    path: Path, sampling: Sampling, system: str | None = None, tokenizer: str | None = None, recipe: Path | None = None
) -> None:
    """Read a message a line, write the answer token by token, until the input ends."""
    sampling = sampling.checked()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    loaded = load_model(path, tokenizer, recipe, in_bf16=True, for_chat=True)
    chat_ids(loaded, [{"role": "user", "content": "?"}])  # says at once where the template takes no message
    start = [{"role": "system", "content": _in_utf8(system)}] if system else []
    messages = list(start)
    print(f"{loaded.name}: {HELP}")
    while True:
        try:
            said = _in_utf8(input("\n> ")).strip()
        except (EOFError, KeyboardInterrupt):
            break
        if said in ("", "/quit", "/exit"):
            break
        if said == "/reset":
            messages = list(start)
            continue
        if said.startswith("/") and len(said.split()) == 1:
            print(f"{said} is no command: {HELP}", file=sys.stderr)
            continue
        messages.append({"role": "user", "content": said})
        messages = fitting(loaded, messages, len(start), sampling.max_new_tokens)
        try:
            answer = complete(loaded, chat_ids(loaded, messages), sampling, _write)
        except KeyboardInterrupt:  # stops this answer only
            answer = "…"
        except ValueError as error:
            print(f"{error}", file=sys.stderr)
            messages.pop()
            continue
        print()
        messages.append({"role": "assistant", "content": answer.strip() or "…"})
    print()


def _in_utf8(text: str) -> str:
    """The text with `?` for bytes of other codes, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


def fitting(loaded: Loaded, messages: list[dict[str, str]], kept: int, new_tokens: int) -> list[dict[str, str]]:
    """The messages without the oldest questions and answers, as many as leave room for the answer; `kept` stay.

    Half of what the model reads is room enough: a longer answer would leave none for what was said.
    """
    room = min(new_tokens, loaded.max_seq_len // 2)
    while len(messages) - kept > 2 and len(chat_ids(loaded, messages)) + room > loaded.max_seq_len:
        messages = [*messages[:kept], *messages[kept + 2 :]]
    return messages


def _write(piece: str) -> None:
    print(piece, end="", flush=True)
