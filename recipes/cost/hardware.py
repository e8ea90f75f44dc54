"""The hardware table: peak speed, memory, links, power and list prices of the accelerators in hardware.yaml."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.spelling import did_you_mean

TABLE_PATH = Path(__file__).parent / "hardware.yaml"

ALIASES: Mapping[str, str] = {
    "v100-sxm": "v100",
    "v100-sxm2": "v100",
    "a100": "a100-80gb",
    "a100-sxm": "a100-80gb",
    "a100_40gb": "a100-40gb",
    "a100_80gb": "a100-80gb",
    "a100-pcie": "a100-pcie-80gb",
    "h100": "h100-sxm",
    "h100-80gb": "h100-sxm",
    "h100_80gb": "h100-sxm",
    "h100-sxm5": "h100-sxm",
    "h200-sxm": "h200",
    "b200-sxm": "b200",
    "4090": "rtx-4090",
    "rtx4090": "rtx-4090",
    "5090": "rtx-5090",
    "rtx5090": "rtx-5090",
    "tpuv4": "tpu-v4",
    "tpuv5p": "tpu-v5p",
}

PRICE_KINDS = ("on_demand", "reserved", "spot")

# Of a row: keys that it must have, and those that may be null or absent.
TEXTS = ("title", "interconnect")
NUMBERS = ("memory_gib", "memory_gb_per_s", "interconnect_gb_per_s", "gpus_per_node", "network_gb_per_s")
NUMBERS_OR_NOTHING = ("visible_memory_gib", "watts")
FAMILIES = ("ampere", "hopper")  # that were measured, see measured/


@dataclass(frozen=True)
class Price:
    """A provider's list price, divided by the instance's GPUs."""

    usd_per_gpu_hour: float
    provider: str
    date: str  # year-month it was read, or the earliest it can be of where the source has no date
    source: str  # the page or file it was read from, with its address


@dataclass(frozen=True)
class Gpu:
    """One row of the hardware table. Peaks are dense; None means not published, never zero."""

    name: str
    title: str
    peak_flops_per_s: Mapping[str, float]  # by precision: fp32, tf32, bf16, fp16, fp8
    memory_gib: float
    visible_memory_gib: float  # what CUDA offers a program
    memory_bytes_per_s: float
    interconnect: str
    interconnect_bytes_per_s: float  # to the GPUs of the node, both directions added
    gpus_per_node: int
    network_bytes_per_s: float  # one way, between nodes, for each GPU
    efficiency_like: str  # the measured family whose share of the peak is assumed: ampere or hopper
    watts: float | None
    source: str
    prices: Mapping[str, tuple[Price, ...]]  # by kind: on_demand, reserved, spot
    device_names: tuple[str, ...]

    def peak(self, precision: str) -> float | None:
        """Peak FLOP/s in a Composer precision (`amp_bf16`, `fp32`, ...); None where the chip has no such peak.

        Composer turns TF32 on (composer/devices/device_gpu.py), so `fp32` matrix products run at the TF32 peak.
        """
        kind = precision.removeprefix("amp_")
        if kind == "fp32" and "tf32" in self.peak_flops_per_s:
            kind = "tf32"
        return self.peak_flops_per_s.get(kind)

    @property
    def is_tpu(self) -> bool:
        return self.name.startswith("tpu-")

    def price_range_usd_per_hour(self, kind: str = "on_demand") -> tuple[float, float] | None:
        """Lowest and highest list price of that kind, or None when the table has none."""
        prices = [price.usd_per_gpu_hour for price in self.prices.get(kind, ())]
        return (min(prices), max(prices)) if prices else None


@functools.cache
def load_hardware() -> Mapping[str, Gpu]:
    """Every row of hardware.yaml, by name.

    Raises:
        ValueError: a row without one of its keys, or with one that cannot be read, in words.
        KeyError: a price without one of its keys, or with a source that `price_sources` does not have.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    rows = yaml.load(TABLE_PATH.read_text(encoding="utf-8"), Loader=loader)
    sources = rows.pop("price_sources")
    wrong = [f"{TABLE_PATH.name}: {name}: {text}" for name, row in rows.items() for text in _wrong(row)]
    if wrong:
        raise ValueError("\n".join(wrong))
    return {name: _row(name, row, sources) for name, row in rows.items()}


