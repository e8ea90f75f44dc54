"""Whether a run may start under its budget guard: what was spent, what the plan says is to come. No torch.

Judged before anything is built, so that a run which cannot be paid for costs nothing.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import Problem, RecipeError
from recipes.config.load import Recipe
from recipes.cost.duration import hours_of, in_words
from recipes.cost.estimate import Estimate, estimate
from recipes.cost.figures import usd
from recipes.cost.hardware import Gpu, find_gpu, gpu_from_device_name
from recipes.cost.ledger import Ledger, first_start_unix_s
from recipes.cost.rate import cost_section, rate_of
from recipes.cost.segments import Segment, usd_of
from recipes.ranks import world_size
from recipes.reports.bill import ledger_path
from recipes.reports.runs import last_step
from recipes.run_files import METRICS
from recipes.training.batches import dataset_tokens
from recipes.training.checkpoints import step_of, to_go_on_from

EXIT_BUDGET = 3  # of train.py: refused or stopped by the guard
WARN_AT = (0.5, 0.8, 0.95)  # shares of the budget
ANYWAY = ": shorten it, change the limit, or set callbacks.budget_guard.start_over_budget: true"

NVIDIA = Path("/proc/driver/nvidia/gpus")


def check_limits(budget_usd: float | None, deadline: str | None, max_usd_per_hundredth_loss: float | None) -> None:
    """Raise ValueError for limits that cannot be kept."""
    if budget_usd is None and deadline is None and max_usd_per_hundredth_loss is None:
        raise ValueError("budget_guard: got no limit, expected budget_usd, deadline or max_usd_per_hundredth_loss.")
    for name, value in (("budget_usd", budget_usd), ("max_usd_per_hundredth_loss", max_usd_per_hundredth_loss)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"budget_guard.{name}: got {value}, expected dollars above 0.")
    if deadline is not None:
        deadline_unix_s(deadline, time.time())


def deadline_unix_s(deadline: str, first_start: float) -> float:
    """Unix time of a deadline that is a length from the first start, or a date of this machine's clock."""
    if re.match(r"\d{4}-\d\d-\d\d", str(deadline)):
        try:
            return datetime.fromisoformat(str(deadline)).timestamp()
        except ValueError:
            raise ValueError(f"deadline: got {deadline!r}, expected a date such as 2027-01-31T08:00.") from None
    return first_start + hours_of(deadline) * 3600


def verdict(recipe: Recipe, folder: Path) -> tuple[str | None, str | None]:
    """Why the run may not start, as `refusal` has it; or a note, where no plan tells, or only the number of GPUs would.

    A dry run without a launcher is one process, whatever the run will be: its dollars say something of many GPUs, the
    hours of one GPU nothing.
    """
    devices = world_size()
    found = refusal(recipe, folder, devices)
    if found is None:
        return None, _unjudged(recipe, devices)
    if not recipe.get("dry_run") or os.environ.get("WORLD_SIZE"):
        return found, None
    firm = refusal(recipe, folder, devices, judge_hours=False)
    if firm is not None:
        return firm, None
    more = f"`python -m recipes plan {recipe.path} --gpus N` says what N GPUs take"
    return None, f"no launcher says how many GPUs there will be, and {found.removesuffix(ANYWAY)}; {more}"


def refusal(recipe: Recipe, folder: Path, devices: int, judge_hours: bool = True) -> str | None:
    """Why the recipe's budget guard does not let it start, in words; None when it may, or has no guard.

    Compared is the middle of the plan's range, less what the ledger says is done, plus what was spent. Without a row
    in the hardware table for the device there is no plan, and only what was spent counts.

    Raises:
        RecipeError: a limit that cannot be kept, or a rate or GPU that cannot be right.
    """
    guard = recipe.get("callbacks.budget_guard")
    if guard is None:
        return None
    try:
        return _refusal(recipe, guard, folder, devices, judge_hours)
    except ValueError as error:
        key = ("callbacks", "budget_guard")
        raise RecipeError([Problem(recipe.place(key), key, str(error))]) from None


def said_before(recipe: Recipe, plan: Estimate) -> str | None:
    """What the recipe's budget guard would say of a whole run by this plan; None without a guard.

    Raises:
        ValueError: a limit that cannot be kept.
    """
    guard = recipe.get("callbacks.budget_guard")
    if guard is None:
        return None
    budget, deadline = guard.get("budget_usd"), guard.get("deadline")
    check_limits(budget, deadline, guard.get("max_usd_per_hundredth_loss"))
    if budget is not None and plan.rate.usd_per_device_hour is None:
        return f"this run may not start: a budget cannot be kept without a rate: {plan.rate.source}"
    now = time.time()
    over = _over(plan, 1.0, 0.0, budget, None if deadline is None else deadline_unix_s(deadline, now) - now)
    if over is None:
        return "this run may start"
    return f"this run may {'start anyway' if guard.get('start_over_budget') else 'not start'}: {over}"


