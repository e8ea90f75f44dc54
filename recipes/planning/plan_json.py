"""A plan as plain values for machines: `python -m recipes plan --json`. Every name carries its unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from recipes.cost.estimate import WHOLE_RUN_HIGH, WHOLE_RUN_LOW, WHOLE_RUN_MID, Range
from recipes.cost.memory import parts_gib
from recipes.cost.scaling import SCALING_LAWS, is_extrapolated, scaling_law
from recipes.cost.setup import Recompute
from recipes.cost.spend import Purchase
from recipes.planning.plan import MFU_COUNTS, Plan

BY_CHECKPOINTING: Mapping[str, Recompute] = {"false": "nothing", "selective": "operations", "true": "blocks"}


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values whose names carry their units. null means not known, never zero."""
    e, options = plan.estimate, plan.options
    law = scaling_law(options.law)
    parts = parts_gib(e.memory)
    balance = e.training_balance
    extrapolated = None if e.tokens is None or e.predicted_loss is None else is_extrapolated(e.params_total, e.tokens)
    return {
        "recipe": plan.recipe,
        "gpu": e.gpu,
        "gpus": e.gpus,
        "params_total": e.params_total,
        "params_active": e.params_active,
        "params_embedding": e.setup.parameters.embedding,
        "flops_per_token": e.flops_per_token,
        "flops_per_token_done": e.step.products.total,
        "flops_per_token_matrix": e.step.products.matrix,
        "flops_per_token_attention": e.step.products.attention,
        "flops_per_token_head": e.step.products.head,
        "flops_per_token_causal": plan.flops_causal_per_token,
        "tokens": e.tokens,
        "steps": e.steps,
        "mfu": e.mfu,
        "mfu_low": e.mfu_low,
        "mfu_high": e.mfu_high,
        "mfu_counts": MFU_COUNTS,
        "hfu": e.step.hfu,
        "whole_run_share_low": WHOLE_RUN_LOW,
        "whole_run_share": WHOLE_RUN_MID,
        "whole_run_share_high": WHOLE_RUN_HIGH,
        "peak_flops_per_s_per_gpu": e.step.peak_flops_per_s,
        "tokens_per_s_per_gpu": e.tokens_per_s_per_gpu,
        **_range("hours", e.hours),
        **_range("gpu_hours", e.gpu_hours),
        "usd_per_gpu_hour": e.rate.usd_per_device_hour,
        "rate_source": e.rate.source,
        **_range("usd", e.usd),
        **_range("kwh", e.kwh),
        **_range("kg_co2e", e.kg_co2e),
        "watts_per_gpu": e.watts,
        "power_usage_effectiveness": e.power_usage_effectiveness,
        "kg_co2e_per_kwh": e.kg_co2e_per_kwh,
        "sharding": e.setup.sharding,
        "microbatch_sequences": e.microbatch_sequences,
        "memory_gib_per_gpu": parts,
        "memory_total_gib_per_gpu": e.memory_gib_per_gpu,
        "memory_available_gib_per_gpu": e.hardware.visible_memory_gib,
        "activations_gib_by_checkpointing": {
            name: plan.memory_by_checkpointing[recompute][0].activations_gib
            for name, recompute in BY_CHECKPOINTING.items()
        },
        "fits": e.fits,
        "max_microbatch_sequences": e.max_microbatch_sequences,
        "max_microbatch_sequences_by_checkpointing": {
            name: plan.memory_by_checkpointing[recompute][1] for name, recompute in BY_CHECKPOINTING.items()
        },
        "to_fit": e.to_fit,
        "predicted_loss": e.predicted_loss,
        "predicted_loss_error_95": None if extrapolated in (None, True) else law.loss_error_95,
        "predicted_loss_extrapolated": extrapolated,
        "predicted_loss_by_law": {
            name: None if e.tokens is None or e.predicted_loss is None else other.loss(e.params_total, e.tokens)
            for name, other in SCALING_LAWS.items()
        },
        "scaling_law": law.name,
        "scaling_law_source": law.source,
        "tokens_per_param": balance.tokens_per_parameter if balance else None,
        "optimal_tokens_per_param": balance.optimal_tokens_per_parameter if balance else None,
        "training_balance": balance.verdict if balance else None,
        "budget_usd": options.budget_usd,
        "within_budget": plan.within_budget,
        "tokens_for_budget": plan.tokens_for_budget,
        "deadline_hours": options.deadline_hours,
        "meets_deadline": plan.meets_deadline,
        "gpus_for_deadline": plan.gpus_for_deadline,
        "budget_guard": plan.guard,
        "inference_tokens": options.inference_tokens,
        "best_for_budget": _purchase(plan.best),
        "best_for_budget_with_inference": _purchase(plan.best_serving),
        "same_loss_with_inference": None
        if plan.same_loss_serving is None
        else {"params_total": round(plan.same_loss_serving[0]), "tokens": round(plan.same_loss_serving[1])},
        "notes": [*plan.assumed, *([e.no_tokens] if e.no_tokens else []), *e.notes],
    }


def _range(name: str, value: Range | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.mid, f"{name}_low": value.low, f"{name}_high": value.high}


def _purchase(bought: Purchase | None) -> dict[str, Any] | None:
    return None if bought is None else {**dataclasses.asdict(bought), "overrides": list(bought.overrides)}
