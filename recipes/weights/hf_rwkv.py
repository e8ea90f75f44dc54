"""RWKV-4 in the two spellings of hf_architecture.py and hf_names.py. Its tensors have the same names in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.cost.architecture import ModelShape, model_shape

CLASS = "RwkvForCausalLM"
EPSILON = 1e-5  # of the norms, where config.json has none
RESCALED_EVERY = 6  # layers after which transformers halves activations, its default: in fp16 large models overflow


class NotSaid(ValueError):
    """Something in a config.json that the recipe's keys cannot express."""


def architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the model's numbers, by keys of the recipe."""
    shape = model_shape(model)
    return {
        "family": "rwkv",
        "d_model": shape.d_model,
        "n_layers": shape.n_layers,
        "vocab_size": shape.vocab_size,
        "norm_eps": float(EPSILON if model.get("norm_eps") is None else model["norm_eps"]),
        "expansion_ratio": shape.ffn_hidden_size / shape.d_model,
    }


def architecture_of_folder(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, from config.json. Raises KeyError for one that is missing, NotSaid for what no recipe can say."""
    width = config["hidden_size"]
    if not isinstance(width, int):
        raise TypeError(f"hidden_size {width!r}")
    if (config.get("attention_hidden_size") or width) != width:
        raise NotSaid(f"attention_hidden_size {config['attention_hidden_size']} beside hidden_size {width}")
    if config.get("tie_word_embeddings"):
        raise NotSaid("tie_word_embeddings: true")
    return {
        "family": "rwkv",
        "d_model": width,
        "n_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "norm_eps": float(config.get("layer_norm_epsilon", EPSILON)),
        "expansion_ratio": (config.get("intermediate_size") or 4 * width) / width,
    }


def folder_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture keys of config.json for a `model:` section."""
    shape = model_shape(model)
    return {
        "architectures": [CLASS],
        "model_type": "rwkv",
        "hidden_size": shape.d_model,
        "attention_hidden_size": shape.d_model,
        "intermediate_size": shape.ffn_hidden_size,
        "num_hidden_layers": shape.n_layers,
        "context_length": shape.max_seq_len,
        "vocab_size": shape.vocab_size,
        "layer_norm_epsilon": architecture(model)["norm_eps"],
        "rescale_every": 0,  # exactly the model's numbers
        "tie_word_embeddings": False,
    }


def tensors(model: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor, in the order of the layers."""
    shape = model_shape(model)
    d = shape.d_model
    yield "rwkv.embeddings.weight", (shape.vocab_size, d)
    for layer in range(shape.n_layers):
        block = f"rwkv.blocks.{layer}"
        for norm in ("pre_ln", "ln1", "ln2") if layer == 0 else ("ln1", "ln2"):
            yield from _norm(f"{block}.{norm}", d)
        yield from _block(block, shape)
    yield from _norm("rwkv.ln_out", d)
    yield "head.weight", (shape.vocab_size, d)


def _norm(name: str, d: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (d,)
    yield f"{name}.bias", (d,)


def _block(block: str, shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, hidden = shape.d_model, shape.ffn_hidden_size
    for vector in ("time_decay", "time_first"):
        yield f"{block}.attention.{vector}", (d,)
    for part, mixes in (("attention", ("key", "value", "receptance")), ("feed_forward", ("key", "receptance"))):
        for mix in mixes:
            yield f"{block}.{part}.time_mix_{mix}", (1, 1, d)
    for matrix in ("key", "value", "receptance", "output"):
        yield f"{block}.attention.{matrix}.weight", (d, d)
    for matrix, size in (("key", (hidden, d)), ("receptance", (d, d)), ("value", (d, hidden))):
        yield f"{block}.feed_forward.{matrix}.weight", size
