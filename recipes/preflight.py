"""What a sound recipe needs that is not on this machine: data, tokenizer, weights, GPU, memory, disk, packages.

Takes well under a second, without torch, a process group or a GPU, so that nothing is billed before it has passed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.manifest import load_manifest, shard_problems
from recipes.config import KeyPath, Problem, Recipe
from recipes.contradictions import world_size
from recipes.cost.parameters import count_parameters, model_shape
from recipes.models.backends import features, refusals

# Weights and gradients in fp32, and Adam's two moments: bytes a parameter costs in training without sharding.
TRAINING_BYTES_PER_PARAMETER = 16
CHECKPOINT_BYTES_PER_PARAMETER = 12  # weights and the two moments

PACKAGE_FOR_SCHEME = {
    "s3": "boto3",
    "gs": "google-cloud-storage",
    "oci": "oci",
    "azure": "azure-storage-blob",
    "dbfs": "databricks-sdk",
}
MODULE_OF_PACKAGE = {
    "google-cloud-storage": "google.cloud.storage",
    "azure-storage-blob": "azure.storage.blob",
    "databricks-sdk": "databricks.sdk",
}
PACKAGE_FOR_LOGGER = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}


def preflight(recipe: Recipe) -> list[Problem]:
    """Everything that a run of this recipe would stop at on this machine. Each says how to get what is missing."""
    found: list[tuple[KeyPath, str]] = []
    for key, loader in _loaders(recipe):
        found += _data(key, loader, recipe)
    found += _tokenizer(recipe.get("tokenizer", {}))
    found += _weights(recipe.values)
    found += _device(recipe)
    found += _disk(recipe)
    found += _packages(recipe)
    return [Problem(recipe.place(key), key, text) for key, text in found]


def preflight_evaluation(recipe: Recipe) -> list[Problem]:
    """Everything that an evaluation of this recipe would stop at on this machine."""
    found: list[tuple[KeyPath, str]] = []
    for index, model in enumerate(recipe["models"]):
        found += [(("models", index, *key), text) for key, text in _tokenizer(model["tokenizer"])]
        found += [(("models", index, *key), text) for key, text in _weights(model)]
    for key, loader in _loaders(recipe):
        found += _data(key, loader, recipe)
    tasks = recipe.get("icl_tasks", [])
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        uri = str(task.get("dataset_uri"))
        if "://" not in uri and not Path(uri).is_file():
            found.append((("icl_tasks", index, "dataset_uri"), f"no task: there is no file {uri}"))
    if isinstance(tasks, str) and not Path(tasks).is_file():
        found.append((("icl_tasks",), f"no tasks: there is no file {tasks}"))
    found += _packages(recipe)
    return [Problem(recipe.place(key), key, text) for key, text in found]


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch could use, judged without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


def _loaders(recipe: Recipe) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    if "train_loader" in recipe.values:
        yield ("train_loader",), recipe["train_loader"]
    evaluation = recipe.get("eval_loader")
    if isinstance(evaluation, list):
        yield from ((("eval_loader", i), loader) for i, loader in enumerate(evaluation))
    elif evaluation:
        yield ("eval_loader",), evaluation


# --- data --------------------------------------------------------------------------------------------------------


def _data(key: KeyPath, loader: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    dataset = loader.get("dataset") or {}
    where = (*key, "dataset")
    if dataset.get("hf_name"):
        yield from _hub_dataset(where, dataset)
        return
    streams = dataset.get("streams")
    for name, stream in (streams or {"": dataset}).items():
        inner = (*where, "streams", name) if streams else where
        remote, local = stream.get("remote"), stream.get("local")
        split = stream.get("split") or dataset.get("split")
        if remote and "://" in str(remote):
            yield from _scheme((*inner, "remote"), str(remote))
            continue
        root = remote or local
        if root:
            folder = Path(str(root)) / str(split) if split else Path(str(root))
            yield from _shards((*inner, "remote" if remote else "local"), folder, loader, recipe)


def _shards(key: KeyPath, folder: Path, loader: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if not (folder / "index.json").is_file():
        state = "has no index.json" if folder.is_dir() else "does not exist"
        kind = "finetune" if loader.get("name") == "finetuning" else "pretrain"
        length, tokenizer = recipe["max_seq_len"], recipe.get("tokenizer.name", "TOKENIZER")
        command = f"python -m data_prep.{kind} YOUR.jsonl --out {folder.parent} --split {folder.name}"
        yield key, f"no data: {folder} {state}; make it with `{command} --tokenizer {tokenizer} --seq-len {length}`"
        return
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        yield key, str(error)
        return
    if manifest is None:  # shards that another program made
        return
    for text in shard_problems(folder, manifest):
        yield key, text
    length = (loader.get("dataset") or {}).get("max_seq_len") or recipe["max_seq_len"]
    if manifest.seq_len < length:
        yield key, f"the shards in {folder} hold {manifest.seq_len} tokens a sequence, the recipe wants {length}"
    used = Path(str(recipe.get("tokenizer.name"))) / "tokenizer.json"
    if used.is_file() and hashlib.sha256(used.read_bytes()).hexdigest() != manifest.tokenizer.sha256:
        text = f"the shards in {folder} were made with another tokenizer ({manifest.tokenizer.path}) than {used.parent}"
        yield key, f"{text}: the ids would mean other words; prepare the shards again, or name their tokenizer"
    vocabulary = recipe.get("model.vocab_size")
    if vocabulary is not None and manifest.tokenizer.vocab_size > vocabulary:
        largest = manifest.tokenizer.vocab_size - 1
        text = f"the shards in {folder} hold ids up to {largest}, the model has {vocabulary} embeddings"
        yield key, f"{text}: set model.vocab_size to at least {manifest.tokenizer.vocab_size}"


def _hub_dataset(where: KeyPath, dataset: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    name = str(dataset["hf_name"])
    function = dataset.get("preprocessing_fn")
    if isinstance(function, str) and ":" in function:
        module = function.partition(":")[0]
        if not _importable(module):
            text = f"no module {module}: write it, or put its folder on PYTHONPATH"
            yield (*where, "preprocessing_fn"), f"got {function!r}, but there is {text}"
    if name in ("json", "csv", "parquet", "text"):
        options = dataset.get("hf_kwargs") or {}
        folder = options.get("data_dir")
        if folder and "://" not in str(folder) and not Path(str(folder)).is_dir():
            yield (*where, "hf_kwargs", "data_dir"), f"no data: there is no folder {folder}"
        files = options.get("data_files") or []
        listed = files.values() if isinstance(files, Mapping) else [files] if isinstance(files, str) else files
        for file in listed:
            if isinstance(file, str) and "://" not in file and "*" not in file and not Path(file).exists():
                yield (*where, "hf_kwargs", "data_files"), f"no data: there is no file {file}"
    elif "://" in name:
        yield from _scheme((*where, "hf_name"), name)
    elif not Path(name).exists() and not _in_hub_cache("datasets", name):
        yield from _from_hub((*where, "hf_name"), f"data set {name}", "datasets", name)


# --- tokenizer and weights ---------------------------------------------------------------------------------------


def _tokenizer(tokenizer: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    name = str(tokenizer.get("name"))
    if name == "tiktoken":
        yield from _package(("tokenizer", "name"), "tiktoken")
        return
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
            yield ("tokenizer", "name"), f"{folder} holds no tokenizer: no tokenizer.json, no tokenizer_config.json"
    elif name.startswith((".", "/")) or name.count("/") > 1:
        command = f"python -m data_prep.tokenizer YOUR.jsonl --out {name} --vocab-size N"
        yield ("tokenizer", "name"), f"no tokenizer: {name} does not exist; train one with `{command}`"
    elif not _in_hub_cache("models", name):
        yield from _from_hub(("tokenizer", "name"), f"tokenizer {name}", "models", name)


def _weights(settings: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    name = settings["model"].get("pretrained_model_name_or_path")
    if name and not Path(str(name)).exists() and not _in_hub_cache("models", str(name)):
        yield from _from_hub(("model", "pretrained_model_name_or_path"), f"model {name}", "models", str(name))
    path = settings.get("load_path")
    if path and "://" in path:
        yield from _scheme(("load_path",), path)
    elif path and "{" not in path and not Path(path).exists():
        yield ("load_path",), f"no checkpoint: {path} does not exist"


def _from_hub(key: KeyPath, what: str, kind: str, name: str) -> Iterator[tuple[KeyPath, str]]:
    if _hub_reachable():
        return
    flag = "" if kind == "models" else " --repo-type dataset"
    text = f"{what} is not on this machine and the Hugging Face hub cannot be reached; where it can, run"
    yield key, f"{text} `hf download {name}{flag}` and copy the cache here, or give the path of a local folder"


def _in_hub_cache(kind: str, name: str) -> bool:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return (cache / f"{kind}--{name.replace('/', '--')}" / "snapshots").is_dir()


@functools.cache
def _hub_reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), timeout=1):
            return True
    except (OSError, ValueError):
        return False


# --- the machine -------------------------------------------------------------------------------------------------


def _device(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    is_mpt = recipe.get("model.name") == "mpt_causal_lm"
    if is_mpt:
        attention = recipe.get("model.attn_config", {})
        shape = model_shape(recipe["model"])
        device = "cuda" if has_gpu() else "cpu"
        for text in refusals(attention.get("attn_impl", "flash"), device, features(attention), head_dim=shape.head_dim):
            yield ("model", "attn_config", "attn_impl"), text
    if has_gpu():
        return
    if recipe.get("precision") in ("amp_fp16", "amp_fp8"):
        yield ("precision",), f"no GPU here, and {recipe.get('precision')} needs one: use fp32 or amp_bf16 on a CPU"
    if not is_mpt:
        return
    import psutil

    parameters = count_parameters(recipe["model"]).total
    needed = parameters * TRAINING_BYTES_PER_PARAMETER / max(1, world_size() if recipe.get("fsdp_config") else 1)
    memory = psutil.virtual_memory().total
    if needed > memory:
        text = f"no GPU here, and {parameters:,} parameters need about {needed / 2**30:,.0f} GiB a process to train"
        yield ("model",), f"{text}; this machine has {memory / 2**30:.0f} GiB: run it on GPUs, or try a smaller model"


def _disk(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    folder = recipe.get("save_folder")
    if not folder:
        return
    if "://" in folder:
        yield from _scheme(("save_folder",), folder)
        return
    existing = Path(folder.partition("{")[0] or ".").absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        yield ("save_folder",), f"checkpoints cannot be written to {folder}: {existing} is not a writable folder"
        return
    if recipe.get("model.name") == "mpt_causal_lm":
        needed = count_parameters(recipe["model"]).total * CHECKPOINT_BYTES_PER_PARAMETER
        free = shutil.disk_usage(existing).free
        if needed > free:
            text = f"one checkpoint takes about {needed / 1e9:,.1f} GB, and {existing} has {free / 1e9:,.1f} GB free"
            yield ("save_folder",), text


def _packages(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    for name in recipe.get("loggers", {}):
        if name in PACKAGE_FOR_LOGGER:
            yield from _package(("loggers", name), PACKAGE_FOR_LOGGER[name])
    if recipe.get("model.peft_config"):
        yield from _package(("model", "peft_config"), "peft")
    for name in recipe.get("code_paths", []):
        if not Path(name).exists():
            yield ("code_paths",), f"there is no file {name}"


def _scheme(key: KeyPath, uri: str) -> Iterator[tuple[KeyPath, str]]:
    package = PACKAGE_FOR_SCHEME.get(uri.partition("://")[0])
    if package:
        yield from _package(key, package)


def _package(key: KeyPath, package: str) -> Iterator[tuple[KeyPath, str]]:
    if not _importable(MODULE_OF_PACKAGE.get(package, package)):
        yield key, f"needs the package {package}: uv pip install {package}"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
