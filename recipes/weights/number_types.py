"""Types of numbers by safetensors' names of them: their sizes, torch's names, and one type written as another.

Conversion is numpy's, tile by tile in the processor's cache: it gives torch's bits without the three seconds and 700 MB
that torch takes to be there. numpy has no bfloat16; it is a float32 of which 16 bits are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}  # bytes
BEYOND_FP16 = "a number is beyond the largest of fp16, 65,504: bf16 can hold it"
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_TILE = 2**18  # numbers: 1 MiB of float32
_NAN = 0x7FC00000


def torch_type(dtype: str) -> Any:
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}
    return getattr(torch, names.get(dtype) or f"int{dtype[1:]}")


def convert(numbers: np.ndarray, dtype: str, other: str, into: np.ndarray) -> None:
    """Write bytes (uint8) of one floating-point type as those of another, rounded to nearest, ties to even.

    Raises ValueError: a type that is not floating-point, a number that float16 cannot hold.
    """
    if dtype not in _NUMPY:
        raise ValueError(f"got numbers of type {dtype}, expected one of {', '.join(_NUMPY)}")
    source, target = numbers.view(_NUMPY[dtype]), into.view(_NUMPY[other])
    scratch = np.empty(min(_TILE, source.size), np.uint32)
    for at in range(0, source.size, _TILE):
        tile, out = source[at : at + _TILE], target[at : at + _TILE]
        single = _as_float32(tile, dtype)
        if other == "BF16":
            _round_to_bfloat16(single, out, scratch[: tile.size])
            continue
        try:
            with np.errstate(over="raise"):
                np.copyto(out, single, casting="unsafe")
        except FloatingPointError:
            raise ValueError(BEYOND_FP16) from None


def _as_float32(tile: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (tile.astype(np.uint32) << 16).view(np.float32)
    return tile.astype(np.float32, copy=False)


def _round_to_bfloat16(single: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    """The upper half of each number, after adding just under half of its last bit, or half where that bit is odd."""
    bits = single.view(np.uint32)
    if np.isnan(single.max()):  # NaNs have bits that the addition could carry over
        bits = np.where(np.isnan(single), np.uint32(_NAN), bits)
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 1, out=scratch)
    np.add(scratch, 0x7FFF, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.right_shift(scratch, 16, out=scratch)
    np.copyto(out, scratch, casting="unsafe")
