"""What a recipe will cost before it runs: hours, dollars, energy, memory and the loss to expect.

    hours = tokens / (tokens a second in the steady state * share of the steady state that whole runs keep)
    dollars = hours * GPUs * rate

Two kinds of MFU are kept apart. `mfu` is the steady state of a benchmark: throughput.py's prediction, good to a few
per cent on the hardware it was fitted to. A whole run also evaluates, saves, restarts, waits for data and for its
slowest node, so its MFU is lower by a factor that differs between runs: hence `mfu_low` and `mfu_high`, and a range
for everything that follows from them. The upper end takes communication to be hidden altogether, so the range widens
where a run leans on it: many GPUs with little work each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.cost.hardware import Gpu, find_gpu
from recipes.cost.memory import MemoryEstimate, fits, largest_microbatch, memory, smallest_change
from recipes.cost.rate import Rate, choose_rate, cost_section
from recipes.cost.scaling import DEFAULT_LAW, TrainingBalance, balance, predicted_loss
from recipes.cost.setup import Setup, read_setup, tokens_of_run, why_no_tokens
from recipes.cost.throughput import StepTime, shards_of, step_time

# What whole runs keep of the steady state. Of nine published runs, most kept 75 to 86 % of the speed predicted for them
# (`python -m recipes.cost.published`); the highest hide all their communication and beat the prediction by a little.
WHOLE_RUN_LOW, WHOLE_RUN_MID, WHOLE_RUN_HIGH = 0.55, 0.8, 1.05

MEASURED_GPUS = ("a100-40gb", "a100-80gb", "h100-sxm")  # what the coefficients of throughput.py were fitted to
SMALLEST_MEASURED = 12 * 12 * 768**2  # parameters of MPT-125M's blocks, the smallest model that they were fitted to
NOT_ON_TPUS = "nothing in this repository runs on TPUs, and the figures are for comparison"

# Energy as the LLaMA paper counts it (Touvron et al. 2023, arXiv 2302.13971, section 6): the board's power limit for
# every GPU-hour, times the data centre's overhead, times the US average of kg CO2e a kWh.
POWER_USAGE_EFFECTIVENESS = 1.1
KG_CO2E_PER_KWH = 0.385


@dataclass(frozen=True)
class Range:
    """A figure that is not known better than this."""

    low: float
    mid: float
    high: float

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.mid * factor, self.high * factor)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A plan of one run. None means not known, never zero; `notes` says what was assumed or left out."""

    gpu: str
    gpus: int
    params_total: int
    params_active: int
    flops_per_token: int  # LLM Foundry's count: 6 N + 12 n_layers d_model S
    tokens: int | None
    no_tokens: str | None  # why they are not known
    steps: int | None
    microbatch_sequences: int
    step: StepTime
    mfu: float  # steady state
    mfu_low: float  # whole run
    mfu_high: float
    tokens_per_s_per_gpu: float  # steady state
    hours: Range | None
    gpu_hours: Range | None
    rate: Rate
    usd: Range | None
    kwh: Range | None
    kg_co2e: Range | None
    watts: float | None  # of a GPU
    power_usage_effectiveness: float
    kg_co2e_per_kwh: float
    memory: MemoryEstimate
    fits: bool
    max_microbatch_sequences: int
    to_fit: str | None  # the smallest change that makes it fit
    predicted_loss: float | None  # nats a token, by the scaling law; on its authors' data
    training_balance: TrainingBalance | None
    notes: tuple[str, ...]
    setup: Setup  # what was counted, with its micro-batch
    hardware: Gpu

    @property
    def memory_gib_per_gpu(self) -> float:
        return self.memory.total_gib


