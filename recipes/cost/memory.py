"""Memory of a training step on one device, by part, and the smallest change that makes it fit.

    N parameters, g devices that share them, T tokens of a micro-batch, L layers, d width, V vocabulary

    weights        4 N / g (fp32 master copy), and LoRA's; this and the next two are half as large with
                   master_weights_dtype, but for adapters, which stay in fp32
    gradients      4 N / g (fp32; the optimizer needs them in the type of the weights); with LoRA of the adapters alone
    optimizer      8 N / g for Adam, 4 N / g for Lion; likewise
    gathered       what a sharded step holds in full: two blocks of weights and one of gradients, and the embedding;
                   all weights with SHARD_GRAD_OP; a low-precision copy of all without sharding, and on several
                   devices the buckets in which DDP sends gradients, as large as these
    activations    T L times what the backward pass of a block needs; with activation checkpointing T L d, with the
                   selective one that and what products and attention put out; plus one block's worth while it is
                   computed again
    logits         T V times 14 bytes with torch's loss (16-bit logits and gradient; fp32 copy, log-softmax and
                   gradient), 4 with LLM Foundry's fused one; with ours 8 times the scores of a chunk (scores and
                   probabilities in fp32; 12 with soft-capping or DPO), and what it keeps: 6 V d where the head is
                   trained (the weight's gradient in fp32, and a chunk's share) and 4 T d (the gradient of the hidden
                   states, the last norm's input)
    overhead       CUDA context and communication buffers, and 4 % of the rest for what the allocator cannot use

Saved by a block, in numbers a token, with attention that never writes S² scores (Korthikanti et al. 2022, arXiv
2205.05198, section 4, without dropout): the inputs of two norms and of two projections (4 d), queries, keys and
values, the attention's output, and up and activated (2 F) or gate, up, activated and product (4 F) of the FFN:
16 d, or 32 d bytes in 16 bits, for MPT. A norm that is not of the low-precision kind is computed in fp32: its
input is kept in fp32, and its output once for every product that takes it. RWKV's keeps 14 d and 2 F (inputs of
norms and of the seven projections, gates and what they multiply), and `wkv` four numbers a channel in fp32.
bench/memory.py compares all of this with what torch counts in the step itself.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from recipes.cost.hardware import Gpu
from recipes.cost.parameters import adapted, adapter_rank
from recipes.cost.setup import KEEP_WEIGHTS, Setup
from recipes.cost.throughput import shards_of

GIB = 2**30
CONTEXT_GIB = 1.0  # CUDA context, cuBLAS and NCCL buffers
FRAGMENTATION = 0.04
FP32_BYTES = 4  # of what norms, losses and `wkv` compute in, whatever the weights are
LOGIT_BYTES_FUSED = 4  # logits and their gradient in 16 bits
LOGIT_BYTES_TORCH = 14  # 16-bit logits and gradient, and fp32 copy, log-softmax and gradient
LOGIT_BYTES_OF_A_CHUNK, WITH_ANOTHER_COPY = 8, 12
SCORES_OF_A_CHUNK = 2**27  # on a GPU, as in recipes/models/loss.py
MOST_GPUS = 4096


@dataclass(frozen=True)
class MemoryEstimate:
    """GiB on the busiest device by part; they add up to `total_gib`."""

    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    gathered_gib: float
    activations_gib: float
    logits_gib: float
    overhead_gib: float

    @property
    def total_gib(self) -> float:
        return sum(self.by_part().values())

    def by_part(self) -> dict[str, float]:
        return {field.name.removesuffix("_gib"): getattr(self, field.name) for field in dataclasses.fields(self)}


def parts_gib(estimate: MemoryEstimate) -> dict[str, float]:
    """GiB by part as a person asks for them; `buffers` is what is gathered to compute, CUDA's own and fragmentation."""
    return {
        "weights": estimate.weights_gib,
        "gradients": estimate.gradients_gib,
        "optimizer": estimate.optimizer_gib,
        "activations": estimate.activations_gib,
        "logits": estimate.logits_gib,
        "buffers": estimate.gathered_gib + estimate.overhead_gib,
    }


