"""A run's bill and speed, as its summary keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from recipes.cost.segments import Segment, totals_of


@dataclass(frozen=True)
class RunCost:
    """A run's bill and speed over all its segments; None means not known, never zero."""

    wall_s: float
    startup_s: float
    compile_s: float
    data_s: float
    train_s: float
    evaluation_s: float
    checkpoint_s: float
    other_s: float
    lost_s: float  # of train_s: steps whose work was not kept
    goodput: float | None  # (train_s - lost_s) / wall_s, of all devices
    starts: int  # processes so far, one more than the restarts
    devices: int  # of the current process
    device_hours: float
    usd: float | None
    usd_per_device_hour: float | None
    rate_source: str
    tokens: int  # that the model has learned from
    tokens_processed: int  # these and the ones repeated after restarts
    tokens_per_s: float | None  # all devices together, over training and data time
    usd_per_million_tokens: float | None
    mfu: float | None
    mfu_basis: str
    kwh: float | None = None  # at the meter of the data centre
    kg_co2e: float | None = None
    energy_basis: str = "not known"
    usd_projected_total: float | None = None
    hours_left: float | None = None


def summarize(segments: Iterable[Segment], current: Segment, tokens: int, rate_source: str, mfu_basis: str) -> RunCost:
    """Adds up a run. current: the running process, also in `segments`. tokens: what the model has learned from."""
    segments = list(segments)
    run = totals_of(segments, tokens)
    return RunCost(
        wall_s=run.wall_s,
        **{f"{phase}_s": seconds for phase, seconds in run.seconds.items()},  # type: ignore[arg-type]
        lost_s=run.lost_s,
        goodput=run.goodput,
        starts=len(segments),
        devices=current.devices,
        device_hours=run.device_hours,
        usd=run.usd,
        usd_per_device_hour=current.usd_per_device_hour,
        rate_source=rate_source,
        tokens=tokens,
        tokens_processed=run.tokens_processed,
        tokens_per_s=run.tokens_per_s,
        usd_per_million_tokens=run.usd_per_million_tokens,
        mfu=run.mfu,
        mfu_basis=mfu_basis,
    )