def estimate(
    recipe: Mapping[str, Any],
    gpu: str | None = None,
    gpus: int = 1,
    usd_per_gpu_hour: float | None = None,
    prices_file: str | Path | None = None,
    price_kind: str | None = None,
    dataset_tokens: int | None = None,
    law: str = DEFAULT_LAW,
    power_usage_effectiveness: float | None = None,
    kg_co2e_per_kwh: float | None = None,
) -> Estimate:
    """Plans a run of a resolved recipe (LLM Foundry's key names) on `gpus` GPUs.

    What is not given here is taken from the recipe's `cost:` section. `dataset_tokens` turns a max_duration in epochs
    into tokens. With `device_train_microbatch_size: auto` the largest micro-batch that fits is assumed.

    Raises:
        ValueError: a GPU, price or recipe value that cannot be used, with the choices.
    """
    section = cost_section(recipe)
    name = gpu or section.get("gpu")
    if name is None:
        raise ValueError("gpu: missing; name one, e.g. gpu='h100', or set cost.gpu in the recipe.")
    row = find_gpu(name)
    stated = read_setup(recipe, gpus)
    most = largest_microbatch(stated, row)
    setup = stated
    if stated.microbatch_sequences is None:
        setup = dataclasses.replace(stated, microbatch_sequences=max(1, most))
    assert setup.microbatch_sequences is not None
    step = step_time(setup, row)
    tokens = tokens_of_run(recipe, dataset_tokens)
    hours = gpu_hours = None
    if tokens is not None:
        gpu_hours = gpu_hours_of(tokens / step.tokens_per_s_per_gpu / 3600, step.hidden_speedup)
        hours = gpu_hours.times(1 / gpus)
    # a price that is asked for here comes before the recipe's
    stated_rate = None if prices_file or price_kind else section.get("usd_per_device_hour")
    rate = choose_rate(
        row.name,
        usd_per_device_hour=stated_rate if usd_per_gpu_hour is None else usd_per_gpu_hour,
        prices_file=prices_file or section.get("prices_file"),
        price_kind=price_kind or section.get("price_kind") or "on_demand",
    )
    watts = _first(section.get("watts_per_device"), row.watts)
    pue = _first(power_usage_effectiveness, section.get("power_usage_effectiveness"), POWER_USAGE_EFFECTIVENESS)
    carbon = _first(kg_co2e_per_kwh, section.get("kg_co2e_per_kwh"), KG_CO2E_PER_KWH)
    kwh = None if gpu_hours is None or watts is None else gpu_hours.times(watts / 1000 * pue)
    parameters = setup.parameters.total
    # scaling laws say nothing of weights that have been trained
    scratch = None if recipe.get("pretrained") or setup.is_frozen else tokens
    loss = None if scratch is None else predicted_loss(parameters, scratch, setup.shape.vocab_size, law)
    return Estimate(
        gpu=row.name,
        gpus=gpus,
        params_total=parameters,
        params_active=setup.parameters.active,
        flops_per_token=step.flops_per_token,
        tokens=tokens,
        no_tokens=why_no_tokens(recipe, dataset_tokens),
        steps=None if tokens is None else -(-tokens // (setup.global_batch_sequences * setup.tokens_per_item)),
        microbatch_sequences=setup.microbatch_sequences,
        step=step,
        mfu=step.mfu,
        mfu_low=step.mfu * WHOLE_RUN_LOW,
        mfu_high=step.mfu * WHOLE_RUN_HIGH * step.hidden_speedup,
        tokens_per_s_per_gpu=step.tokens_per_s_per_gpu,
        hours=hours,
        gpu_hours=gpu_hours,
        rate=rate,
        usd=_dollars(gpu_hours, rate),
        kwh=kwh,
        kg_co2e=None if kwh is None else kwh.times(carbon),
        watts=watts,
        power_usage_effectiveness=pue,
        kg_co2e_per_kwh=carbon,
        memory=memory(setup, row),
        fits=fits(setup, row),
        max_microbatch_sequences=most,
        to_fit=smallest_change(setup, row),
        predicted_loss=loss,
        training_balance=None if scratch is None or loss is None else balance(parameters, scratch, law),
        notes=(*setup.notes, *_notes(setup, row)),
        setup=setup,
        hardware=row,
    )


def _first(*values: Any) -> Any:
    """The first that is said."""
    return next((value for value in values if value is not None), None)


def gpu_hours_of(steady_gpu_hours: float, hidden_speedup: float = 1.0) -> Range:
    """GPU-hours of a whole run from those of its steady state and the speedup that hidden communication would bring."""
    return Range(
        low=steady_gpu_hours / (WHOLE_RUN_HIGH * hidden_speedup),
        mid=steady_gpu_hours / WHOLE_RUN_MID,
        high=steady_gpu_hours / WHOLE_RUN_LOW,
    )


def usd_of_flops(flops: float, sustained_flops_per_s: float, usd_per_gpu_hour: float) -> float:
    """The back-of-envelope price of a run: FLOPs / sustained FLOP/s of one GPU / 3600 * rate."""
    if min(flops, sustained_flops_per_s) <= 0:
        raise ValueError(f"got {flops} FLOPs at {sustained_flops_per_s} FLOP/s, expected both above 0.")
    return flops / sustained_flops_per_s / 3600 * usd_per_gpu_hour


def _dollars(gpu_hours: Range | None, rate: Rate) -> Range | None:
    """Hours times rate; the range is that of both, lowest with lowest."""
    if gpu_hours is None or rate.usd_per_device_hour is None:
        return None
    assert rate.low is not None
    assert rate.high is not None
    mid = gpu_hours.mid * rate.usd_per_device_hour
    return Range(gpu_hours.low * rate.low, mid, gpu_hours.high * rate.high)


def _notes(setup: Setup, gpu: Gpu) -> list[str]:
    notes = []
    if setup.global_batch_sequences % setup.gpus:
        notes.append(
            f"global_train_batch_size {setup.global_batch_sequences} does not divide by {setup.gpus} GPUs: some wait "
            "for others, and train.py refuses to start"
        )
    if gpu.is_tpu:
        notes.append(f"{gpu.name}: {NOT_ON_TPUS}")
    if setup.parameters.non_embedding < SMALLEST_MEASURED:
        notes.append(
            "no model so small was measured: what a step takes however little it computes, as starting each kernel, is "
            "not counted, so that speed, hours and dollars are better than they will be"
        )
    if gpu.name not in MEASURED_GPUS:
        like = gpu.efficiency_like
        notes.append(f"{gpu.name} was not measured: its share of the peak is taken to be that of {like} GPUs")
    if setup.attn_impl == "torch":
        notes.append("attn_impl: torch writes S x S scores; their memory is counted, the time they take is not")
    shards = shards_of(setup, gpu)
    if setup.gpus % shards:
        whole = "use whole nodes or state fsdp_config.data_parallel_shard_degree"
        notes.append(f"{setup.sharding} has {shards} shards a model, which do not divide {setup.gpus} GPUs: {whole}")
    if setup.gpus > gpu.gpus_per_node:
        notes.append(f"between nodes {gpu.network_bytes_per_s * 8e-9:g} Gbit/s a GPU are assumed")
    if gpu.watts is None:
        notes.append(f"{gpu.name}: its power is not published, so no energy is given")
    return notes
