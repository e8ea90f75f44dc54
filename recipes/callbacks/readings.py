"""What the cost monitor reads off Composer's state, and what it puts on Composer's progress bar."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.core import State, Time, TimeUnit
from composer.loggers import Logger
from composer.loggers.progress_bar_logger import ProgressBarLogger

from recipes.cost.duration import in_words
from recipes.cost.figures import usd
from recipes.cost.hardware import Gpu, gpu_from_device_name

_WIDE_COLUMNS = 110  # from so many on the bar itself and both times are shown
_WIDE = "{l_bar}{bar:10}{r_bar}{bar:-1b}"
_NARROW = "{percentage:3.0f}% {n_fmt}/{total_fmt} {rate_fmt}{postfix}{bar:-1b}"


def show(metrics: Mapping[str, float], logger: Logger) -> None:
    """Puts dollars, the projected total, the time left, MFU and goodput beside the loss on the progress bar.

    Dollars come first, then the loss: what does not fit on a narrow terminal is cut off at the end.
    """
    money: dict[str, str] = {}
    if "cost/usd" in metrics:
        total = metrics.get("cost/usd_projected_total")
        money["usd"] = usd(metrics["cost/usd"])[1:] + ("" if total is None else f"/{usd(total)[1:]}")
    more: dict[str, str] = {}
    if "cost/hours_left" in metrics:
        more["left"] = in_words(metrics["cost/hours_left"] * 3600)
    more |= {
        name: f"{metrics[key]:.0%}"
        for name, key in (("mfu", "throughput/mfu"), ("goodput", "cost/goodput"))
        if key in metrics
    }
    for destination in logger.destinations:
        if isinstance(destination, ProgressBarLogger) and destination.train_pbar is not None:
            bar, shown = destination.train_pbar.pbar, destination.train_pbar.metrics
            # Composer pads its bar for a wide screen
            label = re.sub(r"\s{2,}", " ", bar.bar_format.partition("{")[0])
            bar.bar_format = label + (_NARROW if (bar.format_dict["ncols"] or _WIDE_COLUMNS) < _WIDE_COLUMNS else _WIDE)
            losses = {name: value for name, value in shown.items() if name not in money.keys() | more.keys()}
            shown.clear()  # the same dictionary: Composer puts its own figures into it
            shown.update({**money, **losses, **more})
            bar.set_postfix(shown, refresh=False)


def device_gpu(state: State) -> Gpu | None:
    if state.device.name != "gpu" or not torch.cuda.is_available():
        return None
    return gpu_from_device_name(torch.cuda.get_device_name())


def flops_per_batch(state: State) -> float:
    """FLOPs of this rank's batch, forward and backward; 0 when the model does not say."""
    model = getattr(state.model, "module", state.model)  # inside DDP
    count: Callable[[Any], float] | None = getattr(model, "flops_per_batch", None)
    return 0.0 if count is None else float(count(state.batch))


def progress(state: State, max_duration: Time[int] | None = None) -> float | None:
    """Fraction of max_duration done, 1 at most, within an epoch too where the loader's length is known.

    max_duration: as the run began, where the state's own may have been cut down to stop it.
    """
    whole = max_duration or state.max_duration
    if whole is None:
        return None
    done = float(state.timestamp.get(whole.unit).value)
    if whole.unit == TimeUnit.EPOCH:
        if state.dataloader_len is None:
            return None
        done += int(state.timestamp.batch_in_epoch) / int(state.dataloader_len)
    return min(1.0, done / float(whole.value))


def is_done(state: State) -> bool:
    """Whether a run has come to the end of its recipe: of one in epochs with the last step of the last.

    Composer turns the epoch a moment after it has saved that step.
    """
    return state.max_duration is not None and (state.timestamp >= state.max_duration or progress(state) == 1)
