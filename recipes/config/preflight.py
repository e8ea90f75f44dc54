"""What a sound recipe needs that is not on this machine: data, tokenizer, weights, GPU, memory, disk, packages.

Takes well under a second, without torch, a process group or a GPU, so that nothing is billed before it has passed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.manifest import load_manifest, shard_problems
from recipes.config.contradictions import world_size
from recipes.config.keys import KeyPath, Problem, RecipeError, walk
from recipes.config.load import Recipe, load
from recipes.cost.parameters import count_parameters
from recipes.models.backends import features, refusals
from recipes.reports.runs import run_folder, run_name
from recipes.training.checkpoints import find_checkpoints

# Weights and gradients in fp32, and Adam's two moments: bytes a parameter costs in training without sharding.
TRAINING_BYTES_PER_PARAMETER = 16
CHECKPOINT_BYTES_PER_PARAMETER = 12  # weights and the two moments
WEIGHT_BYTES = 4  # of a parameter that is not trained: with LoRA, about all of them

PACKAGE_FOR_SCHEME = {
    "s3": "boto3",
    "gs": "google-cloud-storage",
    "oci": "oci",
    "azure": "azure-storage-blob",
    "dbfs": "databricks-sdk",
}
MODULE_OF_PACKAGE = {
    "lm-eval": "lm_eval",
    "google-cloud-storage": "google.cloud.storage",
    "azure-storage-blob": "azure.storage.blob",
    "databricks-sdk": "databricks.sdk",
    "transformer-engine": "transformer_engine",
}
# Layers that LLM Foundry registers only where a package is installed.
PACKAGE_FOR_LAYER = {
    "te": "transformer-engine",
    "te_ln_mlp": "transformer-engine",
    "mb_moe": "megablocks",
    "mb_dmoe": "megablocks",
}
PACKAGE_FOR_LOGGER = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}


def preflight(recipe: Recipe) -> list[Problem]:
    """Everything that a run of this recipe would stop at on this machine. Each says how to get what is missing."""
    found: list[tuple[KeyPath, str]] = []
    for key, loader in _loaders(recipe):
        found += _data(key, loader, recipe)
    found += _tokenizer(recipe.get("tokenizer", {}))
    found += _weights(recipe.values)
    found += _pretrained(recipe)
    found += _device(recipe)
    found += _disk(recipe)
    found += _resumed(recipe)
    found += _shots(recipe)
    found += _tasks(recipe)
    found += _packages(recipe)
    return [Problem(recipe.place(key), key, text) for key, text in found]


def evaluation_problems(recipe: Recipe) -> list[Problem]:
    """What a well-formed evaluation recipe asks for and cannot be done, on whichever machine."""
    found = [*_shots(recipe), *_gauntlet(recipe)]
    if not any(recipe.get(key) for key in ("eval_loader", "icl_tasks", "samples")):
        found.append((("icl_tasks",), "there is nothing to evaluate: add tasks, an eval_loader or samples"))
    return [Problem(recipe.place(key), key, text) for key, text in found]


def preflight_evaluation(recipe: Recipe) -> list[Problem]:
    """Everything that an evaluation of this recipe would stop at on this machine."""
    found: list[tuple[KeyPath, str]] = []
    for index, model in enumerate(recipe["models"]):
        found += [(("models", index, *key), text) for key, text in _tokenizer(model["tokenizer"])]
        found += [(("models", index, *key), text) for key, text in _weights(model)]
    for key, loader in _loaders(recipe):
        found += _data(key, loader, recipe)
    found += _tasks(recipe)
    found += _packages(recipe)
    shards = recipe.get("contamination.shards")
    if shards and not (Path(shards) / "index.json").is_file():
        text = f"{shards} holds no shards: it has no index.json; name a folder that data_prep.pretrain made"
        found.append((("contamination", "shards"), text))
    if not has_gpu() and recipe.get("precision") in ("amp_fp16", "amp_fp8"):
        found.append((("precision",), f"no GPU here, and {recipe.get('precision')} needs one: use fp32 or amp_bf16"))
    results = recipe.get("results")
    if results and (Path(results).is_dir() or not _can_be_made(Path(results).absolute().parent)):
        found.append((("results",), f"results cannot be written to {results}"))
    return [Problem(recipe.place(key), key, text) for key, text in found]


def _shots(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    tasks = recipe.get("icl_tasks", [])
    seen: dict[str, int] = {}
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        place = ("icl_tasks", index, "num_fewshot")
        if not task["num_fewshot"] or min(task["num_fewshot"]) < 0:
            yield place, f"got {task['num_fewshot']}, expected one or several numbers of examples, each 0 or more"
        for label in (f"{task['label']}/{number}-shot" for number in task["num_fewshot"]):
            if label in seen:
                text = f"{label} is asked for here and in icl_tasks.{seen[label]}: scores are known by these names"
                yield place, f"{text}, so ask once, or give another label"
            seen.setdefault(label, index)


def _tasks(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    tasks = recipe.get("icl_tasks", [])
    for index, task in enumerate(tasks if isinstance(tasks, list) else []):
        uri = str(task.get("dataset_uri"))
        if "://" in uri:
            yield from _scheme(("icl_tasks", index, "dataset_uri"), uri)
        elif not Path(uri).is_file():
            yield ("icl_tasks", index, "dataset_uri"), f"no task: there is no file {uri}"
    for key in ("icl_tasks", "eval_gauntlet"):
        path = recipe.get(key)
        if isinstance(path, str) and not Path(path).is_file():
            yield (key,), f"there is no file {path}"


def _gauntlet(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """What LLM Foundry's averages would stop at after all tasks, or leave out and call 0."""
    section, tasks = recipe.get("eval_gauntlet"), recipe.get("icl_tasks") or []
    if section is None or isinstance(section, str) or isinstance(tasks, str):
        return  # a file that is not there is said elsewhere
    key: KeyPath = ("eval_gauntlet",)
    if not tasks:
        yield key, "averages icl_tasks, and there are none"
        return
    known = {"categories", "weighting", "subtract_random_baseline", "rescale_accuracy", "averages"}
    for name in section.keys() - known:
        yield (*key, name), f"unknown key. Allowed: {', '.join(sorted(known))}"
    weighting, weightings = section.get("weighting", "EQUAL"), ("EQUAL", "SAMPLE_SZ", "LOG_SAMPLE_SZ")
    if weighting not in weightings:
        yield (*key, "weighting"), f"got {weighting!r}, expected one of {', '.join(weightings)}"
    subtracts = section.get("subtract_random_baseline", True)
    if section.get("rescale_accuracy", True) and not subtracts:
        yield (*key, "rescale_accuracy"), "needs subtract_random_baseline: set it to false, or that to true"
    scored = {f"{t['label']}/{n}-shot" for t in tasks if _has_accuracy(t) for n in t["num_fewshot"]}
    names = []
    for index, category in _sections(section.get("categories")):
        where = (*key, "categories", index)
        names.append(str(category.get("name")))
        if not isinstance(category.get("name"), str):
            yield (*where, "name"), f"got {category.get('name')!r}, expected text"
        benchmarks = _sections(category.get("benchmarks"))
        if not benchmarks:
            yield (*where, "benchmarks"), f"got {category.get('benchmarks')!r}, expected a list of sections"
        for number, benchmark in benchmarks:
            wanted = f"{benchmark.get('name')}/{benchmark.get('num_fewshot')}-shot"
            if wanted not in scored:
                text = f"icl_tasks scores no accuracy of {wanted}, only of {', '.join(sorted(scored)) or 'nothing'}"
                yield (*where, "benchmarks", number), text
            chance = benchmark.get("random_baseline")
            if subtracts and (isinstance(chance, bool) or not isinstance(chance, (int, float)) or not 0 <= chance < 1):
                text = f"got {chance!r}, expected a share from 0 up to 1"
                yield (*where, "benchmarks", number, "random_baseline"), text
    if not names:
        text = f"got {section.get('categories')!r}, expected a list of sections with name and benchmarks"
        yield (*key, "categories"), text
    averages = section.get("averages")
    if averages is not None and not (isinstance(averages, Mapping) and averages):
        yield (*key, "averages"), f"got {averages!r}, expected the name of each average and its list of categories"
    for name, members in averages.items() if isinstance(averages, Mapping) else ():
        if name in names:
            yield (*key, "averages", name), "is the name of a category: give the average another"
        if not (isinstance(members, list) and members and all(member in names for member in members)):
            text = f"got {members!r}, expected a list of categories, of {', '.join(names)}"
            yield (*key, "averages", name), text


