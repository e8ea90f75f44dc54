"""A checkpoint of adapters (LoRA) read as the model that it computes.

A matrix W becomes W + lora_alpha / r · B A (Hu et al. 2021, arXiv 2106.09685). Names in a checkpoint are those of the
model with `base_layer`, `lora_A.default` and `lora_B.default` behind a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recipes.weights.tensor_files import Buffers, TensorFiles

BASE, LOW, HIGH = "base_layer", "lora_A.default", "lora_B.default"


def scaling(config: Mapping[str, Any]) -> float:
    """lora_alpha / r, or lora_alpha / √r with use_rslora, as in peft."""
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def has_adapters(files: TensorFiles) -> bool:
    return any(".lora_A." in name for name in files.shapes())


def merged(files: TensorFiles, model: Mapping[str, Any]) -> TensorFiles:
    """The tensors of a checkpoint of a `model:` section, with its adapters added where it has some."""
    return Merged(files, scaling(model.get("peft_config") or {})) if has_adapters(files) else files


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
