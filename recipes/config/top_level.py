"""The keys of a recipe itself, of either kind: LLM Foundry's, and the sections that this project adds to them."""

from __future__ import annotations

import torch
from composer.profiler import JSONTraceHandler, Profiler, cyclic_schedule
from llmfoundry import registry
from llmfoundry.utils.config_utils import EvalConfig, TrainConfig

from recipes.config.grammar import (
    DURATION,
    INTEGER_OR_NULL,
    STEPS,
    STRINGS,
    TIME,
    Schema,
    from_dataclass,
    from_signature,
    names,
    or_null,
    over,
    ref,
    section,
)

RUN_NAME: Schema = {"type": ["string", "integer", "null"]}
LOG_LEVEL: Schema = {
    "type": ["string", "null"],
    "pattern": "(?i)^(debug|info|warning|error|critical)$",
    "errorMessage": "one of debug, info, warning, error, critical",
}
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
# keys that, left out, do not mean LLM Foundry's default here
OTHERWISE = {"autoresume", "python_log_level"}


def train_recipe() -> Schema:
    """LLM Foundry's training keys, and the sections this project adds to them."""
    own: Schema = {
        "model": ref("model"),
        "tokenizer": ref("tokenizer"),
        "optimizer": ref("optimizer"),
        "scheduler": ref("scheduler"),
        "train_loader": ref("loader"),
        "eval_loader": _eval_loader(),
        "precision": PRECISION,
        "callbacks": ref("callbacks"),
        "algorithms": ref("algorithms"),
        "loggers": ref("loggers"),
        "fsdp_config": or_null(ref("fsdp_config")),
        "tp_config": or_null(
            section(
                {"strategy": names(registry.tp_strategies), "tensor_parallel_degree": {"type": "integer"}},
                ["strategy", "tensor_parallel_degree"],
            )
        ),
        "compile_config": or_null(from_signature(torch.compile, without={"model"}, mode={"enum": COMPILE_MODES})),
        "profiler": or_null(_profiler()),
        "icl_tasks": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": ref("icl_task")}]},
        "eval_gauntlet": {"type": ["string", "object", "null"]},
        "harness_tasks": or_null(_harness_tasks()),
        "task_interval": {**TIME, "type": [*TIME["type"], "null"]},
        "global_train_batch_size": {"type": "integer", "minimum": 1},
        "device_train_microbatch_size": {"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0}]},
        "device_eval_batch_size": {"type": "integer", "minimum": 1},
        "max_seq_len": {"type": "integer", "minimum": 1},
        "max_duration": DURATION,
        "seed": {"type": "integer"},
        "run_name": RUN_NAME,
        "python_log_level": LOG_LEVEL,
        "eval_interval": TIME,
        "save_interval": TIME,
        "console_log_interval": STEPS,
        "code_paths": STRINGS,
        "load_ignore_keys": STRINGS,
        "save_ignore_keys": STRINGS,
        "cost": ref("cost"),
        "dry_run": {"type": "boolean"},
        # this project's own: what is done to the model's blocks
        "compile": {"type": "boolean"},
        "selective_checkpointing": {"type": "boolean"},
        # this project's own: weights to start from, keys that differ from theirs on purpose, preference tuning
        "pretrained": {"type": ["string", "null"]},
        "pretrained_changes": STRINGS,
        "dpo": or_null(section({"beta": {"type": "number", "exclusiveMinimum": 0}}, ["beta"])),
    }
    fields = over(_without_defaults(from_dataclass(TrainConfig, without=FILLED_IN)), own)
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
            "model": ref("model"),
            "tokenizer": ref("tokenizer"),
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
    folders: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    contamination = section({"shards": folders, "tokens": {"type": "integer", "minimum": 1}}, ["shards"])
    own: Schema = {
        "seed": {"type": "integer"},
        "run_name": RUN_NAME,
        "python_log_level": LOG_LEVEL,
        "device_eval_batch_size": {"type": "integer", "minimum": 1},
        "models": {"type": "array", "minItems": 1, "items": evaluated},
        "eval_loader": _eval_loader(),
        "icl_tasks": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": ref("icl_task")}]},
        "eval_gauntlet": {"type": ["string", "object", "null"]},
        "precision": PRECISION,
        "callbacks": ref("callbacks"),
        "loggers": ref("loggers"),
        "fsdp_config": or_null(ref("fsdp_config")),
        "code_paths": STRINGS,
        "console_log_interval": STEPS,
        "cost": ref("cost"),
        "dry_run": {"type": "boolean"},
        # this project's own: where the results go, and prompts to continue
        "results": {"type": ["string", "null"]},
        "samples": or_null(samples),
        "contamination": or_null(contamination),
    }
    fields = over(_without_defaults(from_dataclass(EvalConfig, without=FILLED_IN)), own)
    return section(fields, {"models", "max_seq_len", "device_eval_batch_size"})


def _without_defaults(fields: dict[str, Schema]) -> dict[str, Schema]:
    """LLM Foundry's fields, those of OTHERWISE without its defaults."""
    return {
        name: {key: said for key, said in schema.items() if key != "default" or name not in OTHERWISE}
        for name, schema in fields.items()
    }


def _profiler() -> Schema:
    own = from_signature(Profiler.__init__, without={"schedule", "trace_handlers"})["properties"]
    traces = from_signature(JSONTraceHandler.__init__)
    return section({**own, "schedule": from_signature(cyclic_schedule), "json_trace_handler": or_null(traces)})


def _eval_loader() -> Schema:
    labelled = {"allOf": [ref("loader"), {"required": ["label"]}]}
    return {"if": {"type": "array"}, "then": {"items": labelled}, "else": or_null(ref("loader"))}


def _harness_tasks() -> Schema:
    """Tasks of lm-evaluation-harness during a training run; the names are the harness's own or those in `include`."""
    fields: dict[str, Schema] = {
        "tasks": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "include": STRINGS,
        "num_fewshot": {**INTEGER_OR_NULL, "minimum": 0},
        "limit": {**INTEGER_OR_NULL, "minimum": 1},
        "apply_chat_template": {"type": "boolean", "default": False},
        "system_instruction": {"type": ["string", "null"]},
        "fewshot_as_multiturn": {"type": "boolean", "default": True},
    }
    return section(fields, ["tasks"])
