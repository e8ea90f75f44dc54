"""The cost monitor on a tiny model with Composer's Trainer: figures, resume, and a ledger torn by a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import ComposerModel, Trainer
from composer.core import Time, Timestamp
from composer.loggers import InMemoryLogger, LoggerDestination
from torch.utils.data import DataLoader, Dataset

from recipes.callbacks import cost as cost_module
from recipes.callbacks.cost import CostMonitor
from recipes.callbacks.energy import NvmlMeter, choose_meter
from recipes.callbacks.readings import progress
from recipes.cost.hardware import find_gpu
from recipes.cost.segments import PHASES, Segment
from recipes.parts import register_components
from recipes.reports.bill import read_bill

SEQ_LEN, BATCH, VOCAB = 16, 4, 11
TOKENS_PER_BATCH = SEQ_LEN * BATCH


class Tokens(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.full((SEQ_LEN,), index % VOCAB)}


class Tiny(ComposerModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Embedding(VOCAB, 8), torch.nn.Linear(8, VOCAB))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(batch["input_ids"])

    def loss(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.transpose(1, 2), batch["input_ids"])

    def eval_forward(self, batch: dict[str, torch.Tensor], outputs: Any = None) -> torch.Tensor:
        return self(batch)

    def flops_per_batch(self, batch: dict[str, torch.Tensor]) -> int:
        return 1000 * batch["input_ids"].numel()


def trainer(monitor: CostMonitor, batches: int, logger: LoggerDestination | None = None, **kwargs: Any) -> Trainer:
    model = Tiny()
    return Trainer(
        model=model,
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        train_dataloader=DataLoader(Tokens(), batch_size=BATCH),
        max_duration=f"{batches}ba",
        callbacks=[monitor],
        loggers=[logger] if logger else [],
        device="cpu",
        **{"progress_bar": False, **kwargs},
    )


def run(monitor: CostMonitor, batches: int, logger: InMemoryLogger | None = None, **kwargs: Any) -> None:
    t = trainer(monitor, batches, logger, **kwargs)
    t.fit()
    t.close()


def lines(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


def test_metrics_and_summary(tmp_path: Path) -> None:
    logger, ledger = InMemoryLogger(), tmp_path / "run" / "ledger.jsonl"
    monitor = CostMonitor(usd_per_device_hour=3600, ledger=str(ledger))  # a dollar a second
    begun = time.monotonic()
    run(monitor, 3, logger, eval_dataloader=DataLoader(Tokens(), batch_size=8), eval_interval="2ba")
    elapsed_s = time.monotonic() - begun
    cost = monitor.summary()

    assert cost.tokens == cost.tokens_processed == 3 * TOKENS_PER_BATCH
    parts = [getattr(cost, f"{phase}_s") for phase in PHASES]
    assert sum(parts) == pytest.approx(cost.wall_s)
    assert cost.wall_s == pytest.approx(elapsed_s, abs=0.5)
    assert cost.train_s > 0
    assert cost.evaluation_s > 0
    assert cost.usd == pytest.approx(cost.wall_s)
    assert cost.usd_per_million_tokens == pytest.approx(cost.wall_s / cost.tokens * 1e6)
    assert cost.tokens_per_s == pytest.approx(cost.tokens / (cost.train_s + cost.data_s))
    assert cost.rate_source == "stated: 3600 USD per device-hour"
    assert cost.mfu is None  # a CPU has no row in the table
    assert (cost.starts, cost.devices, cost.hours_left) == (1, 1, 0.0)
    assert cost.usd_projected_total == cost.usd

    logged = {name: [value for _, value in values] for name, values in logger.data.items()}
    for name in ("cost/usd", "cost/usd_per_million_tokens", "wall/train_s", "wall/data_s", "wall/evaluation_s"):
        assert len(logged[name]) == 3
        assert logged[name][-1] > 0
    assert logged["cost/usd"] == sorted(logged["cost/usd"])
    assert len(logged["cost/usd_projected_total"]) == len(logged["cost/hours_left"]) == 2  # from the second batch on
    assert logged["cost/hours_left"][-1] == 0
    assert len(logged["throughput/tokens_per_s"]) == 2
    assert "throughput/mfu" not in logged

    assert [line["event"] for line in lines(ledger)] == ["start", "built", "end"]
    assert lines(ledger)[1]["rate_source"] == cost.rate_source
    time.sleep(0.02)
    assert monitor.summary() == cost  # the clock stopped when the run did


def test_no_rate_no_dollars() -> None:
    logger = InMemoryLogger()
    monitor = CostMonitor()
    run(monitor, 2, logger)
    cost = monitor.summary()
    assert cost.usd is None
    assert cost.usd_per_million_tokens is None
    assert cost.usd_projected_total is None
    assert cost.rate_source.startswith("no rate known")
    assert "cost/usd" not in logger.data
    assert "cost/hours_left" in logger.data


def test_a_cpu_is_not_billed_as_the_gpu_of_the_recipe() -> None:
    monitor = CostMonitor(gpu="h100")
    run(monitor, 1)
    assert monitor.summary().usd is None
    assert "this is a CPU, not h100-sxm" in monitor.summary().rate_source


def test_mfu_on_a_known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "device_gpu", lambda state: find_gpu("a100"))
    logger, monitor = InMemoryLogger(), CostMonitor()
    run(monitor, 3, logger)
    cost = monitor.summary()
    flops = 3 * 1000 * TOKENS_PER_BATCH
    assert cost.mfu == pytest.approx(flops / ((cost.train_s + cost.data_s) * 156e12))  # fp32 runs as TF32
    assert cost.mfu_basis == "the model's flops_per_batch over 156 TFLOP/s, a100-80gb dense fp32"
    assert len(logger.data["throughput/mfu"]) == 2
    monkeypatch.setattr(Tiny, "flops_per_batch", lambda self, batch: 0)
    run(monitor := CostMonitor(), 1)
    assert monitor.summary().mfu is None
    assert monitor.summary().mfu_basis.startswith("not known: the model does not count its FLOPs")


def test_resume_goes_on_with_the_bill_of_the_checkpoint(tmp_path: Path) -> None:
    first = CostMonitor(usd_per_device_hour=3600)
    run(first, 2, save_folder=str(tmp_path), save_interval="2ba", save_filename="c.pt")
    before = first.summary()

    second = CostMonitor(usd_per_device_hour=7200)  # the second machine costs twice as much
    run(second, 4, load_path=str(tmp_path / "c.pt"))
    after = second.summary()

    assert after.starts == 2
    assert after.tokens == after.tokens_processed == 4 * TOKENS_PER_BATCH
    # Without a ledger the checkpoint is all that is known: up to its save, not the end of that process.
    own_s = second._bill.current().wall_s
    carried_s = after.wall_s - own_s
    assert 0 < carried_s <= before.wall_s
    assert after.usd == pytest.approx(carried_s + 2 * own_s)


def test_resume_with_a_ledger_bills_every_second_once(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    first = CostMonitor(usd_per_device_hour=3600, ledger=str(ledger))
    run(first, 3, save_folder=str(tmp_path), save_interval="2ba", save_filename="{batch}.pt")
    second = CostMonitor(usd_per_device_hour=3600, ledger=str(ledger))
    run(second, 4, load_path=str(tmp_path / "2.pt"))
    cost = second.summary()

    assert cost.wall_s == pytest.approx(first.summary().wall_s + second._bill.current().wall_s, abs=0.01)
    assert cost.tokens == 4 * TOKENS_PER_BATCH
    assert cost.tokens_processed == 5 * TOKENS_PER_BATCH  # the third batch was done twice
    events = ["start", "built", "checkpoint", "checkpoint", "end", "start", "built", "end"]
    assert [line["event"] for line in lines(ledger)] == events


def test_a_ledger_of_another_machine_learns_what_the_checkpoint_knows(tmp_path: Path) -> None:
    first = CostMonitor(usd_per_device_hour=3600, ledger=str(tmp_path / "there" / "ledger.jsonl"))
    run(first, 2, save_folder=str(tmp_path), save_interval="2ba", save_filename="{batch}.pt")
    here = tmp_path / "here" / "ledger.jsonl"
    second = CostMonitor(usd_per_device_hour=3600, ledger=str(here))
    run(second, 4, load_path=str(tmp_path / "2.pt"))
    bill, summary = read_bill(here), second.summary()
    assert len(bill.starts) == summary.starts == 2
    assert bill.total.usd == pytest.approx(summary.usd, abs=0.01)  # each phase is written to the millisecond
    assert bill.total.tokens == summary.tokens == 4 * TOKENS_PER_BATCH
    assert bill.total.parts["lost"] == pytest.approx(summary.lost_s)
    assert bill.starts[0].last_unix_s is None  # it ran elsewhere
    assert bill.starts[1].ended


def test_what_dies_while_it_is_built_is_billed(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    monitor = CostMonitor(usd_per_device_hour=3600, ledger=str(ledger), started_at=time.time() - 100)
    monitor.open("mine")
    (line,) = lines(ledger)
    assert (line["event"], line["run_name"]) == ("start", "mine")
    assert read_bill(ledger).total.usd == pytest.approx(100, abs=5)
    run(monitor, 2)
    assert monitor.summary().starts == 1
    assert [line["event"] for line in lines(ledger)] == ["start", "built", "end"]


def test_the_ledger_knows_what_a_checkpoint_knows(tmp_path: Path) -> None:
    """So that a process killed soon after has the same bill from both."""
    ledger = tmp_path / "ledger.jsonl"
    monitor = CostMonitor(usd_per_device_hour=3600, ledger=str(ledger))
    run(monitor, 2, save_folder=str(tmp_path), save_interval="2ba", save_filename="{batch}.pt")
    saved = torch.load(tmp_path / "2.pt", weights_only=False)["state"]["callbacks"]["CostMonitor"]
    (segment,) = json.loads(saved["segments"])
    line = next(line for line in lines(ledger) if line["event"] == "checkpoint")
    assert line["id"] == segment["id"]
    assert line["tokens"] == segment["tokens"] == 2 * TOKENS_PER_BATCH
    assert sum(line["seconds"].values()) >= sum(segment["seconds"].values()) - 0.01  # written to the millisecond


KILLED = """
import sys, time
sys.path[:0] = {paths!r}
from recipes.cost import running_bill
running_bill.HEARTBEAT_S = 0.05
from tests.callbacks.test_cost import CostMonitor, trainer
monitor = CostMonitor(usd_per_device_hour=3600, ledger={ledger!r})
t = trainer(monitor, 2)
t.fit()
print("trained", flush=True)
time.sleep(60)
"""


def test_kill_is_billed_and_its_torn_line_left_out(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    root = str(Path(__file__).parents[2])
    code = KILLED.format(paths=[root], ledger=str(ledger))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"trained\n"
    beats = len(lines(ledger))
    while len(ledger.read_text().splitlines()) < beats + 3:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    with ledger.open("a") as file:
        file.write('{"event": "beat", "id": "')  # and the last line is torn

    complete = [json.loads(line) for line in ledger.read_text().splitlines()[:-1]]
    killed_s = sum(complete[-1]["seconds"].values())
    assert complete[-1]["event"] == "beat"
    assert killed_s > 0.1

    monitor = CostMonitor(usd_per_device_hour=3600, ledger=str(ledger))
    run(monitor, 2)
    cost = monitor.summary()
    assert cost.starts == 2
    assert cost.wall_s == pytest.approx(killed_s + monitor._bill.current().wall_s, abs=0.01)
    assert cost.tokens_processed == 4 * TOKENS_PER_BATCH
    assert cost.tokens == 2 * TOKENS_PER_BATCH  # nothing was saved, so the first process's tokens were lost
    readable = [line for line in ledger.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["event"] for line in readable[-3:]] == ["start", "built", "end"]


def test_time_before_the_callback_is_billed() -> None:
    monitor = CostMonitor(usd_per_device_hour=3600, started_at=time.time() - 100)
    assert monitor.summary().startup_s == pytest.approx(100, abs=1)
    assert monitor.summary().usd is None  # before the trainer's INIT the devices and their rate are not known
    assert CostMonitor(started_at=time.time() + 100).summary().startup_s == pytest.approx(0, abs=1)


def test_wrong_arguments_fail_at_once() -> None:
    with pytest.raises(ValueError, match="Unknown GPU 'h10'"):
        CostMonitor(gpu="h10")
    with pytest.raises(ValueError, match="expected a finite rate"):
        CostMonitor(usd_per_device_hour=-1)
    with pytest.raises(ValueError, match="price_kind"):
        CostMonitor(price_kind="weekly")
    with pytest.raises(ValueError, match="local or mounted disk"):
        CostMonitor(ledger="s3://bucket/ledger.jsonl")


def test_registered_by_name() -> None:
    from llmfoundry.utils.builders import build_callback

    register_components()
    monitor = build_callback("cost_monitor", {"usd_per_device_hour": 1.5})
    assert isinstance(monitor, CostMonitor)


def test_overhead_of_a_batch() -> None:
    """Well under a millisecond of a step: see the printed figure with -s."""
    monitor = CostMonitor(usd_per_device_hour=1)
    t = trainer(monitor, 2)
    t.fit()
    from composer.core import Event

    events = [Event.BEFORE_DATALOADER, Event.AFTER_DATALOADER, Event.BATCH_END, Event.BATCH_CHECKPOINT]
    t.state.batch = {"input_ids": torch.zeros(BATCH, SEQ_LEN)}
    repeats = 500
    begun = time.perf_counter()
    for _ in range(repeats):
        for event in events:
            monitor.run_event(event, t.state, t.logger)
    microseconds = (time.perf_counter() - begun) / repeats * 1e6
    t.close()
    print(f"\ncost_monitor: {microseconds:.0f} µs a batch")
    assert microseconds < 2000


class FakeNvml:
    """Two GPUs whose counters (millijoules) run at 360 W each by the clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> bytes:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: bytes) -> int:
        return int(5e9 + 360e3 * self.now_s)