def _refusal(recipe: Recipe, guard: Mapping[str, Any], folder: Path, devices: int, judge_hours: bool) -> str | None:
    budget, deadline = guard.get("budget_usd"), guard.get("deadline")
    check_limits(budget, deadline, guard.get("max_usd_per_hundredth_loss"))
    cost = cost_section(recipe.values)
    gpu = _gpu_here() or _named(cost)
    billed = _named(cost) or gpu  # as the cost monitor has it
    rate = rate_of(cost, billed.name if billed else None)
    if budget is not None and rate.usd_per_device_hour is None:
        return f"a budget cannot be kept without a rate: {rate.source}"
    ledger = ledger_path(cost, folder)
    segments = Ledger(ledger).read()
    spent = usd_of(segments.values(), otherwise=rate.usd_per_device_hour) or 0.0
    if budget is not None:
        more = "give callbacks.budget_guard.budget_usd more"
        starting = _seconds_to_start(segments.values()) * devices / 3600 * (rate.usd_per_device_hour or 0.0)
        if spent >= budget:
            return f"{usd(spent)} of {usd(budget)} is spent already ({ledger}): {more}"
        if spent + starting >= budget:
            return f"{usd(spent)} of {usd(budget)} is spent, and another start takes {usd(starting)}: {more}"
    left_s = None
    if deadline is not None:
        left_s = deadline_unix_s(deadline, first_start_unix_s(ledger) or time.time()) - time.time()
        if left_s <= 0:
            return f"the deadline {deadline} has passed: give callbacks.budget_guard.deadline more"
    other_rate = rate.usd_per_device_hour if billed != gpu else None
    plan = None if gpu is None or guard.get("start_over_budget") else _plan(recipe, gpu, devices, other_rate)
    if plan is None:
        return None
    to_do = 1.0
    if plan.steps:  # not by tokens, of which the meter counts no padding
        to_do = max(0.0, 1 - _steps_done(recipe, folder) / plan.steps)
    over = _over(plan, to_do, spent, budget, left_s if judge_hours else None)
    return over and over + ANYWAY


def _unjudged(recipe: Recipe, devices: int) -> str | None:
    """That a run starts under limits by which no plan judged it, in words; None where one did, or none had to."""
    guard = recipe.get("callbacks.budget_guard")
    if guard is None or guard.get("start_over_budget") or not (guard.get("budget_usd") or guard.get("deadline")):
        return None
    gpu = _gpu_here() or _named(cost_section(recipe.values))
    plan = None if gpu is None else _plan(recipe, gpu, devices, None)
    if plan is not None and plan.hours is not None:
        return None
    if gpu is None:
        why = "no device of the hardware table is here or in cost.gpu"
    else:
        why = "its length depends on the data" if plan else "the estimator does not count this model or precision"
    return f"nothing says beforehand what this run takes ({why}): it may start, and the guard stops it at its limit"


def _seconds_to_start(segments: Iterable[Segment]) -> float:
    """What the last process that came to train took before it did."""
    trained = [segment for segment in segments if segment.tokens]
    return trained[-1].seconds["startup"] + trained[-1].seconds["compile"] if trained else 0.0


def _steps_done(recipe: Recipe, folder: Path) -> int:
    """Steps that the run need not do: those before the checkpoint that it goes on from."""
    if is_remote(recipe.get("save_folder")):  # which is not looked into: the last step that was logged
        return last_step(folder / METRICS)
    found = to_go_on_from(recipe)
    if found is None or found.newest is None:
        return 0
    step = step_of(recipe, found.newest)
    return last_step(folder / METRICS) if step is None else step


def _over(plan: Estimate, to_do: float, spent: float, budget: float | None, left_s: float | None) -> str | None:
    """Which limit a plan is beyond, in words."""
    on = f"on {plan.gpus} × {plan.gpu}{'' if plan.fits else ', where it does not fit'}"
    if budget is not None and plan.usd is not None and spent + plan.usd.mid * to_do > budget:
        gone = f"{usd(spent)} is spent and " if spent else ""
        low, mid, high = (dollars * to_do for dollars in (plan.usd.low, plan.usd.mid, plan.usd.high))
        planned = f"the plan is {usd(mid)} ({usd(low)} to {usd(high)}) {on}"
        return f"{gone}{planned}, the budget {usd(budget)}"
    if left_s is not None and plan.hours is not None and plan.hours.mid * to_do * 3600 > left_s:
        takes = in_words(plan.hours.mid * to_do * 3600)
        return f"the plan takes {takes} {on}, the deadline leaves {in_words(left_s)}"
    return None


def _plan(recipe: Recipe, gpu: Gpu, devices: int, rate: float | None) -> Estimate | None:
    try:
        return estimate(recipe.values, gpu.name, devices, usd_per_gpu_hour=rate, dataset_tokens=dataset_tokens(recipe))
    except ValueError:  # a model or precision that the estimator does not count
        return None


def _gpu_here() -> Gpu | None:
    """The row of the device here."""
    return next((row for name in _device_names() if (row := gpu_from_device_name(name)) is not None), None)


def _named(cost: Mapping[str, Any]) -> Gpu | None:
    """The row of the device that the recipe names for its bill."""
    named = cost.get("gpu")
    return None if named is None or str(named).lower() == "cpu" else find_gpu(str(named))


def _device_names() -> Iterable[str]:
    """What the NVIDIA driver calls the GPUs here, without torch."""
    names = []
    for file in sorted(NVIDIA.glob("*/information")):
        try:
            match = re.search(r"^Model:\s*(.+)$", file.read_text(), re.MULTILINE)
        except OSError:
            continue
        if match:
            names.append(match[1].strip())
    return names
