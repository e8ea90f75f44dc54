"""Which constructor reads which section of a recipe: the only place that ties sections to code for the schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from composer.utils.parallelism import FSDP2Config, FSDPConfig
from llmfoundry import layers_registry, registry
from llmfoundry.data.finetuning import dataloader as finetuning
from llmfoundry.data.finetuning.tasks import DatasetConstructor, StreamingFinetuningDataset
from llmfoundry.data.text_data import StreamingTextDataset
from llmfoundry.models.hf import ComposerHFCausalLM
from llmfoundry.models.mpt import MPTConfig
from llmfoundry.models.utils import config_defaults
from llmfoundry.utils.config_utils import EvalConfig, TrainConfig
from streaming import Stream

from recipes.build import register_components
from recipes.config.grammar import (
    DURATION,
    FREE,
    STEPS,
    TIME,
    Schema,
    from_defaults,
    from_signature,
    keyed,
    named,
    section,
    type_of,
)
from recipes.cost.parameters import MPT, RWKV
from recipes.models.backends import CHOICES as ATTENTION_CHOICES
from recipes.models.loss import CHOICES as LOSSES
from recipes.models.mpt import ComposerMPTCausalLM
from recipes.models.rwkv import RwkvConfig

ANYTHING: Schema = {}
STRINGS: Schema = {"type": ["array", "null"], "items": {"type": "string"}}
NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
INTEGER_OR_NULL: Schema = {"type": ["integer", "null"]}
RUN_NAME: Schema = {"type": ["string", "integer", "null"]}
LOG_LEVEL: Schema = {
    "type": ["string", "null"],
    "pattern": "(?i)^(debug|info|warning|error|critical)$",
    "description": "one of debug, info, warning, error, critical",
}
MASTER_WEIGHTS: Schema = {"enum": ["bf16", "bfloat16", "f16", "float16", None]}
PRECISION: Schema = {"enum": ["fp32", "amp_fp16", "amp_bf16", "amp_fp8"]}
COMPILE_MODES = [None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

# Keys of TrainConfig that LLM Foundry's own code fills in; a user who sets them is making a mistake.
FILLED_IN = {
    "device_train_batch_size",
    "device_train_grad_accum",
    "n_gpus",
    "eval_loaders",
    "icl_tasks_str",
    "eval_gauntlet_str",
}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [{"type": "null"}, schema]} if "$ref" in schema else {**schema, "type": [schema["type"], "null"]}


def _names(layer_registry: Any, *optional: str) -> Schema:
    """The names that are registered, and those that only are where an optional package is installed."""
    return {"enum": sorted({*layer_registry.get_all(), *optional})}


def train_recipe() -> Schema:
    """LLM Foundry's training keys, and the sections this project adds to them."""
    fields = _from_dataclass(TrainConfig, without=FILLED_IN)
    fields.update(
        model=_ref("model"),
        tokenizer=_ref("tokenizer"),
        optimizer=_ref("optimizer"),
        scheduler=_ref("scheduler"),
        train_loader=_ref("loader"),
        eval_loader=_eval_loader(),
        precision=PRECISION,
        callbacks=_ref("callbacks"),
        algorithms=_ref("algorithms"),
        loggers=_ref("loggers"),
        fsdp_config=_or_null(_ref("fsdp_config")),
        tp_config=_or_null(
            section(
                {"strategy": _names(registry.tp_strategies), "tensor_parallel_degree": {"type": "integer"}},
                ["strategy", "tensor_parallel_degree"],
            )
        ),
        compile_config=_or_null(from_signature(torch.compile, without={"model"}, mode={"enum": COMPILE_MODES})),
        profiler=FREE,
        icl_tasks={"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _ref("icl_task")}]},
        eval_gauntlet={"type": ["string", "object", "null"]},
        harness_tasks=_or_null(_harness_tasks()),
        task_interval={**TIME, "type": [*TIME["type"], "null"]},
        global_train_batch_size={"type": "integer", "minimum": 1},
        device_train_microbatch_size={"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0}]},
        device_eval_batch_size={"type": "number", "exclusiveMinimum": 0},
        max_seq_len={"type": "integer", "minimum": 1},
        max_duration=DURATION,
        seed={"type": "integer"},
        run_name=RUN_NAME,
        python_log_level=LOG_LEVEL,
        eval_interval=TIME,
        save_interval=TIME,
        console_log_interval=STEPS,
        code_paths=STRINGS,
        load_ignore_keys=STRINGS,
        save_ignore_keys=STRINGS,
        cost=_ref("cost"),
        dry_run={"type": "boolean"},
        # this project's own: what is done to the model's blocks
        compile={"type": "boolean"},
        selective_checkpointing={"type": "boolean"},
        # this project's own: weights to start from, keys that differ from theirs on purpose, preference tuning
        pretrained={"type": ["string", "null"]},
        pretrained_changes=STRINGS,
        dpo=_or_null(section({"beta": {"type": "number", "exclusiveMinimum": 0}}, ["beta"])),
    )
    required = {
        "model",
        "tokenizer",
        "optimizer",
        "scheduler",
        "train_loader",
        "max_duration",
        "max_seq_len",
        "global_train_batch_size",
    }
    return section(fields, required)


def eval_recipe() -> Schema:
    """LLM Foundry's evaluation keys: models, and the tasks and loaders they are judged on."""
    evaluated = section(
        {
            "model_name": {"type": "string"},
            "model": _ref("model"),
            "tokenizer": _ref("tokenizer"),
            "load_path": {"type": ["string", "null"]},
            # this project's own, spelled out before the check: all of these keys, from a run or a Hugging Face folder
            "run": {"type": "string"},
            "folder": {"type": "string"},
        },
        ["model_name", "model", "tokenizer"],
    )
    samples = section(
        {
            "prompts": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "max_new_tokens": {"type": "integer", "minimum": 1},
            "temperature": {"type": "number", "minimum": 0},
            "top_p": {"type": "number", "exclusiveMinimum": 0},
            "seed": {"type": "integer"},
        },
        ["prompts"],
    )
    contamination = section({"shards": {"type": "string"}, "tokens": {"type": "integer", "minimum": 1}}, ["shards"])
    fields = _from_dataclass(EvalConfig, without=FILLED_IN)
    fields.update(
        seed={"type": "integer"},
        run_name=RUN_NAME,
        python_log_level=LOG_LEVEL,
        device_eval_batch_size={"type": "number", "exclusiveMinimum": 0},
        models={"type": "array", "minItems": 1, "items": evaluated},
        eval_loader=_eval_loader(),
        icl_tasks={"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _ref("icl_task")}]},
        eval_gauntlet={"type": ["string", "object", "null"]},
        precision=PRECISION,
        callbacks=_ref("callbacks"),
        loggers=_ref("loggers"),
        fsdp_config=_or_null(_ref("fsdp_config")),
        code_paths=STRINGS,
        console_log_interval=STEPS,
        cost=_ref("cost"),
        dry_run={"type": "boolean"},
        # this project's own: where the results go, and prompts to continue
        results={"type": ["string", "null"]},
        samples=_or_null(samples),
        contamination=_or_null(contamination),
    )
    return section(fields, {"models", "max_seq_len", "device_eval_batch_size"})


def definitions() -> Schema:
    """The sections that recipes of either kind share."""
    register_components()
    callbacks = {
        **registry.callbacks.get_all(),
        **registry.callbacks_with_config.get_all(),
    }
    optimizer_keys: Schema = {"disable_grad": {"type": ["string", "array"]}, "param_groups": {"type": "array"}}
    return {
        "model": named(_models()),
        "tokenizer": section({"name": {"type": "string"}, "kwargs": FREE}, ["name"]),
        "optimizer": named(_signatures(registry.optimizers, {"params"}, optimizer_keys)),
        "scheduler": named(_signatures(registry.schedulers)),
        "loader": named(_loaders()),
        "callbacks": keyed(
            {name: from_signature(c, without={"train_config", "started_at"}) for name, c in callbacks.items()}
        ),
        "algorithms": keyed(_signatures(registry.algorithms)),
        "loggers": keyed(_signatures(registry.loggers)),
        "icl_task": named(_icl_tasks(), key="icl_task_type"),
        "fsdp_config": _fsdp(),
        "cost": section(
            {
                "gpu": {"type": ["string", "null"]},
                "usd_per_device_hour": {"type": ["number", "null"], "minimum": 0},
                "prices_file": {"type": ["string", "null"]},
                "price_kind": {},
                "watts_per_device": {"type": ["number", "null"], "minimum": 0},
                "power_usage_effectiveness": {"type": "number", "minimum": 1},
                "kg_co2e_per_kwh": {"type": "number", "minimum": 0},
            },
        ),
    }


def _from_dataclass(config: type, without: Iterable[str]) -> Schema:
    import typing

    hints = typing.get_type_hints(config)
    skip = set(without)
    return {f.name: type_of(hints[f.name], f.default) for f in dataclasses.fields(config) if f.name not in skip}


def _signatures(of: Any, without: Iterable[str] = (), extra: Schema | None = None) -> dict[str, Schema]:
    return {name: from_signature(c, without=set(without), **(extra or {})) for name, c in of.get_all().items()}


def _models() -> dict[str, Schema]:
    others = {n: from_signature(c, without={"tokenizer"}) for n, c in registry.models.get_all().items()}
    for schema in others.values():
        schema["properties"]["master_weights_dtype"] = MASTER_WEIGHTS
    hf = from_signature(ComposerHFCausalLM, without={"tokenizer"})
    hf["properties"]["master_weights_dtype"] = MASTER_WEIGHTS
    mpt = _mpt()
    embedding = others["contrastive_lm"]  # gives what it does not know itself to MPT's configuration
    embedding = section({**mpt["properties"], **embedding["properties"], "contrastive_config": FREE})
    return {**others, "contrastive_lm": embedding, "hf_causal_lm": hf, MPT: mpt, RWKV: _rwkv()}


def _rwkv() -> Schema:
    config = from_signature(RwkvConfig.__init__)  # its own keys, not those of transformers' base classes
    composer = from_signature(ComposerMPTCausalLM, loss_fn={"enum": list(LOSSES)})["properties"]
    shared = ("loss_fn", "label_smoothing", "z_loss", "use_train_metrics", "additional_train_metrics")
    attention: Schema = {
        "attn_config": {**section({"attn_uses_sequence_id": {"type": "boolean"}}), "type": ["object", "null"]}
    }
    own = {**config["properties"], **{key: composer[key] for key in shared}, **attention}
    return section({**own, "master_weights_dtype": MASTER_WEIGHTS})


def _mpt() -> Schema:
    attention = from_defaults(
        config_defaults.attn_config_defaults,
        attn_type=_names(layers_registry.attention_classes),
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
                "factor": {"type": "number"},
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
            "ffn_act_fn": FREE,
            "fc_type": ANYTHING,
        }
    )
    feed_forward: Schema = {
        "type": ["object", "null"],
        "properties": {"ffn_type": _names(layers_registry.ffns, "te_ln_mlp", "mb_moe", "mb_dmoe")},
        "if": {"properties": {"ffn_type": {"enum": ["mptmlp", "mptglu"]}}},
        "then": dense,
    }
    init = from_defaults(
        config_defaults.init_config_defaults,
        name=_names(layers_registry.param_init_fns),
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
        "fc_type": {"anyOf": [_names(layers_registry.fcs, "te"), {"type": "object", "required": ["name"]}]},
        "logit_scale": {"anyOf": [{"type": ["number", "null"]}, {"const": "inv_sqrt_d_model"}]},
        "norm_type": _names(layers_registry.norms),
        "block_overrides": FREE,
        "activation_checkpointing_target": ANYTHING,
        "fuse_norm_attn_norm": {"type": "boolean"},
        "use_cache": {"type": "boolean"},
    }
    # what transformers' PretrainedConfig takes from MPTConfig's **kwargs
    passed_on: Schema = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), INTEGER_OR_NULL)
    config = from_signature(MPTConfig, without={"kwargs"})
    composer = from_signature(ComposerMPTCausalLM, without={"tokenizer"}, loss_fn={"enum": list(LOSSES)})
    master: Schema = {"master_weights_dtype": MASTER_WEIGHTS}
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
    adapters: Schema = {"peft_config": {**lora, "type": ["object", "null"]}}
    known = {**config["properties"], **composer["properties"], **sections, **passed_on, **master, **adapters}
    return section(known)