def test_energy_from_nvml_counters() -> None:
    nvml = FakeNvml()
    meter = NvmlMeter(nvml, ["GPU-a", "GPU-b"], devices=4, now=lambda: nvml.now_s)
    assert meter.device_kwh(0) == 0
    nvml.now_s = 3600.0
    assert meter.device_kwh(0) == pytest.approx(4 * 0.36)
    nvml.now_s = 3602.0  # not read again within five seconds
    assert meter.device_kwh(0) == pytest.approx(4 * 0.36)
    assert meter.basis == "NVML energy counters of 2 GPUs, taken for all 4 devices"


def test_counters_that_answer_no_more_do_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml()
    meter = NvmlMeter(nvml, ["GPU-a"], devices=1, now=lambda: nvml.now_s)
    nvml.now_s = 3600.0
    assert meter.device_kwh(0) == pytest.approx(0.36)

    def fail(handle: bytes) -> int:
        raise RuntimeError("Unknown Error")

    nvml.nvmlDeviceGetTotalEnergyConsumption = fail  # type: ignore[method-assign]
    for nvml.now_s in (7200.0, 9000.0):
        assert meter.device_kwh(0) == pytest.approx(0.36)
    assert [record.message for record in caplog.records if "NVML answers no more (Unknown Error)" in record.message]
    assert len(caplog.records) == 1


