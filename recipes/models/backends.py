"""What each attention backend can do, as plain data: importable in milliseconds, without torch.

``attn_impl`` in a recipe is either ``flash``, which means "the best kernel on this device that can do what the model
asks for", or the name of one backend. ``resolve`` turns it into a backend; ``refusals`` says in words why a
combination cannot run, so that a preflight can say it before a GPU is billed. A new kernel is one entry in
``BACKENDS``, its place in ``FLASH``, and one function in ``attention.py``.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recipes.installing import install_command
from recipes.spelling import did_you_mean

# The parts of a model's configuration that some kernel somewhere cannot do, and how a message names them.
FEATURES = {
    "alibi": "ALiBi (alibi: true)",
    "documents": "packed documents kept apart (attn_uses_sequence_id: true)",
    "dropout": "attention dropout (attn_pdrop > 0)",
    "sliding_window": "a sliding window (sliding_window_size)",
    "softcap": "soft-capped scores (attn_logit_softcapping)",
}


@dataclass(frozen=True)
class Backend:
    """One way to compute attention, and its limits.

    ``devices`` are types as torch names them; empty means every device. ``capability`` has the first and the last
    version of CUDA's hardware that it runs on. ``cannot`` maps a key of ``FEATURES`` to what to do instead,
    ``cannot_both`` has pairs of them. ``module`` must be importable on the machine that trains, ``package`` are the
    words with which it is installed; ``half_only`` kernels take 16-bit numbers alone.
    """

    name: str
    devices: tuple[str, ...] = ()
    cannot: Mapping[str, str] = field(default_factory=dict)
    cannot_both: tuple[tuple[str, str], ...] = ()
    min_head_dim: int = 1
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    capability: tuple[float, float] = (0, math.inf)
    module: str | None = None
    package: tuple[str, ...] = ()
    half_only: bool = False


BACKENDS = {
    backend.name: backend
    for backend in (
        # FlexAttention, compiled: biases and masks inside the kernel, blocks without a key skipped
        Backend(
            name="flex",
            devices=("cuda",),
            cannot={"dropout": "set attn_pdrop: 0, or choose attn_impl: sdpa, which holds an S x S bias on a GPU"},
            min_head_dim=16,
        ),
        # flash-attn 2: ALiBi slopes in the kernel, packed documents as sequences of their own
        Backend(
            name="flash2",
            devices=("cuda",),
            max_head_dim=256,
            cannot_both=(("dropout", "softcap"),),
            module="flash_attn.flash_attn_interface",
            package=("flash-attn>=2.6.2", "--no-build-isolation"),  # built here, with the nvcc of torch's CUDA
            capability=(8.0, math.inf),
            half_only=True,
        ),
        # FlexAttention with FlashAttention 4's kernels: the same rules, compiled into them
        Backend(
            name="flash4",
            devices=("cuda",),
            cannot={"dropout": "set attn_pdrop: 0, or choose attn_impl: flash2"},
            min_head_dim=16,
            max_head_dim=128,
            head_dim_multiple=8,
            module="flash_attn.cute.block_sparsity",  # flash-attn 2 brings an older flash_attn.cute, without it
            package=("--pre", "flash-attn-4"),
            capability=(9.0, 11.9),  # others get no score_mod (8.x) or no backward pass with one (12.x)
            half_only=True,
        ),
        # torch's scaled_dot_product_attention: fused, with one bias a batch shared by all layers
        Backend(
            name="sdpa",
            cannot={"softcap": "choose attn_impl: flash (any device) or flex (a GPU)"},
        ),
        # LLM Foundry's plain attention with our bias: S x S scores, every feature; chosen for CPUs only
        Backend(name="math"),
        # LLM Foundry's own attention, untouched: S x S scores in every layer
        Backend(name="torch"),
    )
}

# `flash` on a device: the first of these that can do what the model asks for.
FLASH = {"cuda": ("flex",), "cpu": ("sdpa", "math")}
CHOICES = ("flash", "flex", "flash2", "flash4", "sdpa", "torch")  # `math` is what `flash` falls back to on a CPU


def features(attn_config: Mapping[str, Any]) -> frozenset[str]:
    """Names the ``FEATURES`` that an ``attn_config`` (LLM Foundry's keys, missing ones are off) asks for."""
    asked = {
        "alibi": attn_config.get("alibi", False),
        "documents": attn_config.get("attn_uses_sequence_id", False),
        "dropout": attn_config.get("attn_pdrop", 0.0) > 0,
        "sliding_window": attn_config.get("sliding_window_size", -1) != -1,
        "softcap": attn_config.get("attn_logit_softcapping") is not None,
    }
    return frozenset(name for name, wanted in asked.items() if wanted)


def goes_on_exactly(attn_config: Any) -> bool:
    """Whether a model computes of tokens behind kept keys and values what it does of all in one pass.

    Others than LLM Foundry's, whose ``attn_config`` is no mapping, do. Its temperature tuning counts positions from the
    first of the new tokens, and its `torch` attention wants as many queries as keys where there is a window.
    """
    if not isinstance(attn_config, Mapping):
        return True
    tuned = (attn_config.get("attn_temperature_tuning") or {}).get("attn_scale")
    windowed = attn_config.get("attn_impl") == "torch" and attn_config.get("sliding_window_size", -1) != -1
    return not tuned and not windowed


def refusals(
    attn_impl: str,
    device: str | None = None,
    wanted: Iterable[str] = (),
    head_dim: int | None = None,
    capability: float | None = None,
) -> list[str]:
    """Says why ``attn_impl`` cannot run, one sentence a reason; empty when it can.

    ``device`` is a device type (``cuda``, ``cpu``); None leaves out everything that depends on the device. ``wanted``
    are keys of ``FEATURES``, as ``features`` finds them; leave dropout out for an evaluation. ``capability`` is the
    GPU's CUDA compute capability, such as 9.0.
    """
    if attn_impl == "flash":
        if device is None:
            return []
        reasons = [_reasons(BACKENDS[name], device, wanted, head_dim, capability) for name in _candidates(device)]
        return [] if [] in reasons else reasons[0]
    if attn_impl not in CHOICES and attn_impl not in BACKENDS:
        hint = did_you_mean(attn_impl, CHOICES)
        return [f"attn_impl: {attn_impl!r} is not a backend; expected one of {', '.join(CHOICES)}{hint}"]
    return _reasons(BACKENDS[attn_impl], device, wanted, head_dim, capability)


def resolve(
    attn_impl: str,
    device: str,
    wanted: Iterable[str] = (),
    head_dim: int | None = None,
) -> str:
    """Names the backend that ``attn_impl`` means on a device.

    Raises:
        ValueError: nothing on this device can do what is wanted; the message says why and what to change.
    """
    wanted = tuple(wanted)
    reasons = refusals(attn_impl, device, wanted, head_dim)
    if reasons:
        raise ValueError(" ".join(reasons))
    if attn_impl != "flash":
        return attn_impl
    can = (name for name in _candidates(device) if not _reasons(BACKENDS[name], device, wanted, head_dim))
    return next(can)


def _candidates(device: str) -> tuple[str, ...]:
    return FLASH.get(device, FLASH["cpu"])


def _reasons(
    backend: Backend,
    device: str | None,
    wanted: Iterable[str],
    head_dim: int | None,
    capability: float | None = None,
) -> list[str]:
    reasons = []
    if device is not None and backend.devices and device not in backend.devices:
        reasons.append(
            f"attn_impl: {backend.name} does not run on {device}, only on {', '.join(backend.devices)}; "
            "choose attn_impl: flash, which takes what the device has."
        )
    if head_dim is not None and head_dim < backend.min_head_dim:
        reasons.append(
            f"attn_impl: {backend.name} needs heads of at least {backend.min_head_dim} dimensions, got {head_dim}; "
            "set fewer heads (n_heads), or choose attn_impl: sdpa."
        )
    if head_dim is not None and backend.max_head_dim is not None and head_dim > backend.max_head_dim:
        reasons.append(
            f"attn_impl: {backend.name} takes heads of at most {backend.max_head_dim} dimensions, got {head_dim}; "
            "choose attn_impl: flash."
        )
    if head_dim is not None and head_dim % backend.head_dim_multiple:
        reasons.append(
            f"attn_impl: {backend.name} takes heads of a multiple of {backend.head_dim_multiple} dimensions, got "
            f"{head_dim}; choose attn_impl: flash."
        )
    oldest, newest = backend.capability
    if device in backend.devices and capability is not None and not oldest <= capability <= newest:
        versions = f"{oldest} and newer" if newest == math.inf else f"{oldest} to {newest}"
        reasons.append(
            f"attn_impl: {backend.name} runs on GPUs of compute capability {versions}, this one has {capability}; "
            "choose attn_impl: flash."
        )
    if device in backend.devices and backend.module is not None and not _is_installed(backend.module):
        reasons.append(
            f"attn_impl: {backend.name} needs the module {backend.module}, which is not installed: "
            f"`{install_command(*backend.package)}`, or choose attn_impl: flash, which needs no other package."
        )
    for name in sorted(set(wanted)):
        if name not in FEATURES:
            raise ValueError(f"{name!r} is not a feature of attention; expected some of {', '.join(FEATURES)}.")
        if name in backend.cannot:
            reasons.append(f"attn_impl: {backend.name} cannot do {FEATURES[name]}; {backend.cannot[name]}.")
    for one, other in backend.cannot_both:
        if {one, other} <= set(wanted):
            both = f"{FEATURES[one]} and {FEATURES[other]}"
            reasons.append(f"attn_impl: {backend.name} cannot do both {both}; leave one out.")
    return reasons


def rotation_refusals(attn_config: Mapping[str, Any], head_dim: int, usual_head_dim: int) -> list[str]:
    """Says why `rope_impl: dail` cannot rotate without the flash-attn package, one sentence a reason.

    usual_head_dim: d_model / n_heads, of which dail rotates as many dimensions of a head.
    """
    missing = "the flash-attn package, which is not installed; use"
    reasons = []
    if (attn_config.get("rope_dail_config") or {}).get("type") == "xpos":
        reasons.append(
            f"rope_dail_config.type: xpos needs {missing} 'original', or rope_impl: hf with a rope_hf_config."
        )
    if head_dim != usual_head_dim:
        reasons.append(
            f"rope_impl: dail rotates d_model / n_heads = {usual_head_dim} dimensions of a head, and for head_dim: "
            f"{head_dim} needs {missing} rope_impl: hf, which rotates them all."
        )
    return reasons


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its package is missing, or does not load here
        return False


def precision_refusals(attn_impl: str, precision: str, is_sharded: bool = False) -> list[str]:
    """Says why a backend cannot run at Composer's ``precision``, one sentence a reason.

    With amp_fp8 Composer leaves what is no layer of Transformer Engine's in the type of the weights: fp32, unless FSDP
    casts them.
    """
    stays_fp32 = precision == "fp32" or (precision == "amp_fp8" and not is_sharded)
    if attn_impl in BACKENDS and BACKENDS[attn_impl].half_only and stays_fp32:
        return [f"attn_impl: {attn_impl} takes 16-bit numbers only; set precision: amp_bf16, or attn_impl: flash"]
    return []
