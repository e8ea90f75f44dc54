"""Text that goes on from prompts, in batches of prompts alike in length, by transformers' own `generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from eval.backbone import Backbone
from eval.cache import Answer, AnswerCache
from eval.questions import Prompt, ScoringError
from eval.scoring import Model, Progress, answer_batches, own_gpu

SEED = 17  # where a task samples


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    batch_size: int,
    cache: AnswerCache | None = None,
    progress: Progress | None = None,
    as_harness: bool = False,
) -> list[str]:
    """What the model writes after each prompt, without special tokens; it may run on behind a stop string.

    as_harness: end as lm-evaluation-harness's `hf` model does, at the end tokens of the model's own generation_config
    too, and at stop strings that are special tokens; there the text is cut. LLM Foundry's tasks know neither.
    Raises ScoringError for a prompt without tokens, which it names.
    """
    for prompt in prompts:
        if not prompt.tokens:
            raise ScoringError(f"{prompt.name}: the question has no tokens, so there is nothing to go on from")
    unique = list(dict.fromkeys(prompts))
    order = sorted(range(len(unique)), key=lambda i: (unique[i].settings, unique[i].stop, -len(unique[i].tokens), i))
    batches: list[list[int]] = []
    for index in order:
        last = unique[batches[-1][0]] if batches else None
        alike = last is not None and _ways(last) == _ways(unique[index])
        if alike and len(batches[-1]) < batch_size:
            batches[-1].append(index)
        else:
            batches.append([index])
    keys = [[unique[i].key for i in batch] for batch in batches]

    def compute(backbone: Backbone, index: int) -> dict[str, Answer]:
        texts = []
        for together in _turned_alike(backbone, [unique[i] for i in batches[index]]):
            texts += _batch(backbone, together, tokenizer, as_harness)
        return dict(zip(keys[index], texts, strict=True))

    answers = answer_batches(model, keys, compute, cache, progress)
    return [str(answers[prompt.key]) for prompt in prompts]


def _ways(prompt: Prompt) -> Any:
    return prompt.max_new_tokens, prompt.stop, prompt.settings


def _turned_alike(backbone: Backbone, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """The prompts one by one, where the longest would change how all are turned (see eval/backbone.py, `turns_at`).

    Raises ScoringError where the model's weights are sharded: every process must generate equally often.
    """
    most = max(len(prompt.tokens) + prompt.max_new_tokens for prompt in prompts)
    if len(prompts) == 1 or backbone.turns_at is None or most <= backbone.turns_at:
        return [prompts]
    if backbone.sharded:
        text = f"{most} tokens are beyond the {backbone.turns_at} from which this model turns all of a batch otherwise"
        raise ScoringError(f"{prompts[0].name}: {text}: set batches of one (device_eval_batch_size, --batch-size)")
    return [[prompt] for prompt in prompts]


def _batch(backbone: Backbone, prompts: Sequence[Prompt], tokenizer: Any, as_harness: bool) -> list[str]:
    from transformers import StoppingCriteriaList

    width = max(len(p.tokens) for p in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p.tokens)) + list(p.tokens) for p in prompts], device=backbone.device)
    mask = torch.tensor([[0] * (width - len(p.tokens)) + [1] * len(p.tokens) for p in prompts], device=backbone.device)
    settings: dict[str, Any] = {"do_sample": False, **json.loads(prompts[0].settings)}
    if not settings["do_sample"]:
        settings |= dict.fromkeys(("temperature", "top_p", "top_k"), None)
    stop, ends = prompts[0].stop, ends_of(backbone, tokenizer) if as_harness else tokenizer.eos_token_id
    with torch.random.fork_rng(own_gpu()):  # a training run draws its own numbers on
        torch.manual_seed(SEED)
        try:
            out = backbone.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=prompts[0].max_new_tokens,
                pad_token_id=pad,
                eos_token_id=ends,
                stopping_criteria=StoppingCriteriaList([_AllStopped(tokenizer, stop, width, as_harness)]),
                synced_gpus=backbone.sharded,
                **settings,
            )
        except (ValueError, TypeError) as error:  # arguments that transformers judges when it uses them
            text = str(error).partition("\n")[0]
            raise ScoringError(f"{prompts[0].name}: cannot be generated with {prompts[0].settings}: {text}") from None
    texts = list(tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))
    if as_harness:
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        if any(token in string for string in stop for token in special):
            whole = tokenizer.batch_decode(out[:, width:], skip_special_tokens=False)
            texts = [_cut(w, stop, special, text) for w, text in zip(whole, texts, strict=True)]
    return texts


def ends_of(backbone: Backbone, tokenizer: Any) -> list[int]:
    """The tokenizer's end of text, and those that the model's own generation_config names: one, or a list."""
    own = getattr(getattr(backbone.causal, "generation_config", None), "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({int(token) for token in ends if token is not None})


def _cut(whole: str, stop: Sequence[str], special: Sequence[str], text: str) -> str:
    """`whole`, which has its special tokens, up to the first stop string and then without them; `text` if it has none.

    Behind the stop string a row may go on to whatever the others of its batch take.
    """
    found = [whole.index(string) for string in stop if string in whole]
    if not found:
        return text
    head = whole[: min(found)]
    for token in special:
        head = head.replace(token, "")
    return head


class _AllStopped:
    """Ends a batch when every row has written a stop string; the rest is cut off by whoever asked."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int, with_special: bool) -> None:
        self.tokenizer, self.stop, self.width, self.with_special = tokenizer, stop, width, with_special

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.stop:
            new = input_ids[:, self.width :]
            written = self.tokenizer.batch_decode(new, skip_special_tokens=not self.with_special)
            done = [any(s in text for s in self.stop) for text in written]
        else:
            done = [False] * len(input_ids)
        return torch.tensor(done, device=input_ids.device)