def test_energy_from_watts_and_carbon() -> None:
    logger = InMemoryLogger()
    monitor = CostMonitor(watts_per_device=3600, power_usage_effectiveness=1.5, kg_co2e_per_kwh=0.2)
    run(monitor, 3, logger)
    cost = monitor.summary()
    assert cost.kwh == pytest.approx(cost.wall_s / 1000 * 1.5)
    assert cost.kg_co2e == pytest.approx(cost.kwh * 0.2)
    assert cost.energy_basis == "stated: 3600 W a device × time × 1.5 PUE, 0.2 kg CO2e a kWh"
    assert len(logger.data["energy/kwh"]) == 3
    known = choose_meter(find_gpu("h100"), None, devices=8, local_devices=8)
    assert known.device_kwh(3600) == pytest.approx(8 * 0.7)
    assert choose_meter(None, None, 8, 8).device_kwh(3600) is None
    with pytest.raises(ValueError, match=r"power_usage_effectiveness: got 0\.5, expected"):
        CostMonitor(power_usage_effectiveness=0.5)


class SlowFirst(Tiny):
    """The first step compiles for half a second; evaluation and the rest take what they take."""

    compiled = False

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        time.sleep(0.02 if self.compiled else 0.5)
        self.compiled = True
        return super().forward(batch)


