"""Run folders made by hand: what a run on eight H100 leaves behind, with a crash in it and a torn last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipes.config.load import load

RATE = 2.99
TOKENS_PER_STEP = 256 * 2048
BEGAN = 1_795_000_000.0


def ledger_line(event: str, id: str, unix_s: float, seconds: dict[str, float], **more: Any) -> str:
    record = {
        "event": event,
        "unix_s": unix_s,
        "id": id,
        "devices": 8,
        "seconds": seconds,
        "usd_per_device_hour": RATE,
        "peak_flops_per_s": 989.5e12,
        "tokens": 0,
        "flops": 0.0,
        "tokens_from": 0,
        "device_kwh": 1.0,
        "gpu": "h100-sxm",
        **more,
    }
    return json.dumps(record)


FIRST = {"startup": 100.0, "compile": 40.0, "data": 10.0, "train": 600.0, "evaluation": 30.0, "checkpoint": 20.0}
SECOND = {"startup": 80.0, "compile": 40.0, "data": 20.0, "train": 1400.0, "evaluation": 60.0, "checkpoint": 40.0}


def crashed_run(folder: Path) -> Path:
    """4,800 steps of MPT-125M: 1,600 in a process that died, of which 100 were lost, then 3,300 from step 1,500."""
    folder.mkdir(parents=True)
    recipe = load("yamls/pretrain/mpt-125m.yaml", [f"run_name={folder.name}"])
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    tokens = {"first": 1600 * TOKENS_PER_STEP, "second": 3300 * TOKENS_PER_STEP}
    resumed = {"tokens_from": 1500 * TOKENS_PER_STEP}
    lines = [
        ledger_line("start", "a", BEGAN + 100, {"startup": 100.0}, rate_source="stated: 2.99 USD per device-hour"),
        ledger_line("beat", "a", BEGAN + 800, FIRST, tokens=tokens["first"]),
        ledger_line("start", "b", BEGAN + 1080, {"startup": 80.0}, **resumed),
        ledger_line("end", "b", BEGAN + 2640, SECOND, tokens=tokens["second"], **resumed),
        '{"event": "beat", "id": "b", "sec',
    ]
    (folder / "ledger.jsonl").write_text("\n".join(lines))
    metrics = []
    for step in range(0, 4801, 100):
        values = {"step": step, "cost/usd": 1 + step * 0.003, "loss/train/total": 3 + 7 / (1 + step / 60)}
        if step % 500 == 0:
            values["metrics/eval/LanguageCrossEntropy"] = 3.1 + 7 / (1 + step / 60)
        metrics.append(json.dumps(values))
    (folder / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
    summary = {"steps": 4800, "mfu": 0.26, "tokens_per_s": 1.19e6, "kwh": 2.2, "kg_co2e": 0.85}
    (folder / "summary.json").write_text(json.dumps(summary))
    tasks = [
        {"label": "piqa/0-shot", "score": 0.62, "interval_95": 0.022, "examples": 1838, "chance": 0.5},
        {"label": "boolq/0-shot", "score": 0.48, "interval_95": 0.017, "examples": 3270, "chance": 0.5},
        {"label": "lambada <b>/0-shot", "score": 0.33, "interval_95": 0.013, "examples": 5153, "chance": None},
    ]
    evaluation = {"models": [{"name": folder.name, "loss": 3.01, "tasks": tasks}]}
    (folder / "results.json").write_text(json.dumps(evaluation))
    return folder


WALL_S = sum(FIRST.values()) + sum(SECOND.values())
USD = WALL_S * 8 / 3600 * RATE
