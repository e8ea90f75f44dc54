"""What is asked of a model: the log-probability of a continuation, or text that goes on from a prompt. No torch."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """Score `continuation` (token ids, at least one) after `context` (token ids, at least one).

    Two requests with the same tokens are equal: they are evaluated once. `name` says which example asks, for errors.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    name: str = field(default="", compare=False)

    @functools.cached_property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all tokens but the last, which predicts nothing that is asked for."""
        return (*self.context, *self.continuation[:-1])

    @functools.cached_property
    def key(self) -> str:
        return _key(self.context, self.continuation)


@dataclass(frozen=True)
class Prompt:
    """Go on from `tokens` for at most `max_new_tokens`, until one of the strings `stop`.

    settings: further arguments of transformers' `generate`, as JSON (may be lists, and a prompt is a key of tables);
    without any the likeliest token is taken.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    settings: str = "{}"
    name: str = field(default="", compare=False)
    copy: int = 0  # of a prompt that is asked several times and sampled each time

    @functools.cached_property
    def key(self) -> str:
        return _key(self.tokens, (self.max_new_tokens, self.copy), str((self.stop, self.settings)))


@dataclass(frozen=True)
class Scored:
    """logprobs: natural logarithms, one a token of the continuation.

    greedy: whether each token was the likeliest. confidence: the smallest, over the tokens, of the largest probability.
    """

    logprobs: tuple[float, ...]
    greedy: bool
    confidence: float

    @property
    def total(self) -> float:
        return sum(self.logprobs)


class ScoringError(ValueError):
    """An example that cannot be scored; the message names it."""


def refuse_unusable(requests: Sequence[Request], max_len: int) -> None:
    """Raise ScoringError for a request that no model could answer, or that this one is too short for."""
    for request in requests:
        if not request.continuation:
            raise ScoringError(f"{request.name}: the answer has no tokens, so nothing can be scored; correct the task")
        if not request.context:
            raise ScoringError(
                f"{request.name}: nothing comes before the answer, so its first token has no probability"
            )
        if len(request.inputs) > max_len:
            words = (
                f"the answer alone has {len(request.continuation)} tokens"
                if len(request.continuation) > max_len
                else (f"{len(request.inputs)} tokens are to be read")
            )
            raise ScoringError(
                f"{request.name}: {words}, the model takes {max_len}; use a longer context or leave it out"
            )


def _key(*parts: Sequence[int] | str) -> str:
    return hashlib.sha1(
        "|".join(p if isinstance(p, str) else ",".join(map(str, p)) for p in parts).encode()
    ).hexdigest()