def memory(setup: Setup, gpu: Gpu) -> MemoryEstimate:
    """Memory of `setup`, which has a micro-batch, on each of its devices. `gpu` says how many share a node."""
    assert setup.microbatch_sequences is not None, "choose the micro-batch first"
    s, n, trained = setup.shape, setup.parameters.total, setup.trained_parameters
    shards = shards_of(setup, gpu)
    tokens = setup.microbatch_sequences * setup.tokens_per_item
    block = tokens * _saved_numbers_per_token(setup) * setup.compute_bytes  # what one block's backward pass needs
    # of every block, until then; without sharding what goes from block to block is of the weights' type
    residual = setup.master_bytes if setup.sharding == "NO_SHARD" else setup.compute_bytes
    entering = tokens * s.d_model * residual
    products = tokens * _put_out_by_products(setup) * setup.compute_bytes
    kept = {"nothing": block, "operations": entering + products, "blocks": entering}
    activations: float = s.n_layers * kept[setup.recompute]
    into_the_stream = 2 * tokens * s.d_model * setup.compute_bytes  # kept, but not read again
    again = {"nothing": 0, "operations": block - products + into_the_stream, "blocks": block}
    working = again[setup.recompute] + tokens * _on_their_way_back(setup, residual)
    if setup.attn_impl == "torch":
        scores = setup.microbatch_sequences * setup.sequences_per_item * s.n_heads * setup.seq_len**2
        # the softmax's output, in fp32 and 16 bits, or the product before it
        score_bytes = {"nothing": 6, "operations": setup.compute_bytes, "blocks": 0}
        activations += score_bytes[setup.recompute] * scores * s.n_layers
        working += 12 * scores  # scores, bias and softmax of the layer at work
    logits = _logits(setup, tokens)
    gathered, of_blocks = _gathered(setup)
    # The logits are gone when the first block's backward pass begins, so only the larger of the two is held.
    beyond = max(0, working + of_blocks - logits)
    activations += max(0, beyond - of_blocks)
    parts = {
        "weights": (setup.master_bytes * n + (setup.trained_bytes * trained if setup.is_frozen else 0)) / shards,
        "gradients": setup.trained_bytes * trained / shards,
        "optimizer": setup.optimizer_bytes * trained / shards,
        "gathered": gathered + min(beyond, of_blocks),
        "activations": activations,
        "logits": logits,
    }
    gib = {f"{name}_gib": n_bytes / GIB for name, n_bytes in parts.items()}
    overhead = CONTEXT_GIB + FRAGMENTATION * sum(gib.values())
    return MemoryEstimate(**gib, overhead_gib=overhead)


def fits(setup: Setup, gpu: Gpu) -> bool:
    return memory(setup, gpu).total_gib <= gpu.visible_memory_gib


def largest_microbatch(setup: Setup, gpu: Gpu) -> int:
    """Most sequences a device can take at once, at most its share of the global batch; 0 when not even one fits."""
    low, high = 0, setup.device_batch_sequences
    while low < high:  # memory grows with the micro-batch, so halving the interval finds the last that fits
        middle = (low + high + 1) // 2
        if fits(dataclasses.replace(setup, microbatch_sequences=middle), gpu):
            low = middle
        else:
            high = middle - 1
    return low


