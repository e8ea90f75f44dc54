"""What the devices draw: counted by NVML where there is an NVIDIA driver, else watts times time.

meter = choose_meter(gpu, watts_per_device=None, devices=64, local_devices=8)
meter.device_kwh(wall_s)   # of all devices so far; None when nothing is known
meter.basis                # where the figure comes from, in words
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from recipes.cost.hardware import Gpu

log = logging.getLogger(__name__)

READ_EVERY_S = 5.0  # NVML answers in up to a millisecond: not once a step
MJ_PER_KWH = 3.6e9  # millijoules


class Meter(Protocol):
    basis: str

    def device_kwh(self, wall_s: float) -> float | None: ...


class WattsMeter:
    """Watts times time times devices; None where the watts are not known."""

    def __init__(self, watts_per_device: float | None, devices: int, source: str) -> None:
        self._watts = None if watts_per_device is None else watts_per_device * devices
        self.basis = source

    def device_kwh(self, wall_s: float) -> float | None:
        return None if self._watts is None else self._watts * wall_s / 3.6e6


class NvmlMeter:
    """The drivers' energy counters of this node's GPUs, scaled to all nodes, from the moment it was made."""

    def __init__(self, nvml: Any, uuids: list[str], devices: int, now: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._now = nvml, now
        self._handles = [nvml.nvmlDeviceGetHandleByUUID(uuid.encode()) for uuid in uuids]
        self._scale = devices / len(uuids)
        self._start_mj = self._read()
        self._read_at, self._kwh = now(), 0.0
        self._has_warned = False
        others = f", taken for all {devices} devices" if devices > len(uuids) else ""
        self.basis = f"NVML energy counters of {len(uuids)} GPU{'s' * (len(uuids) > 1)}{others}"

    def device_kwh(self, wall_s: float) -> float | None:
        if self._now() - self._read_at >= READ_EVERY_S:
            self._read_at = self._now()
            try:
                self._kwh = max(self._kwh, (self._read() - self._start_mj) / MJ_PER_KWH * self._scale)
            except Exception as error:  # a driver that was taken away from a running container; CUDA goes on
                if not self._has_warned:
                    log.warning("energy: NVML answers no more (%s): what it counted until now stands.", error)
                self._has_warned = True
        return self._kwh

    def _read(self) -> int:
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)


def choose_meter(gpu: Gpu | None, watts_per_device: float | None, devices: int, local_devices: int) -> Meter:
    """Stated watts, else NVML, else the watts of the hardware row, else nothing."""
    if watts_per_device is not None:
        return WattsMeter(watts_per_device, devices, f"stated: {watts_per_device:g} W a device × time")
    if torch.cuda.is_available():
        try:
            import pynvml

            pynvml.nvmlInit()
            visible = range(min(local_devices, torch.cuda.device_count()))
            uuids = [f"GPU-{str(torch.cuda.get_device_properties(i).uuid).removeprefix('GPU-')}" for i in visible]
            return NvmlMeter(pynvml, uuids, devices)
        except Exception:  # no library, no permission, or a GPU without the counter: the row's watts then
            pass
    if gpu is not None and gpu.watts is not None:
        return WattsMeter(gpu.watts, devices, f"{gpu.watts:g} W a {gpu.name} (board power limit) × time")
    return WattsMeter(None, devices, "not known: no NVML and no watts; state cost.watts_per_device")
