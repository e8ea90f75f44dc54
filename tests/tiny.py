"""Tiny models for tests: recipes' `model:` sections of each family, and runs as Composer would leave them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from recipes.cost.architecture import RWKV as RWKV_NAME
from recipes.models.mpt import ComposerMPTCausalLM, MPTConfig, MPTForCausalLM
from recipes.models.rwkv import RwkvConfig, RwkvForCausalLM

VOCAB = 512  # of the tokenizer that the `shards` fixture makes
SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32, "vocab_size": VOCAB}
MPT: dict[str, Any] = {**SIZES, "no_bias": True, "attn_config": {"alibi": True}}
LLAMA: dict[str, Any] = {
    **SIZES,
    "no_bias": True,
    "tie_word_embeddings": False,
    "norm_type": "rmsnorm",
    "norm_eps": 1.0e-6,
    "ffn_config": {"ffn_type": "mptglu", "ffn_hidden_size": 48, "ffn_act_fn": {"name": "silu"}},
    "attn_config": {"rope": True, "rope_impl": "hf"},
}
RWKV: dict[str, Any] = {"name": RWKV_NAME, "d_model": 32, "n_layers": 2, "max_seq_len": 32, "vocab_size": VOCAB}


def with_changes(model: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with dotted keys changed: attn_config__kv_n_heads=2."""
    made = copy.deepcopy(model)
    for key, value in changes.items():
        section = made
        *way, last = key.split("__")
        for part in way:
            section = section.setdefault(part, {})
        section[last] = value
    return made


def build(model: dict[str, Any], seed: int = 0) -> Any:
    """The language model of a section, with weights large enough that logits differ, in float32."""
    torch.manual_seed(seed)
    keys = {key: value for key, value in copy.deepcopy(model).items() if key != "name"}
    is_rwkv = model.get("name") == RWKV_NAME
    made: Any = RwkvForCausalLM(RwkvConfig(**keys)) if is_rwkv else MPTForCausalLM(MPTConfig(**keys))
    made.eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if "wte" in name or "lm_head" in name else 0.15))
    return made


def composer_model(kind: Any = ComposerMPTCausalLM, tokenizer: Any = None, **changes: Any) -> Any:
    """A Composer model with the weights that it begins with, in training. kind: ours, or LLM Foundry's."""
    torch.manual_seed(0)
    return kind(tokenizer=tokenizer, **copy.deepcopy({**MPT, "use_train_metrics": False, **changes})).train()


def write_run(folder: Path, model: dict[str, Any], module: Any, tokenizer: Path, **recipe: Any) -> Path:
    """A run folder with a resolved recipe and one checkpoint file, as training leaves it."""
    values = {
        "max_seq_len": model["max_seq_len"],
        "model": {"name": "mpt_causal_lm", **model},
        "tokenizer": {"name": str(tokenizer)},
        "train_loader": {
            "name": "text",
            "dataset": {"local": "nowhere", "split": "train"},
            "drop_last": True,
            "num_workers": 0,
        },
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-3},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "1ba"},
        "global_train_batch_size": 4,
        "max_duration": "1ba",
        **recipe,
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    state = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    content = {"state": {"model": state, "optimizers": optimizer, "run_name": "x"}, "rng": [object]}
    torch.save(content, folder / "checkpoints" / "ep0-ba1-rank0.pt")
    return folder
