"""What the cost monitor reads off Composer's state, and what it puts on Composer's progress bar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.core import State, TimeUnit
from composer.loggers import Logger
from composer.loggers.progress_bar_logger import ProgressBarLogger

from recipes.cost.duration import in_words
from recipes.cost.hardware import Gpu, gpu_from_device_name


def show(metrics: Mapping[str, float], logger: Logger) -> None:
    """Puts dollars, the projected total, the time left, MFU and goodput beside the loss on the progress bar."""
    shown: dict[str, str] = {}
    if "cost/usd" in metrics:
        total = metrics.get("cost/usd_projected_total")
        shown["usd"] = f"{metrics['cost/usd']:.4g}" + ("" if total is None else f"/{total:.4g}")
    if "cost/hours_left" in metrics:
        shown["left"] = in_words(metrics["cost/hours_left"] * 3600)
    shown |= {
        name: f"{metrics[key]:.0%}"
        for name, key in (("mfu", "throughput/mfu"), ("goodput", "cost/goodput"))
        if key in metrics
    }
    for destination in logger.destinations:
        if isinstance(destination, ProgressBarLogger) and destination.train_pbar is not None:
            bar, metrics_shown = destination.train_pbar.pbar, destination.train_pbar.metrics
            # Composer pads its bar for a wide screen; the figures would not fit on one of 120 columns
            bar.bar_format = re.sub(r"\s{2,}", " ", bar.bar_format.replace("{bar:25}", "{bar:10}"))
            metrics_shown.update(shown)
            bar.set_postfix(metrics_shown, refresh=False)


def device_gpu(state: State) -> Gpu | None:
    if state.device.name != "gpu" or not torch.cuda.is_available():
        return None
    return gpu_from_device_name(torch.cuda.get_device_name())


def flops_per_batch(state: State) -> float:
    """FLOPs of this rank's batch, forward and backward; 0 when the model does not say."""
    model = getattr(state.model, "module", state.model)  # inside DDP
    count: Callable[[Any], float] | None = getattr(model, "flops_per_batch", None)
    return 0.0 if count is None else float(count(state.batch))


def progress(state: State) -> float | None:
    """Fraction of max_duration done, within an epoch too where the loader's length is known."""
    if state.max_duration is None:
        return None
    done = float(state.timestamp.get(state.max_duration.unit).value)
    if state.max_duration.unit == TimeUnit.EPOCH:
        if state.dataloader_len is None:
            return None
        done += int(state.timestamp.batch_in_epoch) / int(state.dataloader_len)
    return done / float(state.max_duration.value)
