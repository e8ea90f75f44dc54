"""The memory of a training step, by torch's own tracker on tensors that have sizes and no numbers: no GPU is needed.

The model that a recipe trains is sharded as a run shards it and goes forward and backward on a micro-batch, beside the
gradients of the one before, while `MemTracker` adds up the storage that is alive. What it cannot see: CUDA's context,
room that the allocator cannot use, temporaries inside a kernel, the buckets in which DDP sends gradients, and the next
block's weights, which a GPU gathers while it computes. The optimizer's step comes when all else is gone; its states are
there from the start.

Fake tensors cannot be compiled, so attention is torch's fused kernel without a bias. It keeps for the backward pass
what FlexAttention keeps: queries, keys, values, output and a number a query and head.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from composer.core.precision import Precision
from composer.distributed import prepare_distributed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from recipes import parts
from recipes.config.load import Recipe
from recipes.cost.setup import read_setup, shards
from recipes.models import attention, loss
from recipes.models.compiling import checkpoint_blocks, checkpoint_by_operation
from recipes.training.preferences import PreferenceModel
from recipes.training.processes import parallelism

FP32_ON_A_GPU = ("layer_norm", "softmax.int", "log_softmax.int")
META = {"sharding_strategy": "FULL_SHARD"}  # what lets a model be built without numbers


def simulated_bytes(recipe: Recipe, gpus: int, microbatch: int) -> int:
    """Most bytes that one of `gpus` devices holds at a time in a step of `microbatch` sequences (with DPO: pairs).

    Raises ValueError where the model cannot be built.
    """
    parts.register_components()
    settings = {**parts.DEFAULTS, **copy.deepcopy(dict(recipe.values))}
    setup = read_setup(recipe.values, gpus)
    with _a_group_of(gpus), _as_on_a_gpu():
        model = _model(settings)
        _lay_out(model, settings, gpus)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            moments = setup.optimizer_bytes // setup.trained_bytes  # of the optimizer, in the type of what it steps
            states = [torch.empty_like(each) for each in trained for _ in range(moments)]
            for each in trained:
                each.grad = torch.empty_like(each)
            batch = _batch(microbatch, setup.seq_len, is_dpo=setup.has_reference)
            tracker = _Tracker()
            tracker.track_external(model, *states)
            is_half = settings["precision"] != "fp32"
            with tracker, _autocast_of_a_gpu(is_half):
                with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                    outputs = model(batch)  # which Composer keeps until there are others
                    step_loss = model.loss(outputs, batch)
                step_loss.backward()
    return max(held["Total"] for held in tracker.get_tracker_snapshot("peak").values())


def _model(settings: dict[str, Any]) -> Any:
    """The model without numbers, with what is put around its blocks and its loss."""
    model = parts.build_model({**settings["model"], "init_device": "meta"}, None, META, None)
    if settings.get("dpo"):
        model = PreferenceModel(model, **settings["dpo"])
        with_padding = model.model.forward  # which it asks about, and tensors without numbers cannot say
        model.model.forward = lambda attention_mask, **others: with_padding(**others)
    if settings.get("selective_checkpointing"):
        checkpoint_by_operation(model)
    return model


def _lay_out(model: Any, settings: dict[str, Any], gpus: int) -> None:
    """Give this device its part of the model, as Composer does."""
    fsdp = settings["fsdp_config"] if gpus > 1 else None
    if shards(fsdp):
        config = (parallelism(fsdp, None, model) or {})["fsdp"]
        as_gpu = {"meta_init": lambda _: None, "_validate_precision": lambda *_: None}  # a CPU is refused 16 bits
        with patch.multiple(prepare_distributed, **as_gpu):
            prepare_distributed.parallelize_composer_model(model, None, config, Precision(settings["precision"]))
    elif (settings["fsdp_config"] or {}).get("activation_checkpointing"):
        checkpoint_blocks(model)


def _batch(microbatch: int, seq_len: int, is_dpo: bool) -> dict[str, torch.Tensor]:
    shape = (microbatch, 2, seq_len) if is_dpo else (microbatch, seq_len)
    ids = torch.zeros(shape, dtype=torch.int64)
    return {"input_ids": ids, "labels": ids, "sequence_id": ids, **({"attention_mask": ids} if is_dpo else {})}


@contextmanager
def _autocast_of_a_gpu(enabled: bool) -> Iterator[None]:
    """Inside, a CPU's autocast computes in fp32 what a GPU's does.

    LLM Foundry's norms ask whether a GPU's is on, which torch turns on only where there is a GPU; they ask in the
    backward pass as well, where a block is computed again.
    """
    with torch.library._scoped_library("aten", "IMPL") as operations:
        for name in FP32_ON_A_GPU:
            operations.impl(name, _in_fp32(operator.attrgetter(name)(torch.ops.aten)), "AutocastCPU")
        torch.set_autocast_enabled("cuda", enabled)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)


class _RmsNorm(torch.autograd.Function):
    """A GPU's is one kernel, which keeps its input; a CPU's is five, which keep more."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _rms_norm(x: torch.Tensor, shape: Any, weight: torch.Tensor, eps: Any = None) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):  # then a GPU's computes in fp32
        x, weight = x.float(), weight.float()
    return _RmsNorm.apply(x, weight)


def _in_fp32(operation: Callable[..., Any]) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def run(*arguments: Any, **options: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return operation(*map(cast, arguments), **{name: cast(value) for name, value in options.items()})

    return run


class _Tracker(MemTracker):
    """torch's, without what it keeps of each module, and what it asks of parameters, which frozen ones refuse."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        of_modules, self.memory_tracking = self.memory_tracking, {}  # looked through after each operation
        super()._update_peak_stats(peak_state)
        self.memory_tracking = of_modules

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)


@contextmanager
def _a_group_of(gpus: int) -> Iterator[None]:
    """This process, of no group yet, is the first of so many; what it sends to the others goes nowhere."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """The sizes that a GPU works in, and an answer where a tensor without numbers is asked a question."""
    chunks = {**loss.SCORES_OF_A_CHUNK, "cpu": loss.SCORES_OF_A_CHUNK["cuda"]}
    with (
        patch.object(loss, "SCORES_OF_A_CHUNK", chunks),
        patch.object(attention, "needs_bias", lambda *_: False),
        patch.object(torch.nn.functional, "rms_norm", _rms_norm),
        patch.object(FakeTensor, "__bool__", lambda _: True),
    ):
        yield
