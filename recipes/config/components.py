"""Which constructor reads which section of a recipe: the only place that ties sections to code for the schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from composer.utils.parallelism import FSDP2Config, FSDPConfig
from llmfoundry import registry
from llmfoundry.data.finetuning import dataloader as finetuning
from llmfoundry.data.finetuning.tasks import DatasetConstructor, StreamingFinetuningDataset
from llmfoundry.data.text_data import StreamingTextDataset
from streaming import Stream
from streaming.base.shuffle import algos

from recipes.callbacks.cost import CostMonitor
from recipes.config.grammar import (
    FREE,
    INTEGER_OR_NULL,
    STRINGS,
    Schema,
    from_dataclass,
    from_signature,
    keyed,
    named,
    over,
    section,
)
from recipes.config.model_components import models
from recipes.parts import register_components


def definitions() -> Schema:
    """The sections that recipes of either kind share."""
    register_components()
    callbacks = {
        **registry.callbacks.get_all(),
        **registry.callbacks_with_config.get_all(),
    }
    keys_of_callbacks = {
        name: from_signature(c, without={"train_config", "started_at"}) for name, c in callbacks.items()
    }
    keys_of_callbacks["hf_checkpointer"]["properties"]["precision"] = {"enum": ["float32", "float16", "bfloat16"]}
    group: Schema = {"type": "object", "required": ["param_str_match"]}
    optimizer_keys: Schema = {
        "disable_grad": {"type": ["string", "array"]},
        "param_groups": {"type": "array", "items": group},
    }
    return {
        "model": named(models()),
        "tokenizer": section({"name": {"type": "string"}, "kwargs": FREE}, ["name"]),
        "optimizer": named(_signatures(registry.optimizers, {"params"}, optimizer_keys)),
        "scheduler": named(_signatures(registry.schedulers)),
        "loader": named(_loaders()),
        "callbacks": keyed(keys_of_callbacks),
        "algorithms": keyed(_signatures(registry.algorithms)),
        "loggers": keyed(_signatures(registry.loggers)),
        "icl_task": named(_icl_tasks(), key="icl_task_type"),
        "fsdp_config": _fsdp(),
        "cost": from_signature(CostMonitor, without={"ledger", "started_at"}),
    }


def _signatures(of: Any, without: Iterable[str] = (), extra: Schema | None = None) -> dict[str, Schema]:
    return {name: from_signature(c, without=set(without), **(extra or {})) for name, c in of.get_all().items()}


def _loaders() -> dict[str, Schema]:
    stream = from_signature(Stream)
    streams: Schema = {"type": ["object", "null"], "additionalProperties": stream}
    separators: Schema = {"eos_token_id": INTEGER_OR_NULL, "bos_token_id": INTEGER_OR_NULL}
    shuffles: Schema = {"shuffle_algo": {"enum": sorted(algos)}}
    # LLM Foundry wants max_seq_len again here; parts.py fills in the recipe's
    length: Schema = {"max_seq_len": {"type": "integer", "minimum": 1}}
    text = from_signature(
        StreamingTextDataset, without={"tokenizer", "batch_size"}, streams=streams, **separators, **length, **shuffles
    )
    hub = from_signature(DatasetConstructor.build_from_hf, without={"tokenizer", "dataset_name"})
    streamed = from_signature(
        StreamingFinetuningDataset, without={"tokenizer", "batch_size"}, streams=streams, **shuffles
    )
    more: Schema = {k: {"type": ["boolean", "null"]} for k in finetuning._ALLOWED_DATASET_KEYS}
    more.update(
        auto_packing_replication={"type": ["boolean", "integer", "null"]},  # LLM Foundry itself writes a number there
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
    tuning = section(over({**streamed["properties"], **hub["properties"]}, {**more, **length}))
    pairs = section({"path": {"type": "string"}, "shuffle": {"type": "boolean"}, **length}, ["path"])
    datasets = {"text": text, "finetuning": tuning, "preferences": pairs}
    loaders = {}
    for name, builder in registry.dataloaders.get_all().items():
        loader = from_signature(builder, without={"tokenizer", "device_batch_size"}, label={"type": "string"})
        loader["properties"]["prefetch_factor"] = {**INTEGER_OR_NULL, "minimum": 1}
        loader["properties"]["dataset"] = datasets.get(name, {"type": "object"})
        loaders[name] = loader
    return loaders


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
        tasks[name] = section(over(schema["properties"], own), required, closed="additionalProperties" in schema)
    return tasks


def _fsdp() -> Schema:
    fields = {
        **from_dataclass(FSDPConfig, {"_device_mesh"}),
        **from_dataclass(FSDP2Config, {"_sync_module_states", "device_mesh"}),
    }
    own: Schema = {
        "mixed_precision": {
            "type": ["string", "object"],
            "pattern": "(?i)^(DEFAULT|PURE|FULL)$",
            "errorMessage": "one of DEFAULT, PURE, FULL, or a section of data types",
        },
        "load_planner": FREE,
        "save_planner": FREE,
        "sharding_strategy": {},
        "state_dict_type": {},
        # FSDPConfig takes any keyword; LLM Foundry's fine-tuning files set this one
        "load_fsdp_monolith_rank0_only": {"type": "boolean"},
    }
    return section(over(fields, own))