def test_goodput_leaves_out_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Tiny", SlowFirst)
    logger, monitor = InMemoryLogger(), CostMonitor()
    run(monitor, 4, logger)
    cost = monitor.summary()
    assert cost.compile_s == pytest.approx(0.48, abs=0.25)
    assert cost.lost_s == 0
    assert cost.goodput == pytest.approx(cost.train_s / cost.wall_s)
    logged = {name: [value for _, value in values] for name, values in logger.data.items()}
    assert logged["wall/train_s"][1] < logged["wall/train_s"][0]  # known after the second step
    assert logged["throughput/tokens_per_s"][-1] > 4 * TOKENS_PER_BATCH / cost.wall_s


def test_work_lost_in_a_crash_is_not_goodput(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    first = CostMonitor(ledger=str(ledger))
    run(first, 10, save_folder=str(tmp_path), save_interval="6ba", save_filename="{batch}.pt")
    second = CostMonitor(ledger=str(ledger))
    run(second, 12, load_path=str(tmp_path / "6.pt"))
    cost = second.summary()
    assert cost.lost_s == pytest.approx(first.summary().train_s * 4 / 10, abs=0.002)  # the ledger keeps milliseconds
    assert cost.goodput == pytest.approx((cost.train_s - cost.lost_s) / cost.wall_s)


def test_the_progress_bar_shows_the_money(tmp_path: Path) -> None:
    with (tmp_path / "bar").open("w") as stream:
        t = trainer(CostMonitor(usd_per_device_hour=3600), 6, progress_bar=True, console_stream=stream)
        t.fit()
        t.close()
    bar = (tmp_path / "bar").read_text()
    for name in ("usd=", "left=", "goodput="):
        assert name in bar


def test_a_limit_counts_what_the_bill_does_not_know() -> None:
    """Of a checkpoint from another device that had no rate."""
    monitor = CostMonitor(usd_per_device_hour=3600)
    monitor.open("run")
    seconds = {**dict.fromkeys(PHASES, 0.0), "train": 60.0}
    other = Segment(id="other", devices=2, seconds=seconds, tokens=100, gpu="a100-80gb")
    monitor.load_state_dict({"segments": json.dumps([asdict(other)])})
    assert monitor.usd == pytest.approx(120, abs=1)  # at the present dollar a second
    summary = monitor.summary()
    assert summary.usd is None
    assert summary.rate_source == "an earlier start was on another device, and had no rate"


def test_flops_and_dollars_to_come_are_those_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "device_gpu", lambda state: find_gpu("a100"))
    logger, monitor = InMemoryLogger(), CostMonitor(usd_per_device_hour=3)
    t = trainer(monitor, 3, logger)
    monitor._bill.update(devices=4)
    t.fit()
    t.close()
    assert monitor._bill.current().flops == 4 * 3 * 1000 * TOKENS_PER_BATCH
    (_, tokens_per_s), (_, mfu) = (logger.data[f"throughput/{name}"][-1] for name in ("tokens_per_s", "mfu"))
    assert mfu / tokens_per_s == pytest.approx(1000 / 156e12)  # four times the FLOPs on four devices
    monitor._hours_left = 2.0
    monkeypatch.setattr(cost_module.dist, "get_world_size", lambda: 4)
    assert monitor._projected_usd(10.0) == 10 + 2 * 4 * 3


