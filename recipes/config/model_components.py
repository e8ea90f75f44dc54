"""Which constructors read the `model:` section, by `model.name`."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from typing import Any

import torch
from llmfoundry import layers_registry, registry
from llmfoundry.models.hf import ComposerHFCausalLM
from llmfoundry.models.mpt import MPTConfig
from llmfoundry.models.mpt import modeling_mpt as foundry
from llmfoundry.models.utils import config_defaults

from recipes.config.evaluation_rules import OF_AN_API
from recipes.config.grammar import (
    FREE,
    INTEGER_OR_NULL,
    NUMBER_OR_NULL,
    Schema,
    from_defaults,
    from_signature,
    names,
    over,
    section,
)
from recipes.cost.architecture import MPT, RWKV
from recipes.models.backends import CHOICES as ATTENTION_CHOICES
from recipes.models.loss import CHOICES as LOSSES
from recipes.models.mpt import ComposerMPTCausalLM
from recipes.models.rwkv import RwkvConfig

ANYTHING: Schema = {}


def models() -> dict[str, Schema]:
    """The keys of every model that can be named."""

    def keys_of(constructor: Any) -> Schema:
        return from_signature(constructor, without={"tokenizer"}, master_weights_dtype=ANYTHING)

    computed = {name: each for name, each in registry.models.get_all().items() if name not in OF_AN_API}
    others = {name: keys_of(constructor) for name, constructor in computed.items()}
    mpt = _mpt()
    embedding = others["contrastive_lm"]  # gives what it does not know itself to MPT's configuration
    embedding = section({**mpt["properties"], **embedding["properties"], "contrastive_config": FREE})
    return {**others, "contrastive_lm": embedding, "hf_causal_lm": keys_of(ComposerHFCausalLM), MPT: mpt, RWKV: _rwkv()}


def _rwkv() -> Schema:
    config = from_signature(RwkvConfig.__init__)  # its own keys, not those of transformers' base classes
    attention: Schema = {
        "attn_config": {**section({"attn_uses_sequence_id": {"type": "boolean"}}), "type": ["object", "null"]}
    }
    own = {**config["properties"], **_composer(), **attention}
    return section({**own, "master_weights_dtype": ANYTHING})


def _composer() -> Schema:
    """Losses and metrics, of our own constructor and the one that it calls, which gives Composer's what it asks for."""
    constructors = (foundry.ComposerMPTCausalLM.__init__, ComposerMPTCausalLM.__init__)
    keys = {name: key for each in constructors for name, key in from_signature(each)["properties"].items()}
    own: Schema = {"loss_fn": {"enum": list(LOSSES)}}
    return over({name: key for name, key in keys.items() if name != "tokenizer"}, own)


def _activations() -> list[str]:
    """Functions of torch.nn.functional, which LLM Foundry finds by name, that make as many numbers as they take."""
    found = []
    for name, function in sorted(vars(torch.nn.functional).items()):
        if name[0] == "_" or name[-1] == "_" or "dropout" in name or inspect.isclass(function):
            continue
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = function(torch.zeros(2, 2))
            if isinstance(made, torch.Tensor) and made.shape == (2, 2) and made.is_floating_point():
                found.append(name)
    return found


def _mpt() -> Schema:
    attention = from_defaults(
        config_defaults.attn_config_defaults,
        attn_type=names(layers_registry.attention_classes),
        attn_impl={"enum": list(ATTENTION_CHOICES)},
        kv_n_heads=INTEGER_OR_NULL,
        kv_dim=INTEGER_OR_NULL,
        clip_qkv=NUMBER_OR_NULL,
        softmax_scale=NUMBER_OR_NULL,
        attn_logit_softcapping=NUMBER_OR_NULL,
        sliding_window_size={"type": "integer"},
        seq_parallel_world_size=INTEGER_OR_NULL,
        reuse_kv_layer_idx=INTEGER_OR_NULL,
        reuse_kv_x_layer_idx=INTEGER_OR_NULL,
        rope_hf_config=section(
            {
                "type": {"enum": ["no_scaling", "linear", "dynamic", "llama3"]},
                "factor": {"type": "number", "exclusiveMinimum": 0},
                "low_freq_factor": {"type": "number"},
                "high_freq_factor": {"type": "number"},
                "original_max_position_embeddings": {"type": "integer"},
            }
        ),
    )
    # a mixture of experts passes its own keys through ffn_config, so it stays open for that type
    dense = section(
        {
            "ffn_type": {"enum": ["mptmlp", "mptglu"]},
            "ffn_hidden_size": INTEGER_OR_NULL,
            "ffn_act_fn": {**FREE, "required": ["name"], "properties": {"name": {"enum": _activations()}}},
            "fc_type": ANYTHING,
        }
    )
    feed_forward: Schema = {
        "type": ["object", "null"],
        "properties": {"ffn_type": names(layers_registry.ffns, "te_ln_mlp", "mb_moe", "mb_dmoe")},
        "if": {"properties": {"ffn_type": {"enum": ["mptmlp", "mptglu"]}}},
        "then": dense,
    }
    init = from_defaults(
        config_defaults.init_config_defaults,
        name=names(layers_registry.param_init_fns),
        init_div_is_residual={"type": ["number", "string", "boolean"]},
        init_std=NUMBER_OR_NULL,
        emb_init_std=NUMBER_OR_NULL,
        emb_init_uniform_lim={"type": ["number", "array", "null"]},
        verbose={"type": ["integer", "boolean"]},
    )
    sections: Schema = {
        "attn_config": {**attention, "type": ["object", "null"]},
        "ffn_config": feed_forward,
        "init_config": {**init, "type": ["object", "null"]},
        "fc_type": {"anyOf": [names(layers_registry.fcs, "te"), {"type": "object", "required": ["name"]}]},
        "logit_scale": {"anyOf": [{"type": ["number", "null"]}, {"const": "inv_sqrt_d_model"}]},
        "norm_type": names(layers_registry.norms),
        "block_overrides": FREE,
        "activation_checkpointing_target": ANYTHING,
        "fuse_norm_attn_norm": {"type": "boolean"},
        "use_cache": {"type": "boolean"},
    }
    # of what transformers' PretrainedConfig takes from MPTConfig's **kwargs, what something reads
    passed_on: Schema = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), INTEGER_OR_NULL)
    config = from_signature(MPTConfig.__init__)
    lora = section(
        {
            "peft_type": {"enum": ["LORA"]},
            "task_type": {"enum": ["CAUSAL_LM"]},
            "r": {"type": "integer", "minimum": 1},
            "lora_alpha": {"type": "number", "exclusiveMinimum": 0},
            "lora_dropout": {"type": "number", "minimum": 0},
            "target_modules": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "use_rslora": {"type": "boolean"},
        },
        ["r", "lora_alpha", "target_modules"],
    )
    own: Schema = {"master_weights_dtype": ANYTHING, "peft_config": {**lora, "type": ["object", "null"]}}
    return section(over({**config["properties"], **_composer()}, {**sections, **passed_on, **own}))
