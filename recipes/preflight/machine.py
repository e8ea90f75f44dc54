"""Memory, compiler and disk of this machine, and whether its GPU will do."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath
from recipes.config.load import Recipe
from recipes.cost.architecture import MPT, OURS
from recipes.cost.parameters import count_parameters
from recipes.cost.rate import cost_section, rate_of
from recipes.cost.run_length import read_duration
from recipes.cost.setup import shards, steps_of_run
from recipes.installing import install_command
from recipes.preflight import gpu
from recipes.preflight.packages import scheme_problems
from recipes.ranks import local_world_size, world_size
from recipes.training.batches import dataset_tokens, plan_batches
from recipes.training.checkpoints import resumes, step_of, to_go_on_from, writes_sharded

# Weights and gradients in fp32, and Adam's two moments: bytes a parameter costs in training without sharding.
TRAINING_BYTES_PER_PARAMETER = 16
CHECKPOINT_BYTES_PER_PARAMETER = 12  # weights and the two moments
SAVE_INTERVAL = "1000ba"  # LLM Foundry's
BEST, LIGER = "fused_crossentropy", "liger_crossentropy"  # losses: the best that is here, and Liger's kernels
WEIGHT_BYTES = 4  # of a parameter that is not trained: with LoRA, about all of them


def device_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    is_ours = recipe.get("model.name") in OURS
    if recipe.get("model.name") == MPT:
        is_sharded = world_size() > 1 and shards(recipe.get("fsdp_config"))
        for text in gpu.kernel_refusals(recipe["model"], recipe.get("precision", "amp_bf16"), is_sharded=is_sharded):
            yield ("model", "attn_config", "attn_impl"), text
    loss, has_liger = recipe.get("model.loss_fn", BEST), gpu.has_gpu() and importlib.util.find_spec("liger_kernel")
    if is_ours and loss == LIGER and not has_liger:
        text = f"needs a CUDA GPU and the package liger-kernel (`{install_command('liger-kernel')}`)"
        yield ("model", "loss_fn"), f"{LIGER} {text}; {BEST} takes the best that is here"
    takes_it = not recipe.get("dpo") and loss in (BEST, LIGER) and not recipe.get("model.use_train_metrics", True)
    for lack in gpu.triton_lacks() if is_ours and has_liger and takes_it else ():
        yield ("model", "loss_fn"), f"Liger's loss {lack}"
    if recipe.get("compile") and not any(shutil.which(c) for c in (os.environ.get("CXX") or "g++", "clang++")):
        yield ("compile",), "needs a C++ compiler, and this machine has none: install g++, or leave compile out"
    if recipe.get("precision") == "amp_fp8" and gpu.has_gpu():
        for text in gpu.fp8_lacks():
            yield ("precision",), f"{text}; use amp_bf16 without it"
    if gpu.has_gpu():
        return
    none = gpu.unusable() or "no GPU here"
    yield from _price_of_a_cpu(recipe)
    if recipe.get("precision", "amp_bf16") != "fp32":
        text = f"{none}, and Composer trains in {recipe.get('precision', 'amp_bf16')} on one alone"
        yield ("precision",), f"{text}: set precision: fp32 on a CPU"
    if not is_ours:
        return
    import psutil

    parameters = _parameters(recipe)
    each = WEIGHT_BYTES if recipe.get("model.peft_config") else TRAINING_BYTES_PER_PARAMETER
    needed = parameters * each / max(1, world_size() if recipe.get("fsdp_config") else 1)
    memory = psutil.virtual_memory().total
    if needed > memory:
        text = f"{none}, and {parameters:,} parameters need about {needed / 2**30:,.0f} GiB a process to train"
        yield ("model",), f"{text}; this machine has {memory / 2**30:.0f} GiB: run it on GPUs, or try a smaller model"


def _price_of_a_cpu(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """A budget that is planned for a GPU, and cannot be kept where there is none."""
    guard, cost = recipe.get("callbacks.budget_guard", {}), cost_section(recipe.values)
    if guard.get("budget_usd") is None and guard.get("max_usd_per_hundredth_loss") is None:
        return
    try:
        rate = rate_of(cost, None)
    except ValueError:  # said where the budget is judged
        return
    if rate.usd_per_device_hour is None:
        text = "counts dollars, and no GPU is here: state cost.usd_per_device_hour, what this machine costs"
        yield ("callbacks", "budget_guard"), text


def _parameters(recipe: Recipe) -> int:
    """Parameters of the recipe's model; 0 where its kind of layer is not counted."""
    try:
        return count_parameters(recipe["model"]).total
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0


