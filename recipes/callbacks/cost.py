"""What a run costs while it runs: dollars, tokens a second, MFU, where the time goes, and how much is still to come.

    callbacks:
      cost_monitor:
        gpu: h100                    # default: what the CUDA device calls itself
        usd_per_device_hour: 2.99    # default: the prices file, then the hardware table
        ledger: runs/my-run/ledger.jsonl

Every second from the start of the process to its end is billed for every device of the run (the world size), and the
bill goes on when a run resumes: what a checkpoint knows and what the ledger knows are added up by process. The ledger's
first line is written when the process group stands, before anything is built, and one at least every ten seconds from
then on: a kill loses what lies behind the last one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from composer.core import Callback, Event, State, Time
from composer.loggers import Logger
from composer.utils import dist

from recipes.callbacks.energy import Meter, WattsMeter, choose_meter
from recipes.callbacks.readings import device_gpu, flops_per_batch, progress, show
from recipes.cost.estimate import KG_CO2E_PER_KWH, POWER_USAGE_EFFECTIVENESS
from recipes.cost.hardware import Gpu, find_gpu
from recipes.cost.pace import Pace
from recipes.cost.rate import Rate, choose_rate
from recipes.cost.run_cost import RunCost, summarize
from recipes.cost.running_bill import RunningBill
from recipes.cost.segments import totals_of, usd_of

log = logging.getLogger(__name__)

# The phase that each event begins. The checkpoint saver runs after the callbacks of its event, so saving ends when the
# next batch is asked for.
PHASE_FROM = {
    Event.BEFORE_DATALOADER: "data",
    Event.AFTER_DATALOADER: "train",
    Event.EVAL_BEFORE_ALL: "evaluation",
    Event.EVAL_AFTER_ALL: "other",
    Event.EVAL_STANDALONE_START: "evaluation",
    Event.EVAL_STANDALONE_END: "other",
    Event.BATCH_CHECKPOINT: "checkpoint",
    Event.EPOCH_END: "other",
    Event.EPOCH_CHECKPOINT: "checkpoint",
    Event.ITERATION_END: "other",
    Event.ITERATION_CHECKPOINT: "checkpoint",
    Event.FIT_END: "other",
}


class CostMonitor(Callback):
    """Logs a run's cost and speed every batch and keeps its ledger.

    Args:
        gpu: a name of the hardware table; default: the row for the CUDA device, if the table has it.
        usd_per_device_hour: the rate; beats the prices file, which beats the table's list prices.
        prices_file: YAML or JSON of GPU names and rates.
        price_kind: on_demand, reserved or spot.
        ledger: path of an append-only file that keeps the bill between processes. One run, one ledger.
        started_at: Unix time at which the process started; default: when this object was made.
        watts_per_device: what a device draws; default: NVML's energy counters, else the hardware row's power limit.
        power_usage_effectiveness: of the data centre: its meter over the devices' energy.
        kg_co2e_per_kwh: carbon intensity of its electricity.

    Logged: `cost/usd`, `cost/usd_per_million_tokens`, `cost/usd_projected_total`, `cost/hours_left`,
    `cost/finish_unix_s`, `cost/goodput`, `energy/kwh`, `energy/kg_co2e`, `throughput/tokens_per_s`, `throughput/mfu`
    and `wall/<phase>_s`. The progress bar shows the first few. The cost metrics need a rate, energy known watts, MFU a
    known device: what is not known is not logged. Goodput is the share of the billed time of all devices that
    went into training steps which were not lost. MFU counts the model's `flops_per_batch` (LLM
    Foundry: 6 N + 12 n_layers d_model S a token, no recomputation) over the dense peak of the devices at the run's
    precision; every rank is taken to have a batch of the shape of rank 0's.

    Raises:
        ValueError: a rate, price kind, GPU name, power or ledger path that cannot be right.
    """

    def __init__(
        self,
        *,
        gpu: str | None = None,
        usd_per_device_hour: float | None = None,
        prices_file: str | None = None,
        price_kind: str = "on_demand",
        ledger: str | None = None,
        started_at: float | None = None,
        watts_per_device: float | None = None,
        power_usage_effectiveness: float = POWER_USAGE_EFFECTIVENESS,
        kg_co2e_per_kwh: float = KG_CO2E_PER_KWH,
    ) -> None:
        for name, value, least in (
            ("watts_per_device", watts_per_device, 0),
            ("power_usage_effectiveness", power_usage_effectiveness, 1),
            ("kg_co2e_per_kwh", kg_co2e_per_kwh, 0),
        ):
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"cost.{name}: got {value}, expected a finite number of at least {least}.")
        already_s = 0.0 if started_at is None else max(0.0, time.time() - started_at)
        self._named_gpu = None if str(gpu or "cpu").strip().lower() == "cpu" else find_gpu(str(gpu))
        self._rate_arguments: dict[str, Any] = {
            "usd_per_device_hour": usd_per_device_hour,
            "prices_file": prices_file,
            "price_kind": price_kind,
        }
        self.rate: Rate = choose_rate(gpu, **self._rate_arguments)  # fails here, not after the model is built
        self._meter: Meter = WattsMeter(None, 1, "not known before the trainer is built")
        self._bill = RunningBill(ledger, already_s, lambda wall_s: self._meter.device_kwh(wall_s))
        self._mfu_basis = "not known: the device has no row in the hardware table"
        self._watts_per_device = watts_per_device
        self._pue, self._kg_co2e_per_kwh = power_usage_effectiveness, kg_co2e_per_kwh
        self._first_step_s: list[float] = []  # training seconds at the end of this process's first two steps
        self._tokens = 0  # of the run's timestamp
        self._batch_flops = 0.0
        self._pace = Pace()
        self._hours_left: float | None = None
        self._max_duration: Time[int] | None = None
        self.ended_early: bool | None = None  # None: nothing was trained

    def open(self, run_name: str) -> None:
        """Begin the ledger, before anything is built: what dies while it is built is billed too. Rank 0 keeps it."""
        if self._watts_per_device is not None and dist.get_global_rank() == 0:
            self._meter = choose_meter(None, self._watts_per_device, dist.get_world_size(), 1)
        rate = self.rate.usd_per_device_hour
        self._bill.open(dist.get_world_size(), rate, keeps=dist.get_global_rank() == 0, run_name=run_name)

    def init(self, state: State, logger: Logger) -> None:
        if not self._bill.is_open:
            self.open(state.run_name)
        gpu = device_gpu(state)
        self.rate = self._rate_for(state, gpu)
        precision = state.precision.value
        peak = gpu.peak(precision) if gpu else None
        if gpu and peak:
            dense = f"{peak / 1e12:g} TFLOP/s, {gpu.name} dense {precision}"
            self._mfu_basis = f"the model's flops_per_batch over {dense}"
        elif gpu:
            self._mfu_basis = f"not known: {gpu.name} has no published {precision} peak"
        name, rate = gpu.name if gpu else None, self.rate.usd_per_device_hour
        self._bill.update(usd_per_device_hour=rate, peak_flops_per_s=peak, gpu=name)
        self._meter = choose_meter(gpu, self._watts_per_device, dist.get_world_size(), dist.get_local_world_size())
        world = dist.get_world_size()
        devices = f"{world} device{'s' * (world != 1)}"
        log.info("cost: %s, %s; MFU: %s", devices, self.rate.source, self._mfu_basis)
        logger.log_hyperparameters({"cost/rate_source": self.rate.source, "cost/mfu_basis": self._mfu_basis})
        logger.log_hyperparameters({"energy/basis": self._energy_basis})
        self._bill.write("built", rate_source=self.rate.source)

    def close(self, state: State, logger: Logger) -> None:
        self._bill.end()

    def state_dict(self) -> dict[str, Any]:
        # One string, because sharded checkpoints need the same keys when saving and loading.
        return {"segments": self._bill.to_text()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bill.add(state["segments"])

    def after_load(self, state: State, logger: Logger) -> None:
        self._tokens = state.timestamp.token.value

    def fit_start(self, state: State, logger: Logger) -> None:
        self._max_duration = state.max_duration  # which a run that is stopped cuts down
        self._tokens = state.timestamp.token.value
        if self._bill.current().tokens == 0:
            self._bill.update(tokens_from=self._tokens)
        self._pace.forget()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        phase = PHASE_FROM.get(event)
        if phase is not None:
            self._bill.switch(phase)
        super().run_event(event, state, logger)

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self._batch_flops = flops_per_batch(state)
        if not self._batch_flops and not self._mfu_basis.startswith("not known"):
            self._mfu_basis = "not known: the model does not count its FLOPs, as with block_overrides"

    def batch_end(self, state: State, logger: Logger) -> None:
        tokens = state.timestamp.token.value
        self._tell_compilation_apart()
        current = self._bill.current()
        flops = current.flops + self._batch_flops * current.devices
        self._bill.update(tokens=current.tokens + max(0, tokens - self._tokens), flops=flops)
        self._tokens = tokens
        metrics = self._metrics(state)
        logger.log_metrics(metrics)
        show(metrics, logger)

    def fit_end(self, state: State, logger: Logger) -> None:
        self.ended_early = progress(state, self._max_duration) != 1
        if not self.ended_early:  # else something is left
            self._hours_left = 0.0

    def _tell_compilation_apart(self) -> None:
        """Once a process: what its first step took beyond the second is compilation and warm-up."""
        if len(self._first_step_s) >= 2:
            return
        self._first_step_s.append(self._bill.train_s())
        if len(self._first_step_s) == 2:
            first_s, both_s = self._first_step_s
            compiling_s = max(0.0, first_s - (both_s - first_s))
            self._bill.move("train", "compile", compiling_s)
            self._pace.leave_out(compiling_s)

    def summary(self) -> RunCost:
        """The run so far, over all its processes. Read it on rank 0, which keeps the ledger."""
        segments, source = self._bill.segments(), self.rate.source
        run = totals_of(segments, self._tokens)
        if self.rate.usd_per_device_hour is None and run.usd is not None:
            source = f"at the rate of earlier starts; {source}"
        elif self.rate.usd_per_device_hour is not None and run.usd is None:
            source = "an earlier start was on another device, and had no rate"
        cost = summarize(segments, segments[-1], self._tokens, source, self._mfu_basis)
        kwh = self._kwh(run.device_kwh)
        return replace(
            cost,
            kwh=kwh,
            kg_co2e=None if kwh is None else kwh * self._kg_co2e_per_kwh,
            energy_basis=self._energy_basis,
            usd_projected_total=self._projected_usd(cost.usd),
            hours_left=self._hours_left,
        )

    def spending(self, phase: str) -> contextlib.AbstractContextManager[None]:
        """Bills the time inside to `phase`, whatever event it falls into."""
        return self._bill.spending(phase)

    def note(self, event: str, **notes: Any) -> None:
        """Adds a line of the caller's own to the ledger, beside the bill so far."""
        self._bill.write(event, **notes)

    @property
    def usd(self) -> float | None:
        """Dollars so far over all processes, as a limit counts them; complete on rank 0, which keeps the ledger.

        A start whose rate nobody knows counts at the present one: the bill says that it is not known.
        """
        return usd_of(self._bill.segments(), otherwise=self.rate.usd_per_device_hour)

    @property
    def usd_projected_total(self) -> float | None:
        return self._projected_usd(self.usd)

    @property
    def ledger_path(self) -> str | None:
        """Where the bill is kept; None on ranks other than 0 and without a ledger."""
        return None if self._bill.path is None else str(self._bill.path)

    @property
    def _energy_basis(self) -> str:
        if self._meter.device_kwh(0.0) is None:
            return self._meter.basis
        return f"{self._meter.basis} × {self._pue:g} PUE, {self._kg_co2e_per_kwh:g} kg CO2e a kWh"

    def _kwh(self, device_kwh: float | None) -> float | None:
        """Energy at the data centre's meter."""
        return None if device_kwh is None else device_kwh * self._pue

    def _metrics(self, state: State) -> dict[str, float]:
        segments = self._bill.segments()
        current, run = segments[-1], totals_of(segments, self._tokens)
        active_s = current.seconds["train"] + current.seconds["data"]
        kwh = self._kwh(run.device_kwh)
        self._pace.batch_done(active_s, current.tokens, current.flops)
        peak, flops_per_s = current.peak_flops_per_s, self._pace.flops_per_s
        self._hours_left = self._pace.hours_left(progress(state, self._max_duration), current.wall_s)
        metrics = {f"wall/{phase}_s": seconds for phase, seconds in run.seconds.items()}
        known = {
            "wall/lost_s": run.lost_s,
            "throughput/tokens_per_s": self._pace.tokens_per_s,
            "throughput/mfu": flops_per_s / (current.devices * peak) if flops_per_s and peak else None,
            "cost/usd": run.usd,
            "cost/usd_per_million_tokens": run.usd_per_million_tokens,
            "cost/usd_projected_total": self._projected_usd(run.usd),
            "cost/hours_left": self._hours_left,
            "cost/finish_unix_s": None if self._hours_left is None else time.time() + self._hours_left * 3600,
            "cost/goodput": run.goodput,
            "energy/kwh": kwh,
            "energy/kg_co2e": None if kwh is None else kwh * self._kg_co2e_per_kwh,
        }
        return {**metrics, **{name: value for name, value in known.items() if value is not None}}

    def _projected_usd(self, usd: float | None) -> float | None:
        rate = self.rate.usd_per_device_hour
        if usd is None or rate is None or self._hours_left is None:
            return None
        return usd + self._hours_left * dist.get_world_size() * rate

    def _rate_for(self, state: State, on_device: Gpu | None) -> Rate:
        if state.device.name == "cpu":
            rate = choose_rate(None, **self._rate_arguments)
            if rate.usd_per_device_hour is None and self._named_gpu is not None:
                source = f"no rate known: this is a CPU, not {self._named_gpu.name}; state cost.usd_per_device_hour"
                return Rate(None, source)
            return rate
        if self._named_gpu and on_device and self._named_gpu != on_device:
            log.warning(
                "cost.gpu says %s, the device is %s: billed as the first, MFU against the second.",
                self._named_gpu.name,
                on_device.name,
            )
        gpu = self._named_gpu or on_device
        return choose_rate(gpu.name if gpu else None, **self._rate_arguments)
