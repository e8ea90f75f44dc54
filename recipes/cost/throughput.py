"""How long a training step takes: a sum of physical parts with coefficients fitted once to published measurements.

    S tokens a sequence, b sequences a micro-batch, T = b S tokens, L layers, d width, N parameters, g devices

    matrix products   FLOPs / (peak * m * d / (d + d0))         m: share of the peak on a wide model, by GPU family
    attention         FLOPs / (peak * a * h / (h + h0))         h: head dimension; full S² is counted, as in MFU,
                                                                but for a sliding window
    elementwise       T (L d e + V l) / memory bandwidth        norms, activations, residuals; logits of V words;
                                                                what RWKV's `wkv` moves, counted and not fitted
    communication     c * bytes / link speed + t g L            gathers and reductions of a micro-batch, and latency
    optimizer         N / shards * o / memory bandwidth         once a step

Matrix products and attention run three times (forward, two backward), four with activation checkpointing (products
with the selective one still three); products with frozen weights once less (LoRA), all once more with a reference
(DPO). The twelve coefficients are in measured/coefficients.json, written by `python -m recipes.cost.fit`, which also
says how well they predict rows that were kept from them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.cost.flops import FlopsPerToken, flops_per_token, llm_foundry_flops_per_token
from recipes.cost.hardware import Gpu
from recipes.cost.setup import Setup

# Bytes that a channel of a token moves in recipes/models/wkv.py, forward and backward: 41 and 99 fp32 numbers are read
# or written by its operations, those of the groups of groups (an eighth, a 64th, …) included.
WKV_BYTES = 4 * (41 + 99)
COEFFICIENTS_PATH = Path(__file__).parent / "measured" / "coefficients.json"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step on every device, by part."""

    matrix_s: float
    attention_s: float
    elementwise_s: float
    communication_s: float
    optimizer_s: float
    tokens_per_device: float
    flops_per_token: int  # LLM Foundry's count
    products: FlopsPerToken  # of a token, as often as the step does them
    peak_flops_per_s: float  # at the run's precision

    @property
    def mfu(self) -> float:
        """LLM Foundry's FLOPs over the peak."""
        return self.flops_per_token * self.tokens_per_s_per_gpu / self.peak_flops_per_s

    @property
    def hfu(self) -> float:
        """Those of the products that are done over the peak: MFU counts three passes through every weight."""
        return self.products.total * self.tokens_per_s_per_gpu / self.peak_flops_per_s

    @property
    def total_s(self) -> float:
        return self.matrix_s + self.attention_s + self.elementwise_s + self.communication_s + self.optimizer_s

    @property
    def hidden_speedup(self) -> float:
        """How much faster the step would be with all communication behind computation."""
        return self.total_s / (self.total_s - self.communication_s)

    @property
    def tokens_per_s_per_gpu(self) -> float:
        return self.tokens_per_device / self.total_s


@functools.cache
def load_coefficients() -> Mapping[str, float]:
    return json.loads(COEFFICIENTS_PATH.read_text(encoding="utf-8"))["coefficients"]


