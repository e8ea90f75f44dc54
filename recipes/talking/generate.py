"""Text from a trained model: `python -m recipes generate MODEL … --prompts FILE`, and what chat shares with it.

Tokens come one by one with the keys and values of those before them kept, so the work of n new tokens is n forward
passes of one token each, after one over the prompt. On a GPU that has bf16 matrices are in it, as evaluations compute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.models.backends import goes_on_exactly
from recipes.preflight.machine import can_be_written
from recipes.talking.loading import Loaded, load_model, refuse_without_template
from recipes.weights.folder_files import end_of_turn, ids_of_ends


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy: always the likeliest."""

    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    repetition_penalty: float = 1.0
    seed: int | None = None

    def checked(self) -> Sampling:
        """Itself. Raises ValueError for a number that cannot be right."""
        seed = self.seed or 0
        for name, value, fits, expected in (
            ("--seed", self.seed, -(2**63) <= seed < 2**64, "a whole number of 64 bits"),
            ("--max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("--temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "above 0, 1 at most"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("--repetition-penalty", self.repetition_penalty, 0 < self.repetition_penalty < 100, "above 0"),
        ):
            if not fits:
                raise ValueError(f"{name}: got {value}, expected {expected}")
        return self

    def arguments(self) -> dict[str, Any]:
        """For transformers' generate."""
        if self.temperature == 0:
            return {"do_sample": False, "repetition_penalty": self.repetition_penalty}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
        }


class Streamer:
    """Gives a callback the text of each token as soon as it is whole: bytes of one character may be several tokens.

    stop: a text, of several tokens perhaps, that ends the answer and is no part of it.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], None], stop: str = "") -> None:
        self._tokenizer, self._write, self._stop = tokenizer, write, stop
        self._ids: list[int] = []
        self._written = 0
        self._prompt = True

    def put(self, value: Any) -> None:
        if self._prompt:  # generate gives the prompt first
            self._prompt = False
            return
        self._ids += value.flatten().tolist()
        text = self._text()
        if not text.endswith("\ufffd"):
            # what may become the stop waits for the tokens behind it
            beginning = next((n for n in range(len(self._stop) - 1, 0, -1) if text.endswith(self._stop[:n])), 0)
            self._write_to(text, len(text) - beginning)

    def end(self) -> None:
        text = self._text()
        self._write_to(text, len(text))

    def _text(self) -> str:
        return until(self._tokenizer.decode(self._ids, skip_special_tokens=True), self._stop)

    def _write_to(self, text: str, end: int) -> None:
        if end > self._written:
            self._write(text[self._written : end])
            self._written = end


def until(text: str, stop: str) -> str:
    """The text before `stop`; all of it where there is none."""
    return text.partition(stop)[0] if stop else text


def complete(loaded: Loaded, ids: Sequence[int], sampling: Sampling, write: Callable[[str], None] | None = None) -> str:
    """What the model writes behind the ids of a prompt.

    write: is given the text piece by piece as it is made.
    Raises ValueError for a prompt that leaves no room in the model's context.
    """
    import torch

    room = loaded.max_seq_len - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids):,} tokens, the model reads {loaded.max_seq_len:,}: shorten it")
    if not ids:
        raise ValueError("the prompt has no tokens")
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    tokenizer = loaded.tokenizer
    device = next(loaded.model.parameters()).device
    prompt = torch.tensor([list(ids)], device=device)  # (1, S)
    end = _ends(loaded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end[0] if end else None
    stop = end_of_turn(tokenizer)
    in_words = stop and stop not in tokenizer.get_vocab()
    stops = {"stop_strings": [stop], "tokenizer": tokenizer} if in_words else {}
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=loaded.in_bf16)
    with _words_for_bad_probabilities(), torch.inference_mode(), autocast:
        out = loaded.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(sampling.max_new_tokens, room),
            use_cache=goes_on_exactly(getattr(loaded.model.config, "attn_config", None)),
            eos_token_id=end or None,
            pad_token_id=pad,
            # whatever a folder's generation_config.json says: one answer, as it is made
            num_beams=1,
            num_return_sequences=1,
            return_dict_in_generate=False,
            streamer=Streamer(tokenizer, write, stop) if write else None,
            **sampling.arguments(),
            **stops,
        )
    return until(str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)), stop)


def _ends(loaded: Loaded) -> list[int]:
    """The ids that end an answer: the tokenizer's, and those of generation_config.json; both may be several."""
    said = getattr(loaded.model.generation_config, "eos_token_id", None)
    ends = [*ids_of_ends(loaded.tokenizer), *(said if isinstance(said, (list, tuple)) else [said])]
    return list(dict.fromkeys(int(end) for end in ends if end is not None))