def _sections(value: Any) -> list[tuple[int, Mapping[str, Any]]]:
    """The sections of a list, with their numbers; none where one of them, or the list, is something else."""
    whole = isinstance(value, list) and all(isinstance(inner, Mapping) for inner in value)
    return list(enumerate(value)) if whole else []


def _has_accuracy(task: Mapping[str, Any]) -> bool:
    """Whether there is a score that LLM Foundry's averages take."""
    return any("Accuracy" in name for name in task.get("metric_names") or ["Accuracy"])


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
    if loader.get("name") == "preferences" and not Path(str(dataset.get("path"))).is_file():
        yield (*where, "path"), f"no data: there is no file {dataset.get('path')} of prompt, chosen and rejected"
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


def _unlisted_shards(folder: Path) -> Iterator[str]:
    """What is wrong with an index and its shards, without a manifest."""
    try:
        shards = json.loads((folder / "index.json").read_text())["shards"]
        for shard in shards:
            part = shard["zip_data"] or shard["raw_data"]
            path = folder / part["basename"]
            if not path.is_file() or path.stat().st_size != part["bytes"]:
                yield f"missing or truncated shard {path}: expected {part['bytes']:,} bytes"
        if not shards:
            yield f"no data: {folder} has an index of no shards"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{folder / 'index.json'} cannot be read ({error}): prepare the shards again"


