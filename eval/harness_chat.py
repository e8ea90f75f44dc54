"""How questions of lm-evaluation-harness are put: as plain text, or as turns of a conversation. No torch.

The words are the harness's own: `apply_chat_template`, `system_instruction`, `fewshot_as_multiturn`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asking:
    """The harness's options of one evaluation.

    apply_chat_template: through the tokenizer's chat template, a question as the user's turn. system_instruction: what
    stands before everything, with a template as the system's turn. fewshot_as_multiturn: examples before a question are
    turns of their own, with a template; else they stand in the user's turn with it.
    """

    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Asking:
        """From a recipe's `harness_tasks`, whose other keys say what is asked."""
        return cls(**{key: settings[key] for key in KEYS if settings.get(key) is not None})

    def arguments(self) -> dict[str, Any]:
        """For the harness's `evaluate` and its tasks' `build_all_requests`."""
        return {**asdict(self), "fewshot_as_multiturn": self.apply_chat_template and self.fewshot_as_multiturn}

    @property
    def suffix(self) -> str:
        """What a task's label ends in, so that scores with and without a template stand side by side."""
        return "/chat" if self.apply_chat_template else ""


KEYS = tuple(Asking.__dataclass_fields__)
PLAIN = Asking()


def check_template(tokenizer: Any, name: str) -> None:
    """Raises ValueError where the tokenizer has no chat template. name: the option that wants one."""
    if not tokenizer.chat_template:
        text = "the tokenizer has no chat template, so that the model was hardly tuned on conversations"
        raise ValueError(f"{name}: {text}: leave it out, or name a tokenizer with one")


def as_conversation(tokenizer: Any, messages: Sequence[Mapping[str, str]], asks: bool) -> str:
    """Messages as the tokenizer's chat template writes them. asks: an answer is to follow; else the last goes on.

    As in the harness, a template that takes no system's turn is given none, which is logged.
    """
    from jinja2 import TemplateError

    def written(turns: Sequence[Mapping[str, str]]) -> str:
        return tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=asks, continue_final_message=not asks
        )

    try:
        return written(messages)
    except TemplateError as error:
        rest = [message for message in messages if message["role"] != "system"]
        if len(rest) == len(messages):
            raise
        _say_once(f"the chat template takes no system's turn ({error}): it is left out, as the harness does")
        return written(rest)


@functools.cache
def _say_once(text: str) -> None:
    log.warning(text)
