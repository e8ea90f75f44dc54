"""What a recipe says about a training step: the numbers that speed and memory depend on, read from plain keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recipes.cost.architecture import ModelShape, model_shape, positive_integer
from recipes.cost.parameters import ParameterCount, adapter_parameters, count_parameters
from recipes.cost.run_length import read_duration

# Bytes of optimizer state a parameter, in fp32: two moments for Adam, one for Lion.
OPTIMIZER_BYTES: Mapping[str, int] = {
    "decoupled_adamw": 8,
    "fused_adamw": 8,
    "adalr_lion": 4,
    "clip_lion": 4,
    "decoupled_lionw": 4,
    "no_op": 0,
}
SHARDINGS = ("FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "_HYBRID_SHARD_ZERO2", "NO_SHARD")
KEEP_WEIGHTS = ("SHARD_GRAD_OP", "_HYBRID_SHARD_ZERO2")  # gathered weights stay until the backward pass is done
PADDED = ("finetuning", "preferences")  # loaders whose rows may end before max_seq_len
DROPS_LAST = ("preferences",)  # loaders that leave out an epoch's last batch, if it is no whole one, unless told not to
MICROBATCH_AUTO = "auto"
# What is done again for a backward pass. `selective_checkpointing` repeats a block's operations but matrix products;
# FlexAttention's compiled kernel it does not see, and repeats. `activation_checkpointing` repeats whole blocks.
Recompute = Literal["nothing", "operations", "blocks"]
CHECKPOINTING: Mapping[Recompute, str] = {"nothing": "off", "operations": "selective", "blocks": "on"}


@dataclass(frozen=True)
class Setup:
    """One training step on `gpus` devices. Batches are in sequences of `seq_len` tokens."""

    model: Mapping[str, Any]
    shape: ModelShape
    parameters: ParameterCount
    seq_len: int
    gpus: int
    global_batch_sequences: int
    microbatch_sequences: int | None  # per device; None: the largest that fits
    precision: str  # Composer's name, e.g. amp_bf16
    trained_parameters: int  # all, or LoRA's
    sequences_per_item: int  # of a batch: DPO's are pairs
    has_reference: bool  # one more forward pass, of DPO's model without adapters
    has_fsdp: bool  # whether the recipe has an fsdp_config, even one that does not shard
    sharding: str
    shard_degree: int | None  # devices of one copy of the model, where fsdp_config states it
    recompute: Recompute
    master_bytes: int  # of a number in the weights
    trained_bytes: int  # of a number in what the optimizer steps, its gradients and its state: adapters are in fp32
    compute_bytes: int  # of a number in the matrix products
    reduce_bytes: int  # of a gradient on the wire
    optimizer_bytes: int  # of state a parameter
    loss: Literal["chunked", "fused", "torch"]  # ours, which keeps no logits; LLM Foundry's fused one; torch's
    attn_impl: str
    notes: tuple[str, ...] = field(default=())

    @property
    def tokens_per_item(self) -> int:
        return self.seq_len * self.sequences_per_item

    @property
    def is_frozen(self) -> bool:
        """Whether adapters are trained and no other weight is."""
        return self.trained_parameters < self.parameters.total

    @property
    def passes(self) -> int:
        """Through a block, in forward passes: its own, two backward, and what is computed again."""
        return 3 + (self.recompute != "nothing") + self.has_reference

    @property
    def matrix_passes(self) -> int:
        """Of a block's products: frozen weights want no gradient."""
        return self.passes - self.is_frozen - (self.recompute == "operations")

    @property
    def head_passes(self) -> int:
        again = self.has_reference and self.loss == "chunked"  # pairs' scores are computed anew for their gradient
        return 3 + self.has_reference + again - self.is_frozen

    @property
    def device_batch_sequences(self) -> int:
        """Sequences (DPO: pairs) of a step on the busiest device."""
        return -(-self.global_batch_sequences // self.gpus)

    @property
    def grad_accum(self) -> int:
        assert self.microbatch_sequences is not None, "choose the micro-batch first"
        return -(-self.device_batch_sequences // self.microbatch_sequences)


def read_setup(recipe: Mapping[str, Any], gpus: int) -> Setup:
    """Reads the step from a resolved recipe with LLM Foundry's key names.

    Raises:
        ValueError: a key that is missing or a value that cannot be counted, named with the way to mend it.
    """
    gpus = positive_integer("gpus", gpus)
    seq_len = positive_integer("max_seq_len", _required(recipe, "max_seq_len"))
    model = {"max_seq_len": seq_len, **_required(recipe, "model")}
    shape = model_shape(model)
    fsdp = recipe.get("fsdp_config") or {}
    precision = str(recipe.get("precision", "amp_bf16"))
    optimizer = str((recipe.get("optimizer") or {}).get("name", "decoupled_adamw"))
    is_dpo, lora = bool(recipe.get("dpo")), model.get("peft_config")
    notes = []
    if optimizer not in OPTIMIZER_BYTES:
        notes.append(f"optimizer {optimizer!r} is not known: its state is taken to be Adam's 8 bytes a parameter")
    if fsdp.get("activation_cpu_offload"):
        notes.append("activation_cpu_offload is not modelled: activations are counted on the GPU")
    if model.get("activation_checkpointing_target") and fsdp.get("activation_checkpointing"):
        notes.append("activation_checkpointing_target is not modelled: every block is taken to be checkpointed")
    if recipe.get("tp_config"):
        notes.append("tp_config is not modelled: every device is taken to hold whole layers")
    if lora:
        notes.append("LoRA: gradients and optimizer state of the adapters alone, no products for gradients of the rest")
    overrides = ((model.get("block_overrides") or {}).get("overrides") or {}).values()
    if any("sliding_window_size" in (override.get("attn_config") or {}) for override in overrides):
        notes.append("sliding_window_size of block_overrides is not modelled: layers attend as model.attn_config says")
    if not shape.attends:
        notes.append("RWKV: the time of `wkv` is counted from the bytes that it moves; no measured run was fitted to")
    if is_dpo:
        notes.append("DPO: an item of a batch is two sequences; one more forward pass, without adapters")
    batch = positive_integer("global_train_batch_size", _required(recipe, "global_train_batch_size"))
    microbatch = _microbatch(recipe.get("device_train_microbatch_size", MICROBATCH_AUTO))
    if microbatch is not None:
        microbatch = min(microbatch, -(-batch // gpus))  # a device cannot take more than its share
    half = precision != "fp32"
    master_bytes = 2 if model.get("master_weights_dtype") else 4  # it may be a 16-bit type alone
    trained_bytes = 4 if lora else master_bytes
    parameters = count_parameters(model)
    mixed = fsdp.get("mixed_precision", "DEFAULT")
    return Setup(
        model=model,
        shape=shape,
        parameters=parameters,
        seq_len=seq_len,
        gpus=gpus,
        global_batch_sequences=batch,
        microbatch_sequences=microbatch,
        precision=precision,
        trained_parameters=adapter_parameters(shape, lora) if lora else parameters.total,
        sequences_per_item=sequences_per_item(recipe),
        has_reference=is_dpo,
        has_fsdp=recipe.get("fsdp_config") is not None,
        sharding=_sharding(recipe.get("fsdp_config"), gpus),
        shard_degree=shard_degree(fsdp, gpus),
        recompute=_recompute(recipe),
        master_bytes=master_bytes,
        trained_bytes=trained_bytes,
        compute_bytes=2 if half and _mode(mixed) != "FULL" else 4,
        reduce_bytes=_reduce_bytes(mixed, half),
        optimizer_bytes=OPTIMIZER_BYTES.get(optimizer, 8) * trained_bytes // 4,
        loss="torch" if model.get("loss_fn") == "torch_crossentropy" else "chunked",
        attn_impl=str((model.get("attn_config") or {}).get("attn_impl", "flash")),
        notes=tuple(notes),
    )


def steps_of_run(recipe: Mapping[str, Any], dataset_tokens: int | None = None) -> int | None:
    """Global batches of `max_duration`; None when it is in epochs and the dataset's size is not given.

    63900ba counts batches of global_train_batch_size * max_seq_len tokens, 1000sp sequences, 1e9tok tokens. A batch is
    trained on as a whole, and so are those of an epoch, whose last one is left out with `drop_last`.
    """
    written = _required(recipe, "max_duration")
    duration = read_duration(written)
    if duration is None or duration.unit in ("dur", "sec"):  # Composer refuses seconds
        raise ValueError(f"max_duration: got {written!r}, expected a number and a unit such as 63900ba, 1ep or 2e9tok.")
    amount, unit = int(duration.amount), duration.unit
    if unit == "ba":
        return amount
    loader = recipe.get("train_loader")
    if unit == "tok":
        if isinstance(loader, Mapping) and loader.get("name") in PADDED:
            return None  # Composer counts no padding, of which only the data knows how much there is
        return -(-amount // tokens_per_step(recipe))
    if unit == "sp":
        return -(-amount // positive_integer("global_train_batch_size", _required(recipe, "global_train_batch_size")))
    if unit != "ep" or dataset_tokens is None:
        return None
    per_epoch, left = divmod(dataset_tokens, tokens_per_step(recipe))
    return amount * (per_epoch + bool(left and not drops_last(recipe)))


def drops_last(recipe: Mapping[str, Any]) -> bool:
    """Whether the training loader leaves out what is no whole batch; where the recipe is silent, by its default."""
    loader = recipe.get("train_loader")
    return isinstance(loader, Mapping) and bool(loader.get("drop_last", loader.get("name") in DROPS_LAST))


def tokens_of_run(recipe: Mapping[str, Any], dataset_tokens: int | None = None) -> int | None:
    """Tokens of `steps_of_run`; None where it is none, or there is not one step."""
    steps = steps_of_run(recipe, dataset_tokens)
    return steps * tokens_per_step(recipe) if steps else None


def why_no_tokens(recipe: Mapping[str, Any], dataset_tokens: int | None = None) -> str | None:
    """Why `tokens_of_run` is none, with what helps; None where it is known."""
    steps, written = steps_of_run(recipe, dataset_tokens), recipe["max_duration"]
    if steps:
        return None
    if steps == 0:
        data = "" if dataset_tokens is None else f", the data {dataset_tokens:,}"
        return f"max_duration {written} is not one step: a batch is {tokens_per_step(recipe):,} tokens{data}"
    if str(written).endswith("tok"):
        known = "give it in batches (ba), sequences (sp) or epochs (ep) to have hours and dollars"
        return f"max_duration {written} counts no padding, of which only the data knows how much there is: {known}"
    return f"max_duration {written} depends on the data: --dataset-tokens N to have hours and dollars"


def tokens_per_step(recipe: Mapping[str, Any]) -> int:
    """Tokens of a global batch, padding included."""
    batch = positive_integer("global_train_batch_size", _required(recipe, "global_train_batch_size"))
    return batch * positive_integer("max_seq_len", _required(recipe, "max_seq_len")) * sequences_per_item(recipe)


def sequences_per_item(recipe: Mapping[str, Any]) -> int:
    """Sequences that one item of a batch is: two answers to a prompt with DPO."""
    return 2 if recipe.get("dpo") else 1


def _required(recipe: Mapping[str, Any], key: str) -> Any:
    if recipe.get(key) is None:
        raise ValueError(f"{key}: missing from the recipe; a plan needs it.")
    return recipe[key]


def _recompute(recipe: Mapping[str, Any]) -> Recompute:
    if (recipe.get("fsdp_config") or {}).get("activation_checkpointing"):
        return "blocks"
    return "operations" if recipe.get("selective_checkpointing") else "nothing"


def _microbatch(value: Any) -> int | None:
    if value == MICROBATCH_AUTO:
        return None
    if isinstance(value, float) and 0 < value < 1:
        return 1  # a sequence split over devices: at least one is counted
    return positive_integer("device_train_microbatch_size", value)


def _sharding(fsdp: Mapping[str, Any] | None, gpus: int) -> str:
    if fsdp is None or gpus == 1:
        return "NO_SHARD"
    sharding = str(fsdp.get("sharding_strategy", "FULL_SHARD")).upper()
    if sharding not in SHARDINGS:
        raise ValueError(f"fsdp_config.sharding_strategy: got {sharding!r}, expected one of {', '.join(SHARDINGS)}.")
    if sharding == "NO_SHARD":
        return sharding
    reshard = fsdp.get("reshard_after_forward")  # FSDP2's name for it, which comes first, as in the run
    keeps_weights = sharding in KEEP_WEIGHTS if reshard is None else not reshard
    if "HYBRID" in sharding:
        return "_HYBRID_SHARD_ZERO2" if keeps_weights else "HYBRID_SHARD"
    return "SHARD_GRAD_OP" if keeps_weights else "FULL_SHARD"


def shards(fsdp: Mapping[str, Any] | None) -> bool:
    """Whether a recipe's `fsdp_config` spreads the model over devices, where there are several."""
    return fsdp is not None and fsdp.get("sharding_strategy") != "NO_SHARD"


def shard_degree(fsdp: Mapping[str, Any], gpus: int) -> int | None:
    """Devices of one copy of the model, where fsdp_config states it. Raises ValueError where they cannot be so many."""
    degree, replicas = fsdp.get("data_parallel_shard_degree", -1), fsdp.get("data_parallel_replicate_degree")
    if degree in (-1, None):
        if replicas is None:
            return None
        return gpus // _divisor("fsdp_config.data_parallel_replicate_degree", replicas, gpus)
    degree = _divisor("fsdp_config.data_parallel_shard_degree", degree, gpus)
    if replicas is not None and replicas * degree != gpus:
        text = f"{replicas} replicas × {degree} shards are {replicas * degree} devices, the run has {gpus}"
        raise ValueError(f"fsdp_config.data_parallel_shard_degree: {text}.")
    return degree


def _divisor(key: str, value: Any, gpus: int) -> int:
    value = positive_integer(key, value)
    if gpus % value:
        raise ValueError(f"{key}: got {value}, expected a divisor of {gpus} GPUs.")
    return value


def _mode(mixed: Any) -> str:
    return "" if isinstance(mixed, Mapping) else str(mixed).upper()


def _reduce_bytes(mixed: Any, half: bool) -> int:
    """Composer's mixed_precision: PURE reduces gradients in the compute type, DEFAULT and FULL in fp32."""
    if isinstance(mixed, Mapping):
        return 2 if str(mixed.get("reduce_dtype")) in ("bf16", "bfloat16", "float16", "fp16", "f16", "amp_bf16") else 4
    mode = _mode(mixed)
    if mode not in ("PURE", "DEFAULT", "FULL"):
        raise ValueError(f"fsdp_config.mixed_precision: got {mixed!r}, expected PURE, DEFAULT or FULL.")
    return 2 if mode == "PURE" and half else 4
