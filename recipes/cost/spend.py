"""The best model that some money buys: how many parameters, on how many tokens, with which recipe.

Models of one shape are tried: n_layers = L, d_model = 128 L, heads of 128. That is MPT-7B at L = 32 and close to the
other published sizes; N grows with L³, so neighbours differ by a tenth at 7B. For each,

    serving dollars   2 N T / (peak * share) / 3600 * rate          T tokens to serve (Sardana et al. 2024, equation 2)
    training tokens   (budget - serving) * tokens a second / rate   at the speed that whole runs keep

and the lowest loss L(N, tokens) of the scaling law wins.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recipes.cost.architecture import MODEL_DEFAULTS, RWKV
from recipes.cost.estimate import WHOLE_RUN_MID
from recipes.cost.hardware import Gpu
from recipes.cost.memory import largest_microbatch
from recipes.cost.scaling import DEFAULT_LAW, scaling_law
from recipes.cost.setup import Recompute, Setup, read_setup
from recipes.cost.throughput import step_time

MOST_GPU_HOURS = 1e12  # all GPUs there are for many years
HEAD_DIM = 128
MOST_LAYERS = 128


@dataclass(frozen=True)
class Purchase:
    """What the money buys. Dollars and hours are the middle of what whole runs take."""

    params_total: int
    tokens: int
    steps: int
    loss: float  # nats a token, by the scaling law
    usd_training: float
    usd_serving: float
    gpu_hours: float  # of training
    hours: float
    mfu: float  # steady state
    microbatch_sequences: int
    overrides: tuple[str, ...]  # that turn the recipe it started from into this one
    limited_by: str  # budget or deadline


def best_for(
    recipe: Mapping[str, Any],
    gpu: Gpu,
    gpus: int,
    budget_usd: float,
    usd_per_gpu_hour: float,
    inference_tokens: float = 0.0,
    inference_mfu: float | None = None,
    deadline_hours: float | None = None,
    law: str = DEFAULT_LAW,
) -> Purchase | None:
    """The lowest predicted loss for `budget_usd`, training and serving together; None when nothing can be bought.

    Sequence length, batch, vocabulary and optimizer stay the recipe's; the micro-batch is the largest that fits.
    `inference_mfu` is the share of the peak when serving; by default that of training.

    Raises:
        ValueError: an amount that cannot be right, or a recipe that cannot be counted.
    """
    bought_hours = gpu_hours_for(budget_usd, usd_per_gpu_hour)
    if inference_tokens < 0:
        raise ValueError(f"inference tokens: got {inference_tokens:g}, expected 0 or more.")
    chosen = scaling_law(law)
    best: Purchase | None = None
    for setup, overrides in _candidates(recipe, gpu, gpus):
        step = step_time(setup, gpu)
        n = setup.parameters.total
        share = inference_mfu or step.mfu * WHOLE_RUN_MID
        usd_serving = 2 * n * inference_tokens / (step.peak_flops_per_s * share) / 3600 * usd_per_gpu_hour
        if usd_serving >= budget_usd:
            continue
        gpu_hours = bought_hours - usd_serving / usd_per_gpu_hour
        limited_by = "budget"
        if deadline_hours is not None and gpu_hours > deadline_hours * gpus:
            gpu_hours, limited_by = deadline_hours * gpus, "deadline"
        tokens_per_step = setup.global_batch_sequences * setup.tokens_per_item
        steps = int(gpu_hours * 3600 * step.tokens_per_s_per_gpu * WHOLE_RUN_MID / tokens_per_step)
        if steps < 1:
            continue
        loss = chosen.loss(n, steps * tokens_per_step)
        if best is not None and loss >= best.loss:
            continue
        assert setup.microbatch_sequences is not None
        best = Purchase(
            params_total=n,
            tokens=steps * tokens_per_step,
            steps=steps,
            loss=loss,
            usd_training=gpu_hours * usd_per_gpu_hour,
            usd_serving=usd_serving,
            gpu_hours=gpu_hours,
            hours=gpu_hours / gpus,
            mfu=step.mfu,
            microbatch_sequences=setup.microbatch_sequences,
            overrides=(*overrides, f"max_duration={steps}ba"),
            limited_by=limited_by,
        )
    return best


def gpu_hours_for(budget_usd: float, usd_per_gpu_hour: float) -> float:
    """Raises ValueError for an amount that is not above 0, or that buys more than anybody could use."""
    for name, value in (("budget", budget_usd), ("rate", usd_per_gpu_hour)):
        if not value > 0:
            raise ValueError(f"{name}: got {value:g}, expected more than 0 dollars.")
    gpu_hours = budget_usd / usd_per_gpu_hour
    if gpu_hours > MOST_GPU_HOURS:
        raise ValueError(
            f"budget: ${budget_usd:g} at ${usd_per_gpu_hour:g} an hour is more than {MOST_GPU_HOURS:g} GPU-hours; "
            "give a smaller budget or a larger rate."
        )
    return gpu_hours


def _candidates(recipe: Mapping[str, Any], gpu: Gpu, gpus: int) -> Iterator[tuple[Setup, tuple[str, ...]]]:
    """Every size that fits the devices, checkpointed as the recipe says or else."""
    own = read_setup(recipe, gpus).recompute
    choices: tuple[Recompute, ...] = ("nothing" if own == "blocks" else own, "blocks")
    for layers in range(2, MOST_LAYERS + 1):
        shape = _shape(recipe["model"], layers)
        if shape is None:
            continue
        for recompute in choices:
            keys = {**shape, "device_train_microbatch_size": 1}
            if recompute != own:
                keys["fsdp_config.activation_checkpointing"] = recompute == "blocks"
                if own == "operations":
                    keys["selective_checkpointing"] = False
            setup = read_setup(_changed(recipe, keys), gpus)  # with these keys, one of which may turn FSDP on
            keys["device_train_microbatch_size"] = most = largest_microbatch(setup, gpu)
            if most:
                texts = tuple(f"{key}={str(value).lower()}" for key, value in keys.items())
                yield dataclasses.replace(setup, microbatch_sequences=most), texts


def _shape(model: Mapping[str, Any], layers: int) -> dict[str, Any] | None:
    """Keys that give a model this many layers; None where no such model can be built.

    That is where its key-value heads do not divide so many heads, or RWKV's ratio makes no whole width.
    """
    width = HEAD_DIM * layers
    keys: dict[str, Any] = {"model.d_model": width, "model.n_heads": layers, "model.n_layers": layers}
    is_rwkv = model.get("name") == RWKV
    if is_rwkv:
        del keys["model.n_heads"]
    if model.get("head_dim") is not None:
        keys["model.head_dim"] = HEAD_DIM
    kv_heads = (model.get("attn_config") or {}).get("kv_n_heads")
    if kv_heads and layers % kv_heads:
        return None
    hidden = (model.get("ffn_config") or {}).get("ffn_hidden_size")
    values = {**MODEL_DEFAULTS, **{key: value for key, value in model.items() if value is not None}}
    ratio = hidden / values["d_model"] if hidden else values["expansion_ratio"]
    is_whole = abs(ratio * width - round(ratio * width)) <= (1e-6 if is_rwkv else 0)
    if is_rwkv and not is_whole:  # which has no key for it
        return None
    if hidden or not is_whole:
        keys["model.ffn_config.ffn_hidden_size"] = round(ratio * width / 64) * 64
    return keys


def _changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(recipe))
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = changed
        for name in sections:
            if not section.get(name):  # absent, or null
                section[name] = {}
            section = section[name]
        section[last] = value
    return changed