def find_gpu(name: str) -> Gpu:
    """The row for a name or an alias (`h100` is `h100-sxm`, `a100` is `a100-80gb`), whatever its case.

    Raises:
        ValueError: no such GPU; the message lists the names and the nearest one.
    """
    table = load_hardware()
    key = str(name).strip().lower().replace(" ", "-")
    key = ALIASES.get(key, key)
    if key in table:
        return table[key]
    hint = did_you_mean(key, [*table, *ALIASES])
    raise ValueError(
        f"Unknown GPU {name!r}{hint or '.'} Known: {', '.join(table)}. "
        f"Add a row to recipes/cost/{TABLE_PATH.name} for others."
    )


def gpu_from_device_name(device_name: str) -> Gpu | None:
    """The row for what `torch.cuda.get_device_name()` returns, or None: a GPU it does not name is never guessed."""
    for gpu in load_hardware().values():
        if any(re.fullmatch(pattern, device_name.strip(), re.IGNORECASE) for pattern in gpu.device_names):
            return gpu
    return None


def _wrong(row: Any) -> Iterator[str]:
    """What keeps a row of the file from being read: rows are also written by hand."""
    if not isinstance(row, Mapping):
        yield f"got {row!r}, expected the keys of a GPU, as the other rows have"
        return
    if missing := [key for key in (*TEXTS, *NUMBERS, "peak_tflops", "efficiency_like") if row.get(key) is None]:
        yield f"missing {', '.join(missing)}; see the top of the file, and the other rows"
    for key in (*NUMBERS, *NUMBERS_OR_NOTHING):
        if row.get(key) is not None and not _is_above_0(row[key]):
            yield f"{key}: got {row[key]!r}, expected a number above 0"
    for key in TEXTS:
        if row.get(key) is not None and not isinstance(row[key], str):
            yield f"{key}: got {row[key]!r}, expected text"
    peaks = row.get("peak_tflops")
    if peaks is not None and not (isinstance(peaks, Mapping) and peaks and all(map(_is_above_0, peaks.values()))):
        yield f"peak_tflops: got {peaks!r}, expected 10^12 FLOP/s by precision, such as {{bf16: 312}}"
    like = row.get("efficiency_like")
    if like is not None and like not in FAMILIES:
        yield f"efficiency_like: got {like!r}, expected {' or '.join(FAMILIES)}"
    for key, kind, words in (
        ("device_names", list, "a list of regular expressions"),
        ("usd_per_gpu_hour", Mapping, "lists of prices by kind"),
    ):
        if row.get(key) is not None and not isinstance(row[key], kind):
            yield f"{key}: got {row[key]!r}, expected {words}"


def _is_above_0(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _row(name: str, row: Mapping[str, Any], sources: Mapping[str, str]) -> Gpu:
    visible, prices = row.get("visible_memory_gib"), row.get("usd_per_gpu_hour") or {}
    return Gpu(
        name=name,
        title=row["title"],
        peak_flops_per_s={precision: tflops * 1e12 for precision, tflops in row["peak_tflops"].items()},
        memory_gib=float(row["memory_gib"]),
        visible_memory_gib=float(row["memory_gib"] if visible is None else visible),
        memory_bytes_per_s=row["memory_gb_per_s"] * 1e9,
        interconnect=row["interconnect"],
        interconnect_bytes_per_s=row["interconnect_gb_per_s"] * 1e9,
        gpus_per_node=row["gpus_per_node"],
        network_bytes_per_s=row["network_gb_per_s"] * 1e9,
        efficiency_like=row["efficiency_like"],
        watts=row.get("watts"),
        source=row.get("source") or "",
        prices={kind: tuple(_price(price, sources) for price in each) for kind, each in prices.items()},
        device_names=tuple(row.get("device_names") or ()),
    )


def _price(price: Mapping[str, Any], sources: Mapping[str, str]) -> Price:
    """Of one GPU: the dollars of the source, divided by the GPUs of the instance they are for."""
    return Price(
        usd_per_gpu_hour=price["usd"] / price.get("gpus", 1),
        provider=price["provider"],
        date=str(price["date"]),
        source=sources[price["source"]],
    )
