"""One tiny model in three shapes: Composer's, transformers' own MPT with the same weights, and its tokenizer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipes import parts
from recipes.weights.trained import find_trained

CONTEXT = 256  # tokens; ALiBi reads on where training ended


@dataclass(frozen=True)
class Twins:
    composer: Any
    transformers: Any
    tokenizer: Any


def twins_of(run: Path) -> Twins:
    """The model of a run folder, and the same in transformers' classes by the names that they share."""
    from llmfoundry.utils import builders
    from transformers import MptConfig, MptForCausalLM

    trained = find_trained(run)
    with trained.tensors() as files:
        weights = {name: files.rows(name).clone() for name in files.shapes()}
    section = {**copy.deepcopy(dict(trained.model)), "max_seq_len": CONTEXT}
    parts.register_components()
    tokenizer = builders.build_tokenizer(trained.recipe["tokenizer"]["name"], {})
    composer = parts.build_model(dict(section), tokenizer, None, None).eval()
    composer.model.load_state_dict(weights)
    keys = ("d_model", "n_heads", "n_layers", "vocab_size")
    theirs = MptForCausalLM(MptConfig(**{k: section[k] for k in keys}, max_seq_len=CONTEXT)).eval()
    absent, unknown = theirs.load_state_dict(weights, strict=False)
    assert not unknown
    assert set(absent) <= {"lm_head.weight"}
    theirs.tie_weights()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(composer.model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    return Twins(composer, theirs, tokenizer)
