"""What `hf_causal_lm` trained: a model of transformers already, whose names and config.json the checkpoint has."""

from __future__ import annotations

from typing import Any

from recipes.weights.checkpoint_tensors import hf_config_in
from recipes.weights.hf_names import Link
from recipes.weights.hf_refusals import THROUGH_LLM_FOUNDRY
from recipes.weights.shards import Target
from recipes.weights.tensor_files import TensorFiles
from recipes.weights.trained import Trained

OF_COMPOSER = ("dtype", "_attn_implementation_autoset", "use_cache")  # keys that training set, for itself alone


def config_of(trained: Trained) -> dict[str, Any]:
    """config.json of a checkpoint's model. Raises ValueError where the checkpoint, such as a sharded one, has none."""
    config = hf_config_in(trained.checkpoint) if trained.checkpoint.is_file() else None
    if config is None:
        text = f"{trained.checkpoint} has no config of transformers, which full checkpoints of Composer have"
        raise ValueError(f"{text}; on the devices that it was trained on, this exports it: {THROUGH_LLM_FOUNDRY}")
    return {key: value for key, value in config.items() if key not in OF_COMPOSER}


def targets_of(files: TensorFiles) -> list[Target]:
    """Every tensor under its own name; not the output matrix where it is the embeddings, which transformers ties."""
    shapes, entries = files.shapes(), files.entries
    head = "lm_head.weight"
    is_tied = any(name != head and entry == entries.get(head) for name, entry in entries.items())
    kept = {name: shape for name, shape in shapes.items() if not (name == head and is_tied)}
    if scalar := next((name for name, shape in kept.items() if not shape), None):
        raise ValueError(f"{scalar} is a single number, which is not known here; {THROUGH_LLM_FOUNDRY} writes it")
    return [Target(name, shape, (Link(name, name, shape),)) for name, shape in kept.items()]