def test_only_what_the_first_step_took_beyond_the_second_is_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, moved = CostMonitor(), []
    train_s = iter([10.0, 13.0])
    monkeypatch.setattr(monitor._bill, "train_s", lambda: next(train_s))
    monkeypatch.setattr(monitor._bill, "move", lambda *what: moved.append(what))
    for _ in range(3):
        monitor._tell_compilation_apart()
    assert moved == [("train", "compile", 7.0)]


def test_a_counter_that_begins_anew_takes_nothing_off_the_energy() -> None:
    nvml = FakeNvml()
    nvml.now_s = 100.0
    meter = NvmlMeter(nvml, ["GPU-a"], devices=1, now=lambda: nvml.now_s)
    nvml.now_s = 3700.0
    assert meter.device_kwh(0) == pytest.approx(0.36)
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda _: 0  # type: ignore[method-assign]
    nvml.now_s = 3800.0
    assert meter.device_kwh(0) == pytest.approx(0.36)


def test_a_checkpoint_of_this_very_process_bills_it_once() -> None:
    monitor = CostMonitor(usd_per_device_hour=3600)
    monitor.open("run")
    monitor.load_state_dict(monitor.state_dict())
    assert monitor.summary().starts == 1


def test_progress_counts_within_an_epoch_and_to_the_end_that_the_run_began_with() -> None:
    timestamp = Timestamp(epoch=1, batch=15, batch_in_epoch=5)
    state: Any = SimpleNamespace(max_duration=Time(2, "ep"), timestamp=timestamp, dataloader_len=10)
    assert progress(state) == 0.75
    assert progress(state, Time(60, "ba")) == 0.25
    assert progress(state, Time(5, "ba")) == 1
