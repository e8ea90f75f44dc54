"""Which rows of which tensor are which: the model's own names, and those of transformers' classes. Pure Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.cost.parameters import ModelShape, model_shape
from recipes.weights import hf_rwkv
from recipes.weights.hf_architecture import family_of


@dataclass(frozen=True)
class Link:
    """`shape[0]` rows of the tensor `ours`, from row `ours_at` on, are those of `theirs` from `theirs_at` on."""

    ours: str
    theirs: str
    shape: tuple[int, ...]
    ours_at: int = 0
    theirs_at: int = 0


def links(model: Mapping[str, Any]) -> list[Link]:
    """Every tensor of the model, row by row, in the order of the layers."""
    shape, family = model_shape(model), family_of(model)
    if family == "rwkv":
        return [Link(name, name, size) for name, size in hf_rwkv.tensors(model)]
    fused = (model.get("attn_config") or {}).get("fused_qkv", True)
    d, vocab = shape.d_model, shape.vocab_size
    embedding = "transformer.wte.weight" if family == "mpt" else "model.embed_tokens.weight"
    found = [Link("transformer.wte.weight", embedding, (vocab, d))]
    for layer in range(shape.n_layers):
        block = f"transformer.blocks.{layer}"
        found += _attention_links(shape, block, f"model.layers.{layer}.self_attn", family, bool(fused))
        names = _LLAMA_LAYER if family == "llama" else {}
        theirs = f"model.layers.{layer}." if family == "llama" else f"{block}."
        hidden = shape.ffn_hidden_size
        parts: dict[str, tuple[int, int]] = {"ffn.up_proj": (hidden, d), "ffn.down_proj": (d, hidden)}
        if shape.ffn_matrices == 3:
            parts = {"ffn.gate_proj": (hidden, d), **parts}
        for part, size in {"attn.out_proj": (d, shape.q_width), **parts}.items():
            their_part = theirs + names.get(part, part)
            found.append(Link(f"{block}.{part}.weight", f"{their_part}.weight", size))
            if shape.bias:
                found.append(Link(f"{block}.{part}.bias", f"{their_part}.bias", size[:1]))
        for norm in ("norm_1", "norm_2"):
            found.append(Link(f"{block}.{norm}.weight", f"{theirs}{names.get(norm, norm)}.weight", (d,)))
    found.append(
        Link("transformer.norm_f.weight", "transformer.norm_f.weight" if family == "mpt" else "model.norm.weight", (d,))
    )
    if not shape.tie_word_embeddings:
        found.append(Link("lm_head.weight", "lm_head.weight", (vocab, d)))
    return found


_LLAMA_LAYER = {
    "attn.out_proj": "self_attn.o_proj",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
}


def _attention_links(shape: ModelShape, block: str, llama: str, family: str, fused: bool) -> Iterator[Link]:
    """Queries, keys and values: fused or not, in either spelling."""
    at = 0
    for letter, width in (("q", shape.q_width), ("k", shape.kv_width), ("v", shape.kv_width)):
        ours, ours_at = (f"{block}.attn.Wqkv", at) if fused else (f"{block}.attn.W{letter}", 0)
        theirs, theirs_at = (f"{block}.attn.Wqkv", at) if family == "mpt" else (f"{llama}.{letter}_proj", 0)
        yield Link(f"{ours}.weight", f"{theirs}.weight", (width, shape.d_model), ours_at, theirs_at)
        if shape.attention_bias:
            yield Link(f"{ours}.bias", f"{theirs}.bias", (width,), ours_at, theirs_at)
        at += width
