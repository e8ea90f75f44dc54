"""The hardware table, its names, and the choice of a dollar rate."""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.cost import hardware
from recipes.cost.hardware import ALIASES, PRICE_KINDS, TABLE_PATH, find_gpu, gpu_from_device_name, load_hardware
from recipes.cost.rate import choose_rate

NAMES = [
    "v100",
    "v100-32gb",
    "a100-40gb",
    "a100-80gb",
    "a100-pcie-80gb",
    "a100-pcie-40gb",
    "a40",
    "a10g",
    "l4",
    "l40",
    "l40s",
    "h100-pcie",
    "h100-nvl",
    "h100-sxm",
    "h200",
    "h200-nvl",
    "gh200",
    "b200",
    "gb200",
    "mi300x",
    "rtx-3090",
    "rtx-a6000",
    "rtx-4090",
    "rtx-5090",
    "tpu-v4",
    "tpu-v5p",
]


WITHOUT_PRICES = {"a100-pcie-40gb", "a40", "l40", "rtx-3090", "rtx-a6000"}  # that people own


def test_every_row_is_complete() -> None:
    table = load_hardware()
    assert list(table) == NAMES
    for name, gpu in table.items():
        assert gpu.source
        assert all(peak > 1e12 for peak in gpu.peak_flops_per_s.values())
        assert 0 < gpu.visible_memory_gib <= gpu.memory_gib
        assert gpu.memory_bytes_per_s > 1e11
        assert set(gpu.prices) <= set(PRICE_KINDS)
        assert (gpu.price_range_usd_per_hour("on_demand") is None) == (name in WITHOUT_PRICES)


def test_every_price_has_a_provider_a_date_and_a_source() -> None:
    rows = yaml.safe_load(TABLE_PATH.read_text(encoding="utf-8"))
    sources = rows.pop("price_sources")
    assert all(re.match(r"https://[a-z.]+/\S+ \(|https://pypi\.org/\S+ ", text) for text in sources.values())
    used = set()
    for name, row in rows.items():
        gpu = find_gpu(name)
        for kind, prices in row.get("usd_per_gpu_hour", {}).items():
            assert len(prices) == len(gpu.prices[kind]) > 0
            for written, read in zip(prices, gpu.prices[kind], strict=True):
                assert set(written) - {"gpus"} == {"usd", "provider", "date", "source"}, (name, written)
                used.add(written["source"])
                assert read.usd_per_gpu_hour == written["usd"] / written.get("gpus", 1)
                assert 0 < read.usd_per_gpu_hour < 20
                assert read.provider == written["provider"].strip() != ""
                assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", read.date)
                assert read.source == sources[written["source"]]
    assert used == set(sources)


def test_prices_of_the_sources() -> None:
    h100 = {p.provider: p.usd_per_gpu_hour for p in find_gpu("h100").prices["on_demand"]}
    assert h100["AWS p5.48xlarge us-east-1"] == 55.04 / 8
    assert find_gpu("h100").price_range_usd_per_hour("on_demand") == (2.69, 6.88)
    assert find_gpu("gb200").price_range_usd_per_hour("on_demand") == (10.5, 16)
    for name in ("a100", "h100", "h200"):
        ranges = [find_gpu(name).price_range_usd_per_hour(kind) for kind in PRICE_KINDS]
        lows = [low_high[0] for low_high in ranges if low_high]
        assert lows[-1] == min(lows)  # spot is the cheapest


def test_peaks_of_the_data_sheets() -> None:
    assert find_gpu("a100").peak("amp_bf16") == 312e12
    assert find_gpu("h100").peak("amp_bf16") == 989.5e12
    assert find_gpu("h100").peak("amp_fp8") == 1979e12
    assert find_gpu("a100").peak("fp32") == 156e12  # Composer turns TF32 on
    assert find_gpu("v100").peak("fp32") == 15.7e12
    assert find_gpu("v100").peak("amp_bf16") is None


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_lead_to_rows(alias: str) -> None:
    assert find_gpu(alias.upper()).name == ALIASES[alias]


def test_unknown_gpu_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"Unknown GPU 'h10'; did you mean h100\? Known: v100, v100-32gb, a100-40gb"):
        find_gpu("h10")
    with pytest.raises(ValueError, match=r"Add a row to recipes/cost/hardware\.yaml for others\."):
        find_gpu("abacus")


OWN_ROW = """
rtx-3090:
  title: NVIDIA GeForce RTX 3090
  peak_tflops: {bf16: 71}
  memory_gib: 24
  memory_gb_per_s: 936
  interconnect: PCIe 4 x16
  interconnect_gb_per_s: 64
  gpus_per_node: 4
  network_gb_per_s: 3
  efficiency_like: ampere
"""


