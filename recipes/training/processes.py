"""The processes of a run: their group, how they share the model, and what they keep off the screen."""

from __future__ import annotations

import functools
import gc
import logging
import os
import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import torch
import transformers
from composer.distributed import prepare_distributed
from composer.utils import dist, get_device, reproducibility
from composer.utils.parallelism import FSDP2Config
from llmfoundry.utils import builders

from recipes.cost.setup import KEEP_WEIGHTS, shard_degree, shards
from recipes.ranks import is_first_of_machine

log = logging.getLogger(__name__)


def prepare_process(settings: Mapping[str, Any]) -> None:
    """Process group, allocator and seed, in the order LLM Foundry's training has them."""
    if settings["expandable_segments"] or settings["max_split_size_mb"]:
        options = []
        if settings["max_split_size_mb"]:
            options.append(f"max_split_size_mb:{settings['max_split_size_mb']}")
        if settings["expandable_segments"]:
            options.append("expandable_segments:True")
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", ",".join(options))
    if settings["cuda_load_lazy"]:
        os.environ["CUDA_MODULE_LOADING"] = "LAZY"
    if not torch.cuda.is_available():
        flush_denormals()
    prepare_distributed.meta_init = initialise
    _tell_nodes_apart()
    dist.initialize_dist(get_device(None), timeout=settings["dist_timeout"])
    reproducibility.seed_all(settings["seed"])


def flush_denormals() -> None:
    """Let a CPU take numbers below 1e-38 for zero; call it before torch starts its threads, which inherit it.

    ALiBi gives far keys such weights, and a processor computes with them many times slower: without this, attention's
    backward pass took 4 times as long at 2,048 tokens.
    """
    torch.set_flush_denormal(True)


def initialise(module: torch.nn.Module, param_init_fn: Callable[[torch.nn.Module], None] | None = None) -> None:
    """Fill what was built on the meta device, on this process's device: instead of Composer's meta_init.

    That one knows CUDA only, and LLM Foundry's filling thaws what is frozen: LoRA would train every weight.
    """
    param_init_fn = getattr(module, "param_init_fn", param_init_fn)
    for child in module.children():
        initialise(child, param_init_fn)
    own = dict(module.named_parameters(recurse=False))
    if any(tensor.is_meta for tensor in (*own.values(), *module.buffers(recurse=False))):
        trained = {name: parameter.requires_grad for name, parameter in own.items()}
        module.to_empty(device="cuda" if torch.cuda.is_available() else "cpu", recurse=False)
        if param_init_fn is None:
            raise ValueError(f"{type(module).__name__} has no param_init_fn, which would fill it")
        param_init_fn(module)
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(trained[name])


@functools.cache
def _tell_nodes_apart() -> None:
    """Give each node a signal file of its own.

    Composer gives all nodes the name that rank 0 drew; in a working folder that they share, the first to finish takes
    the file away from the others, which then fail.
    """
    shared_name = dist.get_node_signal_file_name

    def name_on_this_node(rng: random.Random | None = None) -> str:
        return f"{shared_name(rng)}_node{dist.get_node_rank()}"

    dist.get_node_signal_file_name = name_on_this_node


def parallelism(fsdp: dict[str, Any] | None, tp: dict[str, Any] | None, model: Any) -> dict[str, Any] | None:
    """FSDP2 for a recipe's `fsdp_config`, whose keys are those of FSDP1, as LLM Foundry's files write it."""
    if fsdp is None and tp is None:
        return None
    config: dict[str, Any] = {}
    if fsdp is not None and shards(fsdp):
        known = {k: v for k, v in fsdp.items() if k in FSDP2Config.settable_attrs()}
        known.setdefault("reshard_after_forward", fsdp.get("sharding_strategy") not in KEEP_WEIGHTS)
        known.setdefault("state_dict_type", "full")  # FSDP1's default; FSDP2's own is sharded
        known.pop("device_mesh", None)
        config["fsdp"] = _with_degrees(fsdp, dist.get_world_size() // (tp or {}).get("tensor_parallel_degree", 1))(
            **known
        )
    if tp is not None:
        layer_plan = builders.build_tp_strategies(tp["strategy"], model)
        config["tp"] = {"tensor_parallel_degree": tp["tensor_parallel_degree"], "layer_plan": layer_plan}
    return config or None


def _with_degrees(fsdp: Mapping[str, Any], devices: int) -> type[FSDP2Config]:
    """FSDP2Config for replicas of a model that each shard it over a part of the devices, or for one over all.

    Composer makes the mesh of devices itself, by two properties that answer "one, over all" whatever a recipe says.
    """
    hybrid = str(fsdp.get("sharding_strategy", "")).strip("_").startswith("HYBRID")
    degree = shard_degree(fsdp, devices) or (dist.get_local_world_size() if hybrid else devices)
    copies = devices // degree
    log.info("sharding: %d %s over %d devices", copies, "copies, each" if copies > 1 else "copy", degree)
    if copies == 1:
        return FSDP2Config
    degrees = {"data_parallel_replicate_degree": copies, "data_parallel_shard_degree": degree}
    return type("ReplicatedFSDP2Config", (FSDP2Config,), degrees)


def as_first_rank_sees(value: bool) -> bool:
    """What is so on rank 0, whose files the others may not see."""
    said = [value]
    dist.broadcast_object_list(said)
    return said[0]


def as_all_find(code: int | None) -> int | None:
    """The exit code with which every rank ends before anything is built; None where the run begins.

    code: what this rank has come to by itself. That a run was finished before is the first rank's to say, whose folder
    the others may not see; a refusal by any of them ends all. Returns when all ranks know.
    """
    found = dist.all_gather_object(code)
    end = found[0] if found[0] is not None else next((code for code in found if code), None)
    if end is not None:
        dist.barrier()  # one that exits with a code makes its launcher end others
    return end if end is None or is_first_of_machine() else 0


def free_memory() -> None:
    """Give back what building used on a GPU, before the first step."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def log_from(level: str | None) -> None:
    """Show what this project logs, such as the attention that runs, once for all ranks.

    level: LLM Foundry's `python_log_level`, which also holds for LLM Foundry and Streaming; None: what is news.
    """
    logger = logging.getLogger("recipes")
    if level:
        for name in ("recipes", "eval", "llmfoundry", "streaming"):
            logging.getLogger(name).setLevel(level.upper())
    else:
        logger.setLevel(logging.INFO if dist.get_global_rank() == 0 else logging.WARNING)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False  # Composer's own handler would say it again


def quiet() -> None:
    """Keep the libraries' remarks about themselves off the screen; warnings about the run stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    for module in (
        "torch.distributed",
        "torch.utils",
        "torchmetrics",
        "composer",
        "llmfoundry",
        "streaming",
        "transformers",
    ):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?")