def _loaders() -> dict[str, Schema]:
    stream = from_signature(Stream)
    streams: Schema = {"type": ["object", "null"], "additionalProperties": stream}
    separators: Schema = {"eos_token_id": INTEGER_OR_NULL, "bos_token_id": INTEGER_OR_NULL}
    # LLM Foundry wants max_seq_len again here; build.py fills in the recipe's
    length: Schema = {"max_seq_len": {"type": "integer", "minimum": 1}}
    text = from_signature(
        StreamingTextDataset, without={"tokenizer", "batch_size"}, streams=streams, **separators, **length
    )
    hub = from_signature(DatasetConstructor.build_from_hf, without={"tokenizer", "dataset_name"})
    streamed = from_signature(StreamingFinetuningDataset, without={"tokenizer", "batch_size"}, streams=streams)
    more: Schema = {k: {"type": ["boolean", "null"]} for k in finetuning._ALLOWED_DATASET_KEYS}
    more.update(
        eos_token_id=INTEGER_OR_NULL,  # LLM Foundry passes over them; its own files set them
        bos_token_id=INTEGER_OR_NULL,
        hf_name={"type": ["string", "null"]},
        hf_kwargs=FREE,
        packing_ratio={"anyOf": [{"enum": ["auto", None]}, {"type": "number", "minimum": 1}]},
        max_leftover_bins_to_keep=INTEGER_OR_NULL,
        seq_parallel_replication=INTEGER_OR_NULL,
        preprocessing_fn={"type": ["string", "object", "null"]},
        decoder_only_format={"type": "boolean"},
    )
    hub["properties"]["split"] = {"type": ["string", "null"]}  # of streams, none may be named
    tuning = section({**streamed["properties"], **hub["properties"], **more, **length})
    pairs = section({"path": {"type": "string"}, "shuffle": {"type": "boolean"}, **length}, ["path"])
    datasets = {"text": text, "finetuning": tuning, "preferences": pairs}
    loaders = {}
    for name, builder in registry.dataloaders.get_all().items():
        loader = from_signature(builder, without={"tokenizer", "device_batch_size"}, label={"type": "string"})
        loader["properties"]["prefetch_factor"] = {**INTEGER_OR_NULL, "minimum": 1}
        loader["properties"]["dataset"] = datasets.get(name, {"type": "object"})
        loaders[name] = loader
    return loaders