@pytest.fixture
def own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes a table to which somebody added rows."""

    def write(rows: str) -> None:
        table = tmp_path / "hardware.yaml"
        table.write_text(TABLE_PATH.read_text(encoding="utf-8") + rows, encoding="utf-8")
        monkeypatch.setattr(hardware, "TABLE_PATH", table)
        load_hardware.cache_clear()

    yield write
    load_hardware.cache_clear()


def test_a_row_of_ones_own_needs_no_more_than_its_speed_and_memory(own_row: Callable[[str], None]) -> None:
    own_row(OWN_ROW)
    gpu = find_gpu("rtx-3090")
    assert (gpu.visible_memory_gib, gpu.watts, gpu.prices, gpu.device_names) == (24, None, {}, ())
    assert choose_rate("rtx-3090").usd_per_device_hour is None
    assert choose_rate("rtx-3090", usd_per_device_hour=0.3).usd_per_device_hour == 0.3


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("  gpus_per_node: 4\n", "", "missing gpus_per_node; see the top of the file"),
        ("memory_gib: 24", "memory_gib: 24 GB", "memory_gib: got '24 GB', expected a number above 0"),
        ("{bf16: 71}", "71", r"peak_tflops: got 71, expected 10\^12 FLOP/s by precision"),
        ("ampere", "turing", "efficiency_like: got 'turing', expected ampere or hopper"),
        (OWN_ROW.strip().partition("\n")[2], "", "got None, expected the keys of a GPU"),
    ],
)
def test_an_ill_row_is_named(own_row: Callable[[str], None], before: str, after: str, message: str) -> None:
    own_row(OWN_ROW.replace(before, after))
    with pytest.raises(ValueError, match=f"hardware.yaml: rtx-3090: {message}"):
        find_gpu("h100")


@pytest.mark.parametrize(
    ("device_name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("A100-SXM4-40GB", "a100-40gb"),
        ("A100-SXM-80GB", "a100-80gb"),  # to older drivers
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("Tesla V100-SXM3-32GB", "v100-32gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        # What is not in the table is not guessed.
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 NVL MIG 1g.12gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L40", "l40"),
        ("NVIDIA A40", "a40"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA A10", None),
        ("", None),
    ],
)
def test_device_names(device_name: str, expected: str | None) -> None:
    gpu = gpu_from_device_name(device_name)
    assert (gpu and gpu.name) == expected


def test_rate_order(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("h100: {on_demand: 2.5, spot: 1.25}\nl4: 0.4\ncpu: 0.1\n")

    stated = choose_rate("h100", usd_per_device_hour=1.75, prices_file=prices)
    assert (stated.usd_per_device_hour, stated.source) == (1.75, "stated: 1.75 USD per device-hour")
    assert choose_rate("h100", prices_file=prices).usd_per_device_hour == 2.5
    assert choose_rate("h100-sxm", prices_file=prices, price_kind="spot").usd_per_device_hour == 1.25
    assert choose_rate("l4", prices_file=prices, price_kind="reserved").usd_per_device_hour == 0.4
    assert choose_rate(None, prices_file=prices).usd_per_device_hour == 0.1

    low, high = find_gpu("h100").price_range_usd_per_hour("on_demand")  # type: ignore[misc]
    table = choose_rate("h100")
    listed = sorted(price.usd_per_gpu_hour for price in find_gpu("h100").prices["on_demand"])
    assert table.usd_per_device_hour == statistics.median(listed)
    assert (table.low, table.high) == (low, high)
    assert "median of list prices from" in table.source
    assert "AWS" in table.source

    absent = choose_rate("a100", prices_file=prices)
    assert absent.usd_per_device_hour is not None
    assert "prices.yaml has no on_demand price for a100-80gb" in absent.source


def test_no_rate_is_not_zero() -> None:
    for nothing in (choose_rate(), choose_rate("cpu"), choose_rate("gb200", price_kind="spot")):
        assert nothing.usd_per_device_hour is None
        assert nothing.source.startswith("no rate known")
    assert choose_rate("cpu", usd_per_device_hour=0.2).usd_per_device_hour == 0.2


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "cheap", True])
def test_bad_rates_are_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"cost\.usd_per_device_hour: got"):
        choose_rate("h100", usd_per_device_hour=bad)


def test_bad_prices_files_are_refused(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    with pytest.raises(ValueError, match=r"prices.yaml does not exist"):
        choose_rate("h100", prices_file=prices)
    for text, message in [
        ("[1, 2]", "expected GPU names"),
        ("h100: {spott: 1}", "got 'spott'"),
        ("h100: -2", r"h100: got -2"),
        ("h100: {on_demand: cheap}", "on_demand: got 'cheap'"),
    ]:
        prices.write_text(text)
        with pytest.raises(ValueError, match=message):
            choose_rate("h100", prices_file=prices)
    prices.write_text(json.dumps({"h800": 3, "h100": 2}))  # one that the table does not have is in nobody's way
    assert choose_rate("h100", prices_file=prices).usd_per_device_hour == 2
    assert "has no on_demand price for l4; it names h800, h100" in choose_rate("l4", prices_file=prices).source
    with pytest.raises(ValueError, match="price_kind: got 'monthly', expected one of on_demand, reserved, spot"):
        choose_rate("h100", price_kind="monthly")


def test_the_package_needs_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, recipes.cost as c\n"
        "[importlib.import_module(f'recipes.cost.{m.name}') for m in pkgutil.iter_modules(c.__path__)]\n"
        "bad = sorted(m for m in ('torch', 'numpy', 'llmfoundry', 'composer', 'scipy') if m in sys.modules)\n"
        "assert not bad, bad\n"
        "others = sorted(m for m in sys.modules if m.startswith('recipes.') and not m.startswith('recipes.cost'))\n"
        "others = [m for m in others if m not in ('recipes.json_lines', 'recipes.spelling')]  # nor do these\n"
        "assert not others, others\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_a_device_that_costs_nothing_is_billed_nothing() -> None:
    assert choose_rate("h100", usd_per_device_hour=0).usd_per_device_hour == 0