@contextmanager
def _words_for_bad_probabilities() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        text = "the model's scores are no probabilities (NaN or infinity): look at the weights, or raise --temperature"
        raise ValueError(text) from None


def chat_ids(loaded: Loaded, messages: Sequence[dict[str, str]]) -> list[int]:
    """Ids of a conversation, up to where the answer begins. Raises ValueError where the tokenizer has no template."""
    refuse_without_template(loaded.name, loaded.tokenizer)
    from jinja2 import TemplateError

    try:
        text = loaded.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # it may refuse roles, or be none
        raise ValueError(f"the chat template of {loaded.name} does not take this conversation: {error}") from None
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: one a line, or of `.jsonl` the text under "prompt". Raises ValueError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")  # not at U+2028 and the like
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if path.suffix != ".jsonl":
        prompts = [line for line in lines if line.strip()]
    else:
        prompts = []
        for number, line in enumerate(lines, 1):
            try:
                prompt = json.loads(line)["prompt"]
                if not isinstance(prompt, str):
                    raise TypeError
                prompts.append(prompt)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ValueError(f'{path}:{number}: expected {{"prompt": "…"}}') from None
            if not _is_text(prompt):
                raise ValueError(f"{path}:{number}: got {prompt!r}, and half a pair of surrogates is no text")
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def _is_text(prompt: str) -> bool:
    """Whether it can be written in UTF-8, as tokenizers take it."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True


def generate(
    paths: Sequence[Path],
    prompts: Sequence[str],
    sampling: Sampling,
    chat: bool = False,
    tokenizer: str | None = None,
    recipe: Path | None = None,
    out: Path | None = None,
) -> None:
    """Print what each model writes behind each prompt, one model under the other; `out` gets the same as JSON Lines.

    chat: put each prompt through the chat template as a user's message.
    """
    sampling = sampling.checked()
    if out and not can_be_written(out):
        raise ValueError(f"--out: {out} cannot be written")
    rows = []
    models = [load_model(path, tokenizer, recipe, in_bf16=True, for_chat=chat) for path in paths]
    names = [loaded.name for loaded in models]
    models = [
        replace(loaded, name=str(path)) if names.count(loaded.name) > 1 else loaded
        for path, loaded in zip(paths, models, strict=True)
    ]
    width = max(len(loaded.name) for loaded in models) if len(models) > 1 else 0

    def ids_of(loaded: Loaded, prompt: str) -> list[int]:
        user = [{"role": "user", "content": prompt}]
        return chat_ids(loaded, user) if chat else list(loaded.tokenizer(prompt)["input_ids"])

    for number, prompt in enumerate(prompts, 1):  # all before the first answer: none is lost for one that is too long
        for loaded in models:
            length = len(ids_of(loaded, prompt))
            if not length:
                raise ValueError(f"prompt {number} has no tokens for {loaded.name}: write something, or leave it out")
            if length >= loaded.max_seq_len:
                text = f"prompt {number} has {length:,} tokens, {loaded.name} reads {loaded.max_seq_len:,}: shorten it"
                raise ValueError(f"{text} ({prompt[:60]!r} …)")
    for prompt in prompts:
        print(f"\n{prompt}", flush=True)
        for loaded in models:
            ids = ids_of(loaded, prompt)
            print(f"  {loaded.name:<{width}}  " if width else "  ", end="")
            text = complete(loaded, ids, sampling, lambda piece: print(piece.replace("\n", "\n  "), end="", flush=True))
            print()
            rows.append({"model": loaded.name, "prompt": prompt, "text": text})
    if out:
        from data_prep.durable import write_whole

        write_whole(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
