"""LoRA in the language model: peft's layers put in by `model.peft_config`; weights/merged.py reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recipes.models.sharded import local_rows


def add_lora(model: Any, config: Mapping[str, Any]) -> None:
    """Put adapters into an MPTForCausalLM in place and freeze everything else.

    Names, shapes and the forward pass of the rest stay, so checkpoints, FSDP and export find what they know. Adapters
    are in fp32 whatever the type of the weights: in 16 bits the optimizer's small steps would be rounded away.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = {k: v for k, v in config.items() if k not in ("peft_type", "task_type")}
    inject_adapter_in_model(LoraConfig(**settings), model, "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
