"""Which dollar rate a run is billed at, and the sentence that says where it came from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.cost.hardware import PRICE_KINDS, Gpu, find_gpu


@dataclass(frozen=True)
class Rate:
    """Dollars for one device for one hour; None means that no rate is known, which is not the same as free."""

    usd_per_device_hour: float | None
    source: str
    low: float | None = None  # the range behind it, where the rate is the median of one
    high: float | None = None


def choose_rate(
    gpu: str | None = None,
    usd_per_device_hour: float | None = None,
    prices_file: str | Path | None = None,
    price_kind: str = "on_demand",
) -> Rate:
    """Picks the rate: a stated one, else the prices file's, else the median of the hardware table's list prices.

    The arguments are the keys of a recipe's `cost:` section. `gpu` is a name of the hardware table, or None on a
    machine without a known accelerator, where only a stated rate or the prices file's `cpu` entry can be right.

    Raises:
        ValueError: a negative, infinite or NaN rate, an unknown price kind or GPU, or an unreadable prices file.
    """
    if price_kind not in PRICE_KINDS:
        raise ValueError(f"cost.price_kind: got {price_kind!r}, expected one of {', '.join(PRICE_KINDS)}.")
    row = None if gpu is None or gpu.strip().lower() == "cpu" else find_gpu(gpu)
    if usd_per_device_hour is not None:
        usd = _checked_usd("cost.usd_per_device_hour", usd_per_device_hour)
        return Rate(usd, f"stated: {usd:g} USD per device-hour", usd, usd)
    not_in_file = ""
    if prices_file is not None:
        path, name = Path(prices_file), "cpu" if row is None else row.name
        prices = _read(path)
        stated = _price(path, prices, name, price_kind)
        if stated is not None:
            return Rate(stated, f"{path.name}: {stated:g} USD per device-hour ({price_kind})", stated, stated)
        not_in_file = f" ({path.name} has no {price_kind} price for {name}; it names {', '.join(map(str, prices))})"
    if row is None:
        return Rate(None, f"no rate known: no GPU named; state cost.usd_per_device_hour{not_in_file}")
    return _from_table(row, price_kind, not_in_file)


def _from_table(row: Gpu, price_kind: str, not_in_file: str) -> Rate:
    price_range = row.price_range_usd_per_hour(price_kind)
    if price_range is None:
        return Rate(
            None,
            f"no rate known: the hardware table has no {price_kind} price for {row.name}; "
            f"state cost.usd_per_device_hour{not_in_file}",
        )
    low, high = price_range
    prices = row.prices[price_kind]
    names = ", ".join(f"{p.provider} {p.usd_per_gpu_hour:.2f} ({p.date})" for p in prices)
    # the median, so that one dear list price does not move it
    median = statistics.median(p.usd_per_gpu_hour for p in prices)
    how = "list price" if low == high else f"median of list prices from {low:.2f} to {high:.2f}"
    return Rate(median, f"{row.name} {price_kind}, {how}: {names}{not_in_file}", low, high)


def cost_section(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of its bill: `cost:`, and over it `callbacks.cost_monitor`, which means the same."""
    callbacks = recipe.get("callbacks")
    monitor = callbacks.get("cost_monitor") if isinstance(callbacks, Mapping) else None
    return {**(recipe.get("cost") or {}), **(monitor or {})}


def rate_of(cost: Mapping[str, Any], gpu: str | None) -> Rate:
    """The rate that a recipe's `cost_section` gives for a GPU by its name, None: a CPU. Raises as choose_rate."""
    stated = {key: cost.get(key) for key in ("usd_per_device_hour", "prices_file")}
    return choose_rate(gpu, **stated, price_kind=cost.get("price_kind") or "on_demand")


def _read(path: Path) -> Mapping[Any, Any]:
    """A prices file is a YAML or JSON mapping of GPU name to a number, or to numbers by price kind."""
    if not path.is_file():
        raise ValueError(
            f"cost.prices_file: {path} does not exist; expected a YAML file such as 'h100: {{spot: 2.10}}'."
        )
    try:
        prices = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cost.prices_file: {path} is not YAML: {reason}") from None
    if not isinstance(prices, Mapping):
        raise ValueError(f"cost.prices_file: {path} holds {type(prices).__name__}, expected GPU names with prices.")
    return prices


def _price(path: Path, prices: Mapping[Any, Any], name: str, price_kind: str) -> float | None:
    """Of the device by that name; those that the hardware table does not have are nobody's."""
    for key, entry in prices.items():
        if not _is(str(key), name):
            continue
        if not isinstance(entry, Mapping):
            # A bare number is the price whatever the kind: the user has one rate.
            return _checked_usd(f"{path.name}: {key}", entry)
        unknown = [kind for kind in entry if kind not in PRICE_KINDS]
        if unknown:
            raise ValueError(f"{path.name}: {key}: got {unknown[0]!r}, expected one of {', '.join(PRICE_KINDS)}.")
        if price_kind in entry:
            return _checked_usd(f"{path.name}: {key}.{price_kind}", entry[price_kind])
    return None


def _is(written: str, name: str) -> bool:
    try:
        return written.lower() == name or find_gpu(written).name == name
    except ValueError:
        return False


def _checked_usd(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key}: got {value!r}, expected dollars per device-hour as a number, e.g. 2.99.")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{key}: got {value}, expected a finite rate of 0 or more in dollars per device-hour.")
    return float(value)
