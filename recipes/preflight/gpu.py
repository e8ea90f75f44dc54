"""The GPUs of this machine, and what computing on them takes: driver, compiler, kernels. Asked without torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.installing import install_command
from recipes.launch import GPU_DEVICES
from recipes.models.backends import features, precision_refusals, refusals, resolve, rotation_refusals

NVIDIA = GPU_DEVICES[0]
LIBCUDA = "libcuda.so.1"
TRITON_BACKENDS = ("flex", "flash4")  # compiled for the model on the machine that trains


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch could use, judged without importing torch."""
    return _is_there() and unusable() is None


def _is_there() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(device.exists() for device in GPU_DEVICES)


def fp8_lacks() -> Iterator[str]:
    """What amp_fp8 needs and this machine with a GPU does not have."""
    if not importlib.util.find_spec("transformer_engine"):
        yield f"amp_fp8 needs the package transformer-engine (`{install_command('transformer-engine[pytorch]')}`)"
    for name, capability in _compute_capabilities():
        if capability < 8.9:  # Ada; what Transformer Engine asks for
            yield f"{name} computes at {capability}, amp_fp8 needs 8.9 or more: an Ada, Hopper or newer GPU"
            return


def _compute_capabilities() -> list[tuple[str, float]]:
    """(name, CUDA compute capability) of each NVIDIA GPU, asked of the driver; empty where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()
        return [(name, float(capability)) for name, capability in (line.rsplit(", ", 1) for line in lines)]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def kernel_refusals(
    model: Mapping[str, Any], precision: str, is_training: bool = True, is_sharded: bool = False
) -> list[str]:
    """Why the attention of an MPT's `model:` section cannot run on this machine, a sentence a reason."""
    attention = model.get("attn_config") or {}
    implementation = attention.get("attn_impl", "flash")
    usual_width = model.get("d_model", 2048) // model.get("n_heads", 16)
    width = model.get("head_dim") or usual_width
    wanted = features(attention) - (set() if is_training else {"dropout"})
    device, capability = "cpu", None
    if has_gpu():
        device = "cuda"
        capability = min((version for _, version in _compute_capabilities()), default=None)
    found = refusals(implementation, device, wanted, width, capability)
    rotates = attention.get("rope") and attention.get("rope_impl", "dail") == "dail"
    if rotates and not has_flash_attn_2():
        found += rotation_refusals(attention, width, usual_width)
    found = found or precision_refusals(implementation, precision, is_sharded)
    if device == "cuda" and not found and resolve(implementation, device, wanted, width) in TRITON_BACKENDS:
        found = [f"attn_impl: {implementation} {lack}" for lack in triton_lacks()]
    return found


def has_flash_attn_2() -> bool:
    """Whether flash-attn 2 is installed, of whose package FlashAttention 4 alone has a part."""
    package = importlib.util.find_spec("flash_attn")
    folders = (package.submodule_search_locations or ()) if package else ()
    return any(Path(folder, "flash_attn_interface.py").is_file() for folder in folders)


def triton_lacks() -> Iterator[str]:
    """What a kernel of Triton's asks for on its first call, beside the GPU, and this machine does not have."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        yield "compiles its kernel here and needs a C compiler: install gcc (or name one in CC)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's, as Triton has it
    own = sysconfig.get_paths(scheme=scheme)["include"]
    compilers = [os.environ.get(name, "").split(os.pathsep) for name in ("CPATH", "C_INCLUDE_PATH")]
    if not any(Path(folder, "Python.h").is_file() for folder in (own, *compilers[0], *compilers[1])):
        yield f"compiles its kernel here and needs {own}/Python.h: install Python's headers (python3-dev)"


def unusable() -> str | None:
    """Why torch cannot use the NVIDIA GPU that is here; None where it can, or where there is none."""
    if not _is_there() or not NVIDIA.exists():
        return None
    needed, there = _cuda_of_torch(), _cuda_of_driver()
    if there is None:
        return f"the GPU's driver is not here ({LIBCUDA}): a container is started with --gpus all for that"
    if needed and there < needed:
        mend = "update the driver, or install a PyTorch that was built for it"
        return f"the GPU's driver is for CUDA {there} and older, this PyTorch for CUDA {needed}: {mend}"
    return None


def _cuda_of_driver() -> int | None:
    """The newest major version of CUDA that the driver's library has; None without one."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL(LIBCUDA).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value // 1000


def _cuda_of_torch() -> int | None:
    """The major version of CUDA that torch was built for; None for a build without."""
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.origin:
        return None
    found = re.search(r"^cuda\b.*= '(\d+)\.", Path(torch.origin).with_name("version.py").read_text(), re.M)
    return int(found[1]) if found else None