def smallest_change(setup: Setup, gpu: Gpu) -> str | None:
    """The first of these that makes a step fit, cheapest first, as a sentence; None when it fits as it is.

    A smaller micro-batch costs nothing but a little speed, 16-bit weights that adapters leave as they are some of their
    digits, checkpointing a third more compute, sharding communication, and more GPUs money.
    """
    if fits(setup, gpu):
        return None
    microbatch = largest_microbatch(setup, gpu)
    if microbatch:
        return f"set device_train_microbatch_size: {microbatch}"
    one = dataclasses.replace(setup, microbatch_sequences=1)
    attempts: list[tuple[str, dict[str, Any]]] = []
    if setup.attn_impl == "torch":
        attempts.append(("model.attn_config.attn_impl: flash", {"attn_impl": "flash"}))
    if setup.loss == "torch":
        attempts.append(("model.loss_fn: fused_crossentropy", {"loss": "chunked"}))
    if setup.is_frozen and setup.master_bytes == FP32_BYTES:
        attempts.append(("model.master_weights_dtype: bf16", {"master_bytes": FP32_BYTES // 2}))
    if setup.recompute != "blocks":
        selective = " without selective_checkpointing" if setup.recompute == "operations" else ""
        turned_on = {} if setup.has_fsdp or setup.gpus == 1 else {"sharding": "FULL_SHARD"}  # by any key of its section
        attempts.append(
            (f"fsdp_config.activation_checkpointing: true{selective}", {"recompute": "blocks", **turned_on})
        )
    if setup.gpus > 1 and setup.sharding != "FULL_SHARD":
        attempts.append(("fsdp_config.sharding_strategy: FULL_SHARD", {"sharding": "FULL_SHARD"}))
    keys: list[str] = []
    for key, change in attempts:
        if fits(dataclasses.replace(one, **change), gpu):
            return _sentence([key], one, setup)
        one = dataclasses.replace(one, **change)
        keys.append(key)
        if fits(one, gpu):
            return _sentence(keys, one, setup)
    fewest, most = setup.gpus + 1, min(setup.global_batch_sequences, MOST_GPUS)
    shared = [gpus for gpus in range(fewest, most + 1) if setup.global_batch_sequences % gpus == 0]
    for gpus in shared:
        more = dataclasses.replace(one, gpus=gpus, sharding="FULL_SHARD" if setup.gpus == 1 else one.sharding)
        if fits(more, gpu):
            return _sentence([*keys, f"{gpus} GPUs with fsdp_config.sharding_strategy: {more.sharding}"], more, setup)
    needed, has = memory(one, gpu).total_gib, gpu.visible_memory_gib
    beyond = 2 * max(shared, default=setup.gpus)
    other_batch = f", or a global_train_batch_size that {beyond} GPUs can share" if beyond <= MOST_GPUS else ""
    return f"use a GPU with more memory{other_batch}: here {needed:.0f} GiB are needed and {gpu.name} has {has:.0f}"


def _sentence(keys: list[str], changed: Setup, original: Setup) -> str:
    if changed.microbatch_sequences != original.microbatch_sequences:
        keys = [*keys, "device_train_microbatch_size: 1"]
    return "set " + " and ".join(keys)


def _saved_numbers_per_token(setup: Setup) -> int:
    """Numbers that the backward pass of one block reads, a token; see the module's docstring."""
    s = setup.shape
    if not s.attends:
        return 14 * s.d_model + 4 * s.d_model * FP32_BYTES // setup.compute_bytes + 2 * s.ffn_hidden_size
    attn = setup.model.get("attn_config") or {}
    query_key = s.q_width + s.kv_width
    numbers = 4 * s.d_model + 2 * s.q_width + 2 * s.kv_width
    numbers += query_key if s.qk_ln or s.qk_gn else 0  # before and after their norms
    numbers += query_key if attn.get("rope") else 0  # before and after rotation
    if setup.compute_bytes < FP32_BYTES and not str(setup.model.get("norm_type", "low_precision")).startswith("low_"):
        products = (1 if attn.get("fused_qkv", True) else 3) + s.ffn_matrices - 1
        numbers += products * s.d_model  # 2 d for two inputs in twice the bytes, and outputs beyond one each
    numbers += _of_adapters(setup)
    return numbers + s.ffn_hidden_size * (2 if s.ffn_matrices == 2 else 4)


def _of_adapters(setup: Setup) -> int:
    """Numbers a token that LoRA keeps of a block: its narrow products, and what dropout has made of their inputs."""
    lora = setup.model.get("peft_config")
    if not lora:
        return 0
    inputs = sum(taken for taken, _ in adapted(setup.shape, lora))
    dropped = inputs + inputs // setup.compute_bytes if lora.get("lora_dropout") else 0  # and a mask of a byte each
    return dropped + adapter_rank(lora) * len(adapted(setup.shape, lora))


def _put_out_by_products(setup: Setup) -> int:
    """Numbers a token that a block's matrix products put out, and its attention (which FlexAttention makes again)."""
    s = setup.shape
    mixing = s.q_width + 2 * s.kv_width + s.q_width if s.attends else 3 * s.d_model
    ffn = (s.ffn_matrices - 1) * s.ffn_hidden_size + s.d_model
    return mixing + s.d_model + ffn + (0 if s.attends else s.d_model)  # RWKV's FFN has a gate


def _on_their_way_back(setup: Setup, residual_bytes: int) -> int:
    """Bytes a token of gradients in a block's backward pass, beyond what the block has saved, where they are most."""
    s = setup.shape
    stream = 2 * s.d_model * residual_bytes
    stream += 2 * s.d_model * setup.compute_bytes if setup.is_frozen else 0  # through adapters and past them
    if not s.attends:
        return stream + 10 * s.d_model * FP32_BYTES  # ten numbers a channel of `wkv`, which scans back over the tokens
    # of the FFN: what gradients have passed is let go of, but gate and up part there
    return stream + (s.ffn_matrices - 1) * s.ffn_hidden_size * setup.compute_bytes


def _logits(setup: Setup, tokens: int) -> int:
    """Bytes of what the loss of `tokens` tokens holds; see the module's docstring."""
    s = setup.shape
    scores = tokens * s.vocab_size
    if setup.loss == "torch":
        return scores * LOGIT_BYTES_TORCH
    if setup.loss == "fused":
        return scores * LOGIT_BYTES_FUSED
    of_weight = 0 if setup.is_frozen else s.vocab_size * (FP32_BYTES + setup.compute_bytes)
    gradients = s.d_model * (of_weight + 2 * tokens * setup.compute_bytes)
    copies = setup.has_reference or setup.model.get("final_logit_softcapping")
    return min(scores, SCORES_OF_A_CHUNK) * (WITH_ANOTHER_COPY if copies else LOGIT_BYTES_OF_A_CHUNK) + gradients


def _gathered(setup: Setup) -> tuple[float, float]:
    """Bytes of weights and gradients held in full by a device: all along, and while blocks have their backward pass."""
    n, per_number = setup.parameters.total, setup.compute_bytes
    if setup.sharding == "NO_SHARD":
        buckets = setup.trained_bytes * setup.trained_parameters if setup.gpus > 1 else 0
        copies = n * per_number if per_number < setup.master_bytes else 0  # autocast keeps one of every weight
        return buckets + copies, 0
    embedding = max(setup.parameters.token_embedding, setup.parameters.head)
    block = setup.parameters.non_embedding / setup.shape.n_layers
    gradients = block * max(per_number, setup.reduce_bytes) * setup.trained_parameters / n
    if setup.sharding in KEEP_WEIGHTS:
        return n * per_number, gradients
    return embedding * per_number, 2 * block * per_number + gradients