def _shards(key: KeyPath, folder: Path, loader: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if not os.path.isfile(folder / "index.json"):  # unlike Path's, false also for a name that is too long
        state = "has no index.json" if os.path.isdir(folder) else "does not exist"
        kind = "finetune" if loader.get("name") == "finetuning" else "pretrain"
        length, tokenizer = recipe["max_seq_len"], recipe.get("tokenizer.name", "TOKENIZER")
        split = "--holdout-split" if key[0] == "eval_loader" else "--split"
        command = f"python -m data_prep.{kind} YOUR.jsonl --out {folder.parent} --holdout 0.01 {split} {folder.name}"
        yield key, f"no data: {folder} {state}; make it with `{command} --tokenizer {tokenizer} --seq-len {length}`"
        return
    try:
        manifest = load_manifest(folder)
    except ValueError as error:
        yield key, str(error)
        return
    if manifest is None:  # shards that another program made
        for text in _unlisted_shards(folder):
            yield key, text
        return
    for text in shard_problems(folder, manifest) or _unlisted_shards(folder):
        yield key, text
    length = (loader.get("dataset") or {}).get("max_seq_len") or recipe["max_seq_len"]
    if manifest.seq_len < length:
        yield key, f"the shards in {folder} hold {manifest.seq_len} tokens a sequence, the recipe wants {length}"
    used = Path(str(recipe.get("tokenizer.name"))) / "tokenizer.json"
    if used.is_file() and _is_json(used) and hashlib.sha256(used.read_bytes()).hexdigest() != manifest.tokenizer.sha256:
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
        for file in listed if hasattr(listed, "__iter__") else ():
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
    if folder.is_file():
        yield ("tokenizer", "name"), f"{folder} is a file: give the folder that it is in, {folder.parent}"
    elif folder.is_dir():
        for file in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / file).is_file() and not _is_json(folder / file):
                yield ("tokenizer", "name"), f"{folder / file} cannot be read: it is no JSON"
        if not any((folder / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
            yield ("tokenizer", "name"), f"{folder} holds no tokenizer: no tokenizer.json, no tokenizer_config.json"
    elif name.startswith((".", "/")) or name.count("/") > 1:
        command = f"python -m data_prep.tokenizer YOUR.jsonl --out {name} --vocab-size N"
        yield ("tokenizer", "name"), f"no tokenizer: {name} does not exist; train one with `{command}`"
    elif not _in_hub_cache("models", name):
        yield from _from_hub(("tokenizer", "name"), f"tokenizer {name}", "models", name)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _weights(settings: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    name = settings["model"].get("pretrained_model_name_or_path")
    if name and not Path(str(name)).exists() and not _in_hub_cache("models", str(name)):
        yield from _from_hub(("model", "pretrained_model_name_or_path"), f"model {name}", "models", str(name))
    path = settings.get("load_path")
    if path and "://" in path:
        yield from _scheme(("load_path",), path)
    elif path and "{" not in path and Path(path).is_file() and not zipfile.is_zipfile(path):
        yield ("load_path",), f"{path} is no checkpoint, or not a whole one"
    elif path and "{" not in path and not Path(path).exists():
        yield ("load_path",), f"no checkpoint: {path} does not exist"


def _pretrained(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if recipe.get("pretrained"):
        from recipes.weights.pretrained import problems

        for key, text in problems(recipe.values):
            yield tuple(key.split(".")), text


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


def _fp8_lacks() -> Iterator[str]:
    """What amp_fp8 needs and this machine with a GPU does not have."""
    if not importlib.util.find_spec("transformer_engine"):
        yield "amp_fp8 needs the package transformer-engine (`pip install transformer-engine[pytorch]`)"
    for name, capability in _compute_capabilities():
        if capability < 8.9:  # Ada; what Transformer Engine asks for
            yield f"{name} computes at {capability}, amp_fp8 needs 8.9 or more: an Ada, Hopper or newer GPU"
            return


def _compute_capabilities() -> list[tuple[str, float]]:
    """(name, CUDA compute capability) of each NVIDIA GPU, asked of the driver; empty where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
        return [(name, float(capability)) for name, capability in (line.rsplit(", ", 1) for line in lines)]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _device(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    is_mpt = recipe.get("model.name") == "mpt_causal_lm"
    if is_mpt:
        attention = recipe.get("model.attn_config", {})
        model = recipe["model"]
        width = model.get("head_dim") or model.get("d_model", 2048) // model.get("n_heads", 16)
        device = "cuda" if has_gpu() else "cpu"
        for text in refusals(attention.get("attn_impl", "flash"), device, features(attention), head_dim=width):
            yield ("model", "attn_config", "attn_impl"), text
        if recipe.get("model.loss_fn") == "liger_crossentropy" and not (
            has_gpu() and importlib.util.find_spec("liger_kernel")
        ):
            text = "needs a CUDA GPU and the package liger-kernel (`pip install liger-kernel`)"
            yield ("model", "loss_fn"), f"liger_crossentropy {text}; fused_crossentropy takes the best that is here"
    if recipe.get("compile") and not any(shutil.which(c) for c in (os.environ.get("CXX") or "g++", "clang++")):
        yield ("compile",), "needs a C++ compiler, and this machine has none: install g++, or leave compile out"
    if recipe.get("precision") == "amp_fp8" and has_gpu():
        for text in _fp8_lacks():
            yield ("precision",), f"{text}; use amp_bf16 without it"
    if has_gpu():
        return
    if recipe.get("precision") in ("amp_fp16", "amp_fp8"):
        yield ("precision",), f"no GPU here, and {recipe.get('precision')} needs one: use fp32 or amp_bf16 on a CPU"
    if not is_mpt:
        return
    import psutil

    parameters = _parameters(recipe)
    each = WEIGHT_BYTES if recipe.get("model.peft_config") else TRAINING_BYTES_PER_PARAMETER
    needed = parameters * each / max(1, world_size() if recipe.get("fsdp_config") else 1)
    memory = psutil.virtual_memory().total
    if needed > memory:
        text = f"no GPU here, and {parameters:,} parameters need about {needed / 2**30:,.0f} GiB a process to train"
        yield ("model",), f"{text}; this machine has {memory / 2**30:.0f} GiB: run it on GPUs, or try a smaller model"


def _parameters(recipe: Recipe) -> int:
    """Parameters of the recipe's model; 0 where its kind of layer is not counted."""
    try:
        return count_parameters(recipe["model"]).total
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def _disk(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    folder = recipe.get("save_folder")
    if not folder:
        return
    if "://" in folder:
        yield from _scheme(("save_folder",), folder)
        return
    existing = _existing(Path(folder.partition("{")[0] or ".").absolute())
    if not _can_be_made(existing):
        yield ("save_folder",), f"checkpoints cannot be written to {folder}: {existing} is not a writable folder"
        return
    if recipe.get("model.name") == "mpt_causal_lm":
        each = WEIGHT_BYTES if recipe.get("model.peft_config") else CHECKPOINT_BYTES_PER_PARAMETER
        needed = _parameters(recipe) * each
        free = shutil.disk_usage(existing).free
        if needed > free:
            where = os.path.relpath(existing)
            text = f"one checkpoint takes about {needed / 1e9:,.1f} GB, and {where} has {free / 1e9:,.1f} GB free"
            yield ("save_folder",), text


# Keys of `model:` that say how to compute, not what: a checkpoint fits whatever they are.
NOT_THE_MODEL = {"use_train_metrics", "additional_train_metrics", "loss_fn", "init_device", "master_weights_dtype"}


def _resumed(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """A run that would go on from the checkpoints of another model, or with another optimizer in name alone."""
    save_folder, folder = recipe.get("save_folder"), run_folder(recipe)
    if not save_folder or "://" in save_folder or recipe.values.get("autoresume") is False:
        return
    kept = Path(save_folder.replace("{run_name}", run_name(recipe)))
    filename = recipe.get("save_filename", "ep{epoch}-ba{batch}-rank{rank}.pt")
    if not (folder / "recipe.yaml").is_file() or find_checkpoints(kept, filename, sharded=False).newest is None:
        return
    try:
        before = load(folder / "recipe.yaml")
    except RecipeError:
        return
    what = _changes(_architecture(before.get("model", {})), _architecture(recipe["model"]))
    if what:
        text = f"the checkpoints in {kept} are of another model ({what})"
        yield ("model",), f"{text}: choose another run_name or save_folder, or delete {folder}"
    what = _changes(_flat(before.get("optimizer", {})), _flat(recipe.get("optimizer", {})))
    if what:
        text = f"the checkpoints in {kept} bring the numbers of their optimizer, so that {what} would change nothing"
        mend = "put it back, or choose another run_name, with load_path and load_weights_only: true for these weights"
        yield ("optimizer",), f"{text}: {mend}"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in changed)


def _architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in _flat(model).items() if k not in NOT_THE_MODEL and k != "attn_config.attn_impl"}


def _flat(section: Mapping[str, Any]) -> dict[str, Any]:
    return {".".join(map(str, key)): value for key, value in walk(section) if not isinstance(value, (dict, list))}


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def _can_be_made(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):  # to root, all of /proc says that it is writable
            return True
    except OSError:
        return False


def _packages(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    for name in recipe.get("loggers", {}):
        if name in PACKAGE_FOR_LOGGER:
            yield from _package(("loggers", name), PACKAGE_FOR_LOGGER[name])
    for key in (("model", "fc_type"), ("model", "ffn_config", "ffn_type")):
        layer = recipe.get(".".join(key))
        layer = layer.get("name") if isinstance(layer, Mapping) else layer
        if layer in PACKAGE_FOR_LAYER:
            yield from _package(key, PACKAGE_FOR_LAYER[layer])
    if recipe.get("harness_tasks"):
        yield from _package(("harness_tasks",), "lm-eval")
    if recipe.get("model.peft_config"):
        yield from _package(("model", "peft_config"), "peft")
    prices = recipe.get("cost.prices_file")
    if prices and not Path(prices).is_file():
        yield ("cost", "prices_file"), f"there is no file {prices}"
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