def _eval_loader() -> Schema:
    labelled = {"allOf": [_ref("loader"), {"required": ["label"]}]}
    return {"if": {"type": "array"}, "then": {"items": labelled}, "else": _or_null(_ref("loader"))}


def _icl_tasks() -> dict[str, Schema]:
    given_by_runner = {"tokenizer", "pad_tok_id", "num_fewshot", "destination_path", "max_seq_len"}
    given_by_runner |= {"padding_size", "static_keys", "tokenize_labels", "batch_mapping"}  # how LLM Foundry's own work
    own: Schema = {
        "label": {"type": "string"},
        "num_fewshot": {"type": "array", "items": {"type": "integer"}},
        "metric_names": STRINGS,
        "batch_size": {"type": "integer"},
        "max_seq_len": {"type": "integer"},
        "has_categories": {"type": "boolean"},
        "question_prelimiter": {"type": "string"},
        "random_baseline": {"type": "number"},
    }
    tasks = {}
    for name, dataset in registry.icl_datasets.get_all().items():
        schema = from_signature(dataset, without=given_by_runner)
        required = {*schema.get("required", ()), "label", "num_fewshot", "dataset_uri"}
        tasks[name] = section({**schema["properties"], **own}, required, closed="additionalProperties" in schema)
    return tasks


def _harness_tasks() -> Schema:
    """Tasks of lm-evaluation-harness during a training run; the names are the harness's own or those in `include`."""
    fields: dict[str, Schema] = {
        "tasks": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "include": STRINGS,
        "num_fewshot": {**INTEGER_OR_NULL, "minimum": 0},
        "limit": {**INTEGER_OR_NULL, "minimum": 1},
    }
    return section(fields, ["tasks"])


def _fsdp() -> Schema:
    fields = {
        **_from_dataclass(FSDPConfig, {"_device_mesh"}),
        **_from_dataclass(FSDP2Config, {"_sync_module_states", "device_mesh"}),
    }
    fields.update(
        mixed_precision={
            "type": ["string", "object"],
            "pattern": "(?i)^(DEFAULT|PURE|FULL)$",
            "description": "one of DEFAULT, PURE, FULL, or a section of data types",
        },
        load_planner=FREE,
        save_planner=FREE,
        sharding_strategy={},
        state_dict_type={},
        # FSDPConfig takes any keyword; LLM Foundry's fine-tuning files set this one
        load_fsdp_monolith_rank0_only={"type": "boolean"},
    )
    return section(fields)
