"""LoRA in the language model: peft's layers put in by the recipe's `model.peft_config`, found again in checkpoints.

A matrix W becomes W + lora_alpha / r · B A, of which only A and B are trained (Hu et al. 2021, arXiv 2106.09685). The
names in a checkpoint are those of the model with `base_layer`, `lora_A.default` and `lora_B.default` behind a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recipes.models.sharded import local_rows
from recipes.weights.tensor_files import Buffers, TensorFiles

BASE, LOW, HIGH = "base_layer", "lora_A.default", "lora_B.default"


def scaling(config: Mapping[str, Any]) -> float:
    """lora_alpha / r, or lora_alpha / √r with use_rslora, as in peft."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def target_problems(model: Mapping[str, Any]) -> list[str]:
    """What is wrong with `model.peft_config.target_modules`, in words: modules that the model does not have."""
    config = model.get("peft_config") or {}
    wanted = config.get("target_modules")
    there = modules_of(model)
    if not wanted or isinstance(wanted, str):
        return [f"got {wanted!r}, expected a list of some of {', '.join(there)}"]
    return [
        f"there is no module {name} in this model; it has {', '.join(there)}" for name in wanted if name not in there
    ]


def modules_of(model: Mapping[str, Any]) -> list[str]:
    """Names of the matrices in a block of the model that a `model:` section describes."""
    fused = (model.get("attn_config") or {}).get("fused_qkv", True)
    gated = (model.get("ffn_config") or {}).get("ffn_type") == "mptglu"
    attention = ["Wqkv"] if fused else ["Wq", "Wk", "Wv"]
    return [*attention, "out_proj", "up_proj", "down_proj", *(["gate_proj"] if gated else [])]


def add_lora(model: Any, config: Mapping[str, Any]) -> None:
    """Put adapters into an MPTForCausalLM in place and freeze everything else.

    Names, shapes and the forward pass of the rest stay, so checkpoints, FSDP and export find what they know.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = {k: v for k, v in config.items() if k not in ("peft_type", "task_type")}
    inject_adapter_in_model(LoraConfig(**settings), model, "default")


def reset_lora(model: Any, seed: int) -> None:
    """Fill adapters as peft does, A at random and B with zeros, with the same numbers however the model is sharded.

    A model that was built on the meta device has anything in them.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            for low, high in ((layer.lora_A[name].weight, layer.lora_B[name].weight) for name in layer.lora_A):
                bound = 1 / math.sqrt(low.shape[1])  # kaiming_uniform_ with a = √5
                whole = torch.empty(low.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
                local, first = local_rows(low)
                local.copy_(whole[first : first + local.shape[0]])
                local_rows(high)[0].zero_()


class Merged(TensorFiles):
    """A checkpoint with adapters, read as the model that it computes: every matrix with its B A added."""

    readers = 1  # it keeps the last A

    def __init__(self, files: TensorFiles, scale: float) -> None:
        super().__init__({})
        self._files, self._scale = files, scale
        self._low: tuple[str, Any] = ("", None)
        self._high: tuple[str, Any] = ("", None)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for name, shape in self._files.shapes().items():
            if ".lora_" not in name:
                found[name.replace(f".{BASE}.", ".")] = shape
        return found

    def copy_rows(self, name: str, first: int, count: int, dtype: str, to: int, at: int) -> bool:
        return not self._is_sum(name) and self._files.copy_rows(name, first, count, dtype, to, at)

    def rows_as(self, dtype: str, name: str, first: int, count: int, buffers: Buffers) -> memoryview:
        if self._is_sum(name):
            return super().rows_as(dtype, name, first, count, buffers)
        return self._files.rows_as(dtype, name, first, count, buffers)

    def _is_sum(self, name: str) -> bool:
        module, _, kind = name.rpartition(".")
        return f"{module}.{BASE}.{kind}" in self._files.shapes()

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Any:
        module, _, kind = name.rpartition(".")
        base = f"{module}.{BASE}.{kind}"
        if base not in self._files.shapes():
            return self._files.rows(name, first, count)
        rows = self._files.rows(base, first, count)
        if kind != "weight":
            return rows
        if self._low[0] != module:
            # both kept: between rows of the base a sharded checkpoint would load a whole one anew
            self._low = (module, self._files.rows(f"{module}.{LOW}.weight").float())
            self._high = (module, self._files.rows(f"{module}.{HIGH}.weight").float())
        high = self._high[1][first:] if count is None else self._high[1][first : first + count]
        return (rows.float() + self._scale * (high @ self._low[1])).to(rows.dtype)  # (rows, in)


def has_adapters(files: TensorFiles) -> bool:
    return any(".lora_A." in name for name in files.shapes())
