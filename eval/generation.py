"""Text that goes on from prompts, in batches of prompts alike in length, by transformers' own `generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from eval.backbone import Backbone
from eval.cache import Answer, AnswerCache
from eval.questions import Prompt
from eval.scoring import Model, Progress, answer_batches

SEED = 17  # where a task samples


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    batch_size: int,
    cache: AnswerCache | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """What the model writes after each prompt, without special tokens; it may run on behind a stop string."""
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
        texts = _batch(backbone, [unique[i] for i in batches[index]], tokenizer)
        return dict(zip(keys[index], texts, strict=True))

    answers = answer_batches(model, keys, compute, cache, progress)
    return [str(answers[prompt.key]) for prompt in prompts]


def _ways(prompt: Prompt) -> Any:
    return prompt.max_new_tokens, prompt.stop, prompt.settings


def _batch(backbone: Backbone, prompts: Sequence[Prompt], tokenizer: Any) -> list[str]:
    from transformers import StoppingCriteriaList

    width = max(len(p.tokens) for p in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p.tokens)) + list(p.tokens) for p in prompts], device=backbone.device)
    mask = torch.tensor([[0] * (width - len(p.tokens)) + [1] * len(p.tokens) for p in prompts], device=backbone.device)
    settings: dict[str, Any] = {"do_sample": False, **json.loads(prompts[0].settings)}
    if not settings["do_sample"]:
        settings |= dict.fromkeys(("temperature", "top_p", "top_k"), None)
    with torch.random.fork_rng():  # a training run draws its own numbers on
        torch.manual_seed(SEED)
        out = backbone.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=prompts[0].max_new_tokens,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            stopping_criteria=StoppingCriteriaList([_AllStopped(tokenizer, prompts[0].stop, width)]),
            synced_gpus=backbone.sharded,
            **settings,
        )
    return list(tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))


class _AllStopped:
    """Ends a batch when every row has written a stop string; the rest is cut off by whoever asked."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, stop, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.stop:
            written = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
            done = [any(s in text for s in self.stop) for text in written]
        else:
            done = [False] * len(input_ids)
        return torch.tensor(done, device=input_ids.device)
