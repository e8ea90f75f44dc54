"""What an evaluation would stop at on this machine, and the task files of any recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath, Problem
from recipes.config.load import Recipe
from recipes.config.sections import contamination_shards, loaders
from recipes.cost.architecture import MPT
from recipes.preflight.data import data_problems
from recipes.preflight.gpu import has_gpu, kernel_refusals
from recipes.preflight.hub import in_hub_cache, not_from_hub
from recipes.preflight.machine import can_be_written
from recipes.preflight.packages import importable, package_problems, scheme_problems
from recipes.preflight.weights import tokenizer_problems, vocabulary_problems, weight_problems
from recipes.weights.trained import folder_config_of


def preflight_evaluation(recipe: Recipe) -> list[Problem]:
    """Everything that an evaluation of this recipe would stop at on this machine."""
    found: list[tuple[KeyPath, str]] = []
    own_code = bool(recipe.get("code_paths"))
    for index, model in enumerate(recipe["models"]):
        found += [(("models", index, *key), text) for key, text in tokenizer_problems(model["tokenizer"], own_code)]
        found += [(("models", index, *key), text) for key, text in vocabulary_problems(model)]
        found += [(("models", index, *key), text) for key, text in weight_problems(model)]
        found += [(("models", index, *key), text) for key, text in _adapter_problems(model["model"])]
        found += [(("models", index, *key), text) for key, text in _kernel_problems(model["model"], recipe)]
    for key, loader in loaders(recipe.values):
        found += data_problems(key, loader, recipe)
    found += task_file_problems(recipe)
    found += package_problems(recipe)
    for folder in contamination_shards(recipe.values):
        if not (Path(folder) / "index.json").is_file():
            text = f"{folder} holds no shards: it has no index.json; name a folder that data_prep.pretrain made"
            found.append((("contamination", "shards"), text))
    if not has_gpu() and precision_of(recipe) != "fp32":
        found.append((("precision",), f"no GPU here, and {precision_of(recipe)} needs one: use fp32"))
    results = recipe.get("results")
    if results and not can_be_written(Path(results)):
        found.append((("results",), f"results cannot be written to {results}"))
    return [recipe.problem(key, text) for key, text in found]


def precision_of(recipe: Recipe) -> str:
    """The recipe's `precision`, else what this machine computes fastest in: Composer has fp32 alone without a GPU."""
    return recipe.get("precision") or ("amp_bf16" if has_gpu() else "fp32")


def _adapter_problems(model: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """A `pretrained_lora_id_or_path` that LLM Foundry's class would not load onto its base, or onto another one."""
    adapter = model.get("pretrained_lora_id_or_path")
    if not adapter:
        return
    key: KeyPath = ("model", "pretrained_lora_id_or_path")
    folder, base = Path(str(adapter)), Path(str(model.get("pretrained_model_name_or_path")))
    if model.get("peft_config"):
        yield key, "is given beside peft_config, which puts another, new adapter on top: leave one of them out"
    if (base / "config.json").is_file() and folder_config_of(base).get("model_type") == "rwkv":
        text = "transformers' own RWKV class, which an adapter goes onto, computes another model than ours"
        yield key, f"{text}: evaluate the run that the adapter was exported from"
    if folder.exists() or str(adapter).startswith((".", "/")):
        if not (folder / "adapter_config.json").is_file():
            yield key, f"{folder} holds no adapter: it has no adapter_config.json"
        elif not any((folder / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
            yield key, f"{folder} holds no whole adapter: it has no adapter_model.safetensors"
    elif not in_hub_cache("models", str(adapter)):
        yield from not_from_hub(key, f"adapter {adapter}", "models", str(adapter))


def _kernel_problems(model: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if model.get("name") != MPT:
        return
    for text in kernel_refusals(model, precision_of(recipe), is_training=False):
        yield ("model", "attn_config", "attn_impl"), text


def _harness_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Names and folders of `harness_tasks` that are not there."""
    from eval.harness_index import YAML, unknown_names

    include = [Path(str(folder)) for folder in recipe.get("harness_tasks.include", [])]
    for index, folder in enumerate(include):
        if not folder.is_dir():
            yield ("harness_tasks", "include", index), f"there is no folder {folder}"
    names = [str(name) for name in recipe.get("harness_tasks.tasks", [])]
    unknown = unknown_names(names, [folder for folder in include if folder.is_dir()])
    unknown += [name for name in names if Path(name).suffix in YAML and not Path(name).is_file()]
    for index, name in enumerate(names):
        if name in unknown and importable("lm_eval"):
            yield ("harness_tasks", "tasks", index), f"no task {name}, in the harness or in harness_tasks.include"


def _task_problems(key: KeyPath, task: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a task's settings and rows, without a tokenizer."""
    from eval.tasks.checking import check_task
    from eval.tasks.rows import TaskError

    try:
        check_task(task)
    except TaskError as error:
        yield key, str(error)


def task_file_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    tasks = recipe.get("icl_tasks", [])
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        uri = str(task.get("dataset_uri"))
        if is_remote(uri):
            yield from scheme_problems(("icl_tasks", index, "dataset_uri"), uri)
        elif not Path(uri).is_file():
            yield ("icl_tasks", index, "dataset_uri"), f"no task: there is no file {uri}"
        else:
            yield from _task_problems(("icl_tasks", index), task)
    yield from _harness_problems(recipe)
    for key in ("icl_tasks", "eval_gauntlet"):
        path = recipe.get(key)
        if isinstance(path, str) and not Path(path).is_file():
            yield (key,), f"there is no file {path}"