def step_time(
    setup: Setup, gpu: Gpu, coefficients: Mapping[str, float] | None = None, flops: FlopsPerToken | None = None
) -> StepTime:
    """Predicts one optimizer step of `setup`, with its micro-batch, on `gpu`. `flops` spares counting them again.

    Raises:
        ValueError: the GPU has no peak at the recipe's precision.
    """
    c = coefficients or load_coefficients()
    flops = flops or flops_per_token(setup.model, setup.seq_len)
    assert setup.microbatch_sequences is not None, "choose the micro-batch first"
    s = setup.shape
    peak, matrix_peak, attention_peak = _peaks(gpu, setup.precision, c["fp8"])
    passes = setup.passes
    products = FlopsPerToken(
        matrix=setup.matrix_passes * flops.matrix,
        attention=passes * flops.attention,
        head=setup.head_passes * flops.head,
    )
    tokens = setup.microbatch_sequences * setup.tokens_per_item  # T
    microbatches = setup.device_batch_sequences / setup.microbatch_sequences  # the last one may be smaller

    matrix_rate = matrix_peak * c[f"matrix_{gpu.efficiency_like}"] * s.d_model / (s.d_model + c["width"])
    attention_rate = attention_peak * c[f"attention_{gpu.efficiency_like}"] * s.head_dim / (s.head_dim + c["head_dim"])
    matrix_s = tokens * (products.matrix + products.head) / matrix_rate
    attention_s = tokens * products.attention / attention_rate
    element_bytes = s.n_layers * s.d_model * c["elementwise_bytes"] * passes / 3 + s.vocab_size * c["logit_bytes"]
    element_bytes += 0 if s.attends else s.n_layers * s.d_model * WKV_BYTES * passes / 3
    elementwise_s = tokens * element_bytes * (setup.compute_bytes / 2) / gpu.memory_bytes_per_s
    every_microbatch_s, every_step_s = _communication_s(setup, gpu, c)
    optimizer_s = setup.trained_parameters / shards_of(setup, gpu) * c["optimizer_bytes"] / gpu.memory_bytes_per_s

    # Where the batch does not divide by the devices, the busiest sets the pace and the others wait.
    tokens_per_device = setup.global_batch_sequences * setup.tokens_per_item / setup.gpus
    return StepTime(
        matrix_s=matrix_s * microbatches,
        attention_s=attention_s * microbatches,
        elementwise_s=elementwise_s * microbatches,
        communication_s=every_microbatch_s * setup.grad_accum + every_step_s,
        optimizer_s=optimizer_s,
        tokens_per_device=tokens_per_device,
        flops_per_token=llm_foundry_flops_per_token(setup.model, setup.seq_len),
        products=products,
        peak_flops_per_s=peak,
    )


def _peaks(gpu: Gpu, precision: str, fp8_speedup: float) -> tuple[float, float, float]:
    """Peaks for MFU, for matrix products and for attention, which FP8 training leaves in 16 bits."""
    peak = gpu.peak(precision)
    if peak is None:
        known = ", ".join(gpu.peak_flops_per_s)
        raise ValueError(
            f"precision: {gpu.name} has no published {precision} peak; it has {known}. Choose one of these."
        )
    if precision.removeprefix("amp_") != "fp8":
        return peak, peak, peak
    half = gpu.peak("bf16")
    assert half is not None, "a GPU with FP8 has bf16"
    return peak, half * fp8_speedup, half


def shards_of(setup: Setup, gpu: Gpu) -> int:
    """Devices over which weights, gradients and optimizer state are spread."""
    if setup.sharding == "NO_SHARD":
        return 1
    if setup.shard_degree is not None:
        return setup.shard_degree
    return min(setup.gpus, gpu.gpus_per_node) if "HYBRID" in setup.sharding else setup.gpus


def _communication_s(setup: Setup, gpu: Gpu, c: Mapping[str, float]) -> tuple[float, float]:
    """Seconds a micro-batch and seconds a step that communication adds.

    A gather or a reduction of B bytes over g devices moves B (1 - 1/g) through every link; across nodes all GPUs of a
    node share the load of its network. FULL_SHARD gathers weights twice a micro-batch and SHARD_GRAD_OP once; both
    scatter gradients, and copies of the model then reduce their shards. An unsharded model reduces its gradients once
    a step. Reducing takes twice the bytes of a scatter.
    """
    if setup.gpus == 1:
        return 0.0, 0.0
    n, trained, shards = setup.parameters.total, setup.trained_parameters, shards_of(setup, gpu)

    def seconds(n_bytes: float, devices: int, collectives: int) -> float:
        in_node = min(devices, gpu.gpus_per_node)
        nodes = devices / in_node
        links = n_bytes * (1 - 1 / in_node) / (gpu.interconnect_bytes_per_s / 2)
        network = n_bytes * (1 - 1 / nodes) / (gpu.network_bytes_per_s * in_node)
        latency = c["latency_us"] * 1e-6 * devices * setup.shape.n_layers * collectives
        return c["communication"] * (links + network) + latency

    if shards == 1:
        return 0.0, seconds(2 * setup.reduce_bytes * trained, setup.gpus, 1)
    gathers = 2 if setup.sharding in ("FULL_SHARD", "HYBRID_SHARD") else 1
    gathers += setup.has_reference
    sharded = seconds(gathers * setup.compute_bytes * n + setup.reduce_bytes * trained, shards, gathers + 1)
    if shards < setup.gpus:
        share = 1 - shards / setup.gpus
        sharded += c["communication"] * 2 * setup.reduce_bytes * trained / shards * share / gpu.network_bytes_per_s
    return sharded, 0.0
