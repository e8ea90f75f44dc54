"""What a run took against what its plan said, and how much of the difference each reason makes.

Dollars are a product, so the reasons are factors and multiply to the whole difference:

    dollars = tokens learned * repeated work / (tokens a second a device) / share of time in the steady state * rate
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.cost.duration import in_words
from recipes.cost.estimate import WHOLE_RUN_MID
from recipes.cost.figures import number, usd
from recipes.reports.run_record import RunRecord


@dataclass(frozen=True)
class Reason:
    """One factor of actual over planned dollars; above 1 it made the run dearer."""

    name: str
    planned: float
    actual: float
    unit: str
    factor: float


def reasons(run: RunRecord) -> list[Reason]:
    """The factors, largest effect first; empty without a plan or before anything was trained."""
    plan, paid = run.plan, run.bill.total
    processed = paid.tokens_processed * run.padding
    learned = paid.tokens * run.padding
    active_device_s = sum((s.seconds["train"] + s.seconds["data"]) * s.devices for s in run.bill.segments)
    device_s = paid.device_hours * 3600
    if plan is None or not plan.tokens or not processed or not active_device_s or not paid.tokens:
        return []
    speed = processed / active_device_s
    share = active_device_s / device_s
    found = [
        Reason("tokens learned from", plan.tokens, learned, "tokens", learned / plan.tokens),
        Reason("work that was not kept", 1.0, processed / learned, "times", processed / learned),
        Reason(
            "speed of the steady state",
            plan.tokens_per_s_per_gpu,
            speed,
            "tokens/s a device",
            plan.tokens_per_s_per_gpu / speed,
        ),
        Reason("share of the time in training and data", WHOLE_RUN_MID, share, "of 1", WHOLE_RUN_MID / share),
    ]
    rate = plan.rate.usd_per_device_hour
    if rate and paid.usd is not None and paid.device_hours:
        usd_per_hour = paid.usd / paid.device_hours
        found.append(Reason("rate", rate, usd_per_hour, "USD a device-hour", usd_per_hour / rate))
    return sorted(found, key=lambda r: -max(r.factor or 1, 1 / (r.factor or 1)))


def figures(run: RunRecord) -> list[tuple[str, str, str]]:
    """(what, planned, actual) in words, for a table."""
    plan, paid = run.plan, run.bill.total

    def spanned(value: object, unit: str = "", digits: int = 0) -> str:
        if value is None:
            return "not known"
        low, mid, high = (f"{getattr(value, end):,.{digits}f}" for end in ("low", "mid", "high"))
        return f"{mid} ({low} to {high}){unit}"

    rows = []
    padded = f" and {round(paid.tokens * (run.padding - 1)):,} of padding" if run.padding > 1 else ""
    rows.append(("tokens", _count(run.planned_tokens), _count(paid.tokens) + padded))
    hours = "not known"
    if plan and plan.hours:
        low, mid, high = (in_words(h * 3600) for h in (plan.hours.low, plan.hours.mid, plan.hours.high))
        hours = f"{mid} ({low} to {high})"
    rows.append(("time", hours, in_words(paid.wall_s)))
    rows.append(("device-hours", spanned(plan.gpu_hours if plan else None, digits=2), f"{paid.device_hours:,.2f}"))
    dollars = "not known" if paid.usd is None else f"{usd(paid.usd)[1:]} USD"
    rows.append(("dollars", spanned(plan.usd if plan else None, " USD", 2), dollars))
    rows.append(("energy", spanned(plan.kwh if plan else None, " kWh", 2), _unit(run.kwh, "kWh")))
    planned_mfu = f"{plan.mfu:.1%} in the steady state" if plan else "not known"
    rows.append(("MFU", planned_mfu, "not known" if paid.mfu is None else f"{paid.mfu:.1%}"))
    loss = run.validation[-1].loss if run.validation else None
    rows.append(
        (
            "loss, nats a token",
            _predicted(run),
            "not known" if loss is None else f"{loss:.3f} on its validation data",
        )
    )
    return rows


def _predicted(run: RunRecord) -> str:
    if run.predicted_loss is None:
        return "not known"
    far = "; an extrapolation" if run.extrapolated else ""
    return f"{run.predicted_loss:.3f} by the scaling law, on its authors' data{far}"


def _count(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def _unit(value: float | None, unit: str) -> str:
    return "not known" if value is None else f"{number(value)} {unit}"