def memory_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Checkpoints in one file, which each process of a machine reads whole when the run goes on."""
    fsdp, here = recipe.get("fsdp_config"), local_world_size()
    if here == 1 or not shards(fsdp) or writes_sharded(recipe) or not resumes(recipe.values):
        return
    import psutil

    needed, memory = _checkpoint_bytes(recipe) * here, psutil.virtual_memory().total
    if needed > memory:
        text = f"to go on from a full checkpoint, {here} processes read all of it: {needed / 2**30:,.0f} GiB, and this"
        key = ("fsdp_config", "state_dict_type")
        yield key, f"{text} machine has {memory / 2**30:,.0f}; set it to sharded, with which each reads its part"


def _checkpoint_bytes(recipe: Recipe) -> int:
    """Of one checkpoint; 0 for a model that is not counted."""
    if recipe.get("model.name") not in OURS:
        return 0
    weights_alone = recipe.get("model.peft_config") or recipe.get("save_weights_only")
    return _parameters(recipe) * (WEIGHT_BYTES if weights_alone else CHECKPOINT_BYTES_PER_PARAMETER)


def disk_problems(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    folder = recipe.get("save_folder")
    if not folder:
        return
    if is_remote(folder):
        yield from scheme_problems(("save_folder",), folder)
        return
    existing = _existing(Path(folder.partition("{")[0] or ".").absolute())
    if not can_be_made(existing):
        yield ("save_folder",), f"checkpoints cannot be written to {folder}: {existing} is not a writable folder"
        return
    count, each, free = _more_at_once(recipe), _checkpoint_bytes(recipe), shutil.disk_usage(existing).free
    if writes_sharded(recipe):  # of which each machine writes its part, at least where it has a disk of its own
        each = each * local_world_size() // world_size()
    if count * each > free:
        what = f"{count:,} checkpoints at once take" if count > 1 else "one checkpoint takes"
        text = f"{what} about {_size(count * each)}, and {os.path.relpath(existing)} has {_size(free)} free"
        kept = "; save_num_checkpoints_to_keep is how many stay while the next is written" if count > 1 else ""
        yield ("save_folder",), text + kept


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def _more_at_once(recipe: Recipe) -> int:
    """Checkpoints that a run comes to have beside those that are there: a new one is whole before an old one goes."""
    found, keep = to_go_on_from(recipe), recipe.get("save_num_checkpoints_to_keep", -1)
    there = found.whole if found else ()
    most = math.inf if keep < 0 else max(1, keep + 1 - len(there))
    interval = recipe.get("save_interval", SAVE_INTERVAL)
    share, steps = read_duration(interval), plan_batches(recipe).steps
    if steps is not None and share is not None and share.unit != "sec":
        values = {**recipe.values, "max_duration": interval}
        each = steps * share.amount if share.unit == "dur" else steps_of_run(values, dataset_tokens(recipe))
        done = (step_of(recipe, there[-1]) or 0) if there else 0
        most = min(most, math.ceil((steps - done) / max(each or steps, 1)))
    return 1 if most == math.inf else int(max(most, 1))


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def can_be_made(folder: Path) -> bool:
    """Whether a folder is there, or can be made, and files in it."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):  # to root, all of /proc says that it is writable
            return True
    except OSError:
        return False


def can_be_written(file: Path) -> bool:
    """Whether a file can be made or replaced."""
    return not file.is_dir() and can_be_made(file.absolute().parent)
