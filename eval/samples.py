"""`samples:` of an evaluation recipe: texts that the model goes on from, for a person to read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from eval.models import longest
from recipes.config.keys import Problem, RecipeError
from recipes.config.load import Recipe

if TYPE_CHECKING:
    from eval.backbone import Backbone

NEW_TOKENS = 60


def refuse_samples(recipe: Recipe, tokenizer_of: Callable[[Mapping[str, Any]], Any]) -> None:
    """Raise RecipeError for a prompt of `samples:` that some model cannot go on from, before anything is scored."""
    from recipes.parts import reporting

    wanted = recipe.get("samples", {"prompts": []})
    new = wanted.get("max_new_tokens", NEW_TOKENS)
    problems = []
    for entry in recipe["models"] if wanted["prompts"] else []:
        tokenizer, most = tokenizer_of(entry), longest(entry, sys.maxsize)
        for index, prompt in enumerate(wanted["prompts"]):
            with reporting(recipe, "samples"):
                count = len(tokenizer(prompt)["input_ids"])
            text = None
            if not count:
                text = f"got {prompt!r}, which has no tokens: write something to go on from"
            elif count + new - 1 > most:  # the last new token is written, not read
                room = most - count + 1
                mend = f"shorten it, or set max_new_tokens to {room} or less" if room > 0 else "shorten it"
                text = f"{count} tokens and {new} new ones do not fit {entry['model_name']}, which reads {most}: {mend}"
            if text:
                key = ("samples", "prompts", index)
                problems.append(Problem(recipe.place(key), key, text))
    if problems:
        raise RecipeError(problems)


def continued(backbone: Backbone, tokenizer: Any, wanted: dict[str, Any]) -> list[dict[str, str]]:
    """Continue each prompt of `samples:`; sampling is seeded, so that the same checkpoint says the same."""
    import torch

    from eval.generation import ends_of

    made = []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for prompt in wanted["prompts"]:
        torch.manual_seed(wanted.get("seed", 17))
        ids = tokenizer(prompt, return_tensors="pt")
        ids = {k: v.to(backbone.device) for k, v in ids.items() if k != "token_type_ids"}
        text = backbone.generate(
            **ids,
            max_new_tokens=wanted.get("max_new_tokens", NEW_TOKENS),
            do_sample=wanted.get("temperature", 0.8) > 0,
            temperature=wanted.get("temperature", 0.8) or None,
            top_p=wanted.get("top_p", 0.9),
            pad_token_id=pad,
            eos_token_id=ends_of(backbone, tokenizer) or None,  # a run's model has no generation_config that says
            synced_gpus=backbone.sharded,
        )
        new = text[0, ids["input_ids"].shape[1] :]
        made.append({"prompt": prompt, "text": tokenizer.decode(new, skip_special_tokens=True)})
    return made
