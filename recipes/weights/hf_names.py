"""Which rows of which tensor are which: the model's own names, and those of transformers' classes. Pure Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.cost.architecture import RWKV, ModelShape, model_shape
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
    is_llama = family == "llama"
    fused = bool((model.get("attn_config") or {}).get("fused_qkv", True))
    d, vocab, norm_bias = shape.d_model, shape.vocab_size, shape.norm_has_bias and shape.bias
    found = [
        Link("transformer.wte.weight", f"{'model.embed_tokens' if is_llama else 'transformer.wte'}.weight", (vocab, d))
    ]
    if shape.learned_pos_emb:
        found.append(Link("transformer.wpe.weight", "transformer.wpe.weight", (shape.max_seq_len, d)))
    for layer in range(shape.n_layers):
        block = f"transformer.blocks.{layer}"
        theirs = f"model.layers.{layer}" if is_llama else block
        found += _attention_links(shape, block, f"{theirs}.self_attn", is_llama, fused)
        hidden = shape.ffn_hidden_size
        parts = {"attn.out_proj": (d, shape.q_width), "ffn.up_proj": (hidden, d), "ffn.down_proj": (d, hidden)}
        if shape.ffn_matrices == 3:
            parts["ffn.gate_proj"] = (hidden, d)
        norms = {"norm_1": d, "norm_2": d}
        if shape.qk_ln or shape.qk_gn:
            widths = (shape.head_dim, shape.head_dim) if shape.qk_gn else (shape.q_width, shape.kv_width)
            norms |= dict(zip(("attn.q_ln", "attn.k_ln"), widths, strict=True))
        sizes: list[tuple[str, tuple[int, ...], bool]] = [(part, size, shape.bias) for part, size in parts.items()]
        for part, size, bias in sizes + [(norm, (width,), norm_bias) for norm, width in norms.items()]:
            their_part = _LLAMA_LAYER.get(part, part) if is_llama else part
            found += _weight_and_bias(f"{block}.{part}", f"{theirs}.{their_part}", size, bias)
    found += _weight_and_bias("transformer.norm_f", "model.norm" if is_llama else "transformer.norm_f", (d,), norm_bias)
    if not shape.tie_word_embeddings:
        found.append(Link("lm_head.weight", "lm_head.weight", (vocab, d)))
    return found


def own_shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a `model:` section by its name there, unless its layers differ (`is_listed`)."""
    found: dict[str, tuple[int, ...]] = {}
    for link in links(model):
        rows = max(found.get(link.ours, (0,))[0], link.ours_at + link.shape[0])
        found[link.ours] = (rows, *link.shape[1:])
    return found


def is_listed(model: Mapping[str, Any]) -> bool:
    """Whether `links` knows the tensors: not of layers that differ, nor of norms fused with the attention."""
    return model.get("name") == RWKV or not (
        model.get("block_overrides") or model.get("fuse_norm_attn_norm") or model_shape(model).layers_reusing_kv
    )


_LLAMA_LAYER = {
    "attn.out_proj": "self_attn.o_proj",
    "ffn.gate_proj": "mlp.gate_proj",
    "ffn.up_proj": "mlp.up_proj",
    "ffn.down_proj": "mlp.down_proj",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
}


def _weight_and_bias(ours: str, theirs: str, size: tuple[int, ...], bias: bool) -> Iterator[Link]:
    yield Link(f"{ours}.weight", f"{theirs}.weight", size)
    if bias:
        yield Link(f"{ours}.bias", f"{theirs}.bias", size[:1])


def _attention_links(shape: ModelShape, block: str, llama: str, is_llama: bool, fused: bool) -> Iterator[Link]:
    """Queries, keys and values: fused or not, in either spelling."""
    at = 0
    for letter, width, inputs in (
        ("q", shape.q_width, shape.d_model),
        ("k", shape.kv_width, shape.kv_dim),
        ("v", shape.kv_width, shape.kv_dim),
    ):
        ours, ours_at = (f"{block}.attn.Wqkv", at) if fused else (f"{block}.attn.W{letter}", 0)
        theirs, theirs_at = (f"{llama}.{letter}_proj", 0) if is_llama else (f"{block}.attn.Wqkv", at)
        yield Link(f"{ours}.weight", f"{theirs}.weight", (width, inputs), ours_at, theirs_at)
        if shape.attention_bias:
            yield Link(f"{ours}.bias", f"{theirs}.bias", (width,), ours_at, theirs_at)
        at += width
