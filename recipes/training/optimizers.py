"""Optimizers beside LLM Foundry's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class FusedAdamW(torch.optim.AdamW):
    """Composer's `decoupled_adamw`, same hyper-parameters and updates, as torch's fused kernel.

    Decoupled weight decay shrinks a weight by weight_decay · lr / (first lr) a step; torch's by weight_decay · lr. So
    torch is given weight_decay / (first lr), of a group of parameters its own where it has one.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-5,
    ) -> None:
        if lr <= 0:
            raise ValueError(f"fused_adamw: lr: got {lr}, expected more than 0; weight decay is relative to it")
        groups = list(params)
        if groups and isinstance(groups[0], dict):
            groups = [_relative(group, lr, weight_decay) for group in groups]
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay / lr, fused=True)


def _relative(group: dict[str, Any], lr: float, weight_decay: float) -> dict[str, Any]:
    first_lr = group.get("lr", lr)
    if first_lr <= 0:
        raise ValueError(f"fused_adamw: lr of a group: got {first_lr}, expected more than 0")
    return {**group, "weight_decay": group.get("weight_decay", weight_decay) / first_lr}
