"""The step-time model against the measured table, and what any such model must obey."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from recipes.cost import fit
from recipes.cost.flops import flops_per_token, llm_foundry_flops_per_token
from recipes.cost.hardware import find_gpu
from recipes.cost.parameters import count_parameters
from recipes.cost.setup import Setup, read_setup, tokens_of_run
from recipes.cost.throughput import COEFFICIENTS_PATH, load_coefficients, step_time

from .seven_b import RECIPE

H100 = find_gpu("h100")


@pytest.fixture(scope="module")
def rows() -> list[fit.Row]:
    return fit.load_rows()


def setup(gpus: int = 8, **changes: Any) -> Setup:
    return dataclasses.replace(read_setup(RECIPE, gpus), **changes)


def test_the_table_is_consistent(rows: list[fit.Row]) -> None:
    """Parameters, FLOPs, peaks and measured speed reproduce the MFU that the table prints."""
    assert len(rows) == 151
    with fit.TABLE_PATH.open() as file:
        stated = [int(line.split(",")[10]) for line in file if line[0].isdigit()]
    assert [count_parameters(r.setup.model).total for r in rows] == stated
    for r in rows:
        peak = r.gpu.peak(r.setup.precision)
        assert peak is not None
        flops_per_s = llm_foundry_flops_per_token(r.setup.model, r.setup.seq_len) * r.tokens_per_s_per_gpu
        assert flops_per_s / peak == pytest.approx(r.mfu, rel=0.01), r.name


def test_errors_are_small_on_rows_that_were_not_fitted(rows: list[fit.Row]) -> None:
    found = fit.accuracy(rows, load_coefficients())
    assert found["held_out"]["rows"] == 68
    for part in found.values():
        assert part["median"] < 0.03
        assert part["p90"] < 0.08
    assert found == json.loads(COEFFICIENTS_PATH.read_text())["errors"]


def test_whole_sizes_are_held_out(rows: list[fit.Row]) -> None:
    fitted = {r.name.split()[0] for r in rows if r.part == "fit"}
    assert fitted == {"125m", "350m", "760m", "1b", "7b", "13b", "70b"}


def test_the_file_is_what_the_command_writes(rows: list[fit.Row]) -> None:
    again = fit.fit([r for r in rows if r.part == "fit"])
    assert again == pytest.approx(dict(load_coefficients()), rel=1e-3)


def test_the_fit_finds_coefficients_it_was_not_told(rows: list[fit.Row]) -> None:
    """On speeds made with other coefficients, the fit finds those that the table can tell apart."""
    truth = {**load_coefficients(), "matrix_ampere": 0.7, "attention_hopper": 0.5, "logit_bytes": 40.0}
    made = [
        dataclasses.replace(r, tokens_per_s_per_gpu=step_time(r.setup, r.gpu, truth, r.flops).tokens_per_s_per_gpu)
        for r in rows
    ]
    found = fit.fit(made)
    for name in ("matrix_ampere", "attention_hopper"):
        assert found[name] == pytest.approx(truth[name], rel=0.05)
    assert max(fit.errors(made, found)) < 0.02


def test_parts_add_up_and_mfu_follows() -> None:
    step = step_time(setup(), H100)
    parts = [step.matrix_s, step.attention_s, step.elementwise_s, step.communication_s, step.optimizer_s]
    assert sum(parts) == pytest.approx(step.total_s)
    assert all(part > 0 for part in parts)
    flops = llm_foundry_flops_per_token(RECIPE["model"] | {"max_seq_len": 2048}, 2048)
    assert step.mfu == pytest.approx(flops * 1024 * 2048 / 8 / step.total_s / 989.5e12)
    assert 0.3 < step.mfu < 0.6


def test_what_must_slow_a_step_does() -> None:
    base = step_time(setup(), H100)
    assert step_time(setup(recompute="blocks"), H100).mfu < 0.85 * base.mfu
    selective = step_time(setup(recompute="operations"), H100)
    assert selective.matrix_s == base.matrix_s
    assert selective.attention_s == pytest.approx(base.attention_s * 4 / 3)  # FlexAttention's kernel runs again
    assert step_time(setup(microbatch_sequences=1), H100).mfu < base.mfu
    assert step_time(setup(), find_gpu("a100")).total_s > 2 * base.total_s
    assert step_time(setup(gpus=256), H100).mfu < base.mfu
    assert (
        step_time(setup(gpus=256), H100).communication_s
        > step_time(setup(gpus=256, sharding="HYBRID_SHARD"), H100).communication_s
    )
    assert step_time(setup(gpus=1, sharding="NO_SHARD"), H100).communication_s == 0
    assert step_time(setup(seq_len=32768, global_batch_sequences=64, microbatch_sequences=1), H100).mfu < base.mfu
    assert step_time(setup(precision="amp_fp8"), H100).total_s < base.total_s


@pytest.mark.parametrize(("window", "seen"), [(-1, 4096), (4095, 4096), (9999, 4096), (1, 2), (512, 513)])
def test_attention_within_a_window_takes_its_share(window: int, seen: int) -> None:
    model = RECIPE["model"] | {"attn_config": {"sliding_window_size": window}}
    met = [min(i + 1, seen) for i in range(4096)]  # by each query
    every, windowed = (flops_per_token(m, 4096) for m in (RECIPE["model"], model))
    assert every.attention == 4 * 32 * 4096 * 4096
    assert windowed.attention == 4 * 32 * 4096 * 4096 * sum(met) // (4096 * 4097 // 2)
    assert (windowed.matrix, windowed.head) == (every.matrix, every.head)
    in_full = {**model, "attn_config": {"sliding_window_size": window, "attn_impl": "torch"}}
    assert flops_per_token(in_full, 4096) == every


def test_a_window_saves_time_and_mfu_still_counts_all_keys() -> None:
    long = RECIPE | {"max_seq_len": 32768, "global_train_batch_size": 64, "device_train_microbatch_size": 1}
    near = long | {"model": RECIPE["model"] | {"attn_config": {"alibi": True, "sliding_window_size": 1023}}}
    base, windowed = (step_time(read_setup(recipe, 8), H100) for recipe in (long, near))
    assert windowed.attention_s == pytest.approx(base.attention_s / 16, rel=0.05)
    assert windowed.matrix_s == base.matrix_s
    assert windowed.flops_per_token == base.flops_per_token
    assert windowed.hfu < windowed.mfu
    order = {"order": [{"name": "default", "repeat": 31}, {"name": "near"}]}
    layers = {**order, "overrides": {"near": {"attn_config": {"sliding_window_size": 1023}}}}
    assert "block_overrides" in read_setup(long | {"model": RECIPE["model"] | {"block_overrides": layers}}, 8).notes[0]


def test_a_batch_that_does_not_divide_waits_for_the_busiest() -> None:
    even, uneven = step_time(setup(global_batch_sequences=32), H100), step_time(setup(global_batch_sequences=33), H100)
    assert uneven.tokens_per_s_per_gpu < even.tokens_per_s_per_gpu


def test_a_precision_without_a_peak_is_refused() -> None:
    with pytest.raises(ValueError, match=r"v100 has no published amp_bf16 peak; it has fp32, fp16"):
        step_time(setup(), find_gpu("v100"))


def test_setup_reads_a_recipe() -> None:
    read = read_setup(RECIPE, 8)
    assert (read.device_batch_sequences, read.grad_accum) == (128, 32)
    assert (read.compute_bytes, read.reduce_bytes, read.sharding, read.optimizer_bytes) == (2, 2, "FULL_SHARD", 8)
    assert read_setup(RECIPE, 512).microbatch_sequences == 2  # its whole share
    assert read_setup(RECIPE | {"fsdp_config": None}, 8).sharding == "NO_SHARD"
    assert read_setup(RECIPE, 1).sharding == "NO_SHARD"
    assert read_setup(RECIPE | {"device_train_microbatch_size": "auto"}, 8).microbatch_sequences is None
    assert read_setup(RECIPE | {"fsdp_config": {"reshard_after_forward": False}}, 8).sharding == "SHARD_GRAD_OP"
    assert read_setup(RECIPE | {"fsdp_config": {"data_parallel_shard_degree": 4}}, 8).shard_degree == 4
    assert read_setup(RECIPE | {"fsdp_config": {"data_parallel_replicate_degree": 2}}, 8).shard_degree == 4
    for strategy, reshard, expected in (
        ("HYBRID_SHARD", False, "_HYBRID_SHARD_ZERO2"),
        ("SHARD_GRAD_OP", True, "FULL_SHARD"),
        ("NO_SHARD", False, "NO_SHARD"),
        ("_HYBRID_SHARD_ZERO2", None, "_HYBRID_SHARD_ZERO2"),
    ):
        fsdp = {"sharding_strategy": strategy, "reshard_after_forward": reshard}
        assert read_setup(RECIPE | {"fsdp_config": fsdp}, 8).sharding == expected
    assert "tp_config is not modelled" in read_setup(RECIPE | {"tp_config": {"strategy": "ffn"}}, 8).notes[0]
    assert read_setup(RECIPE | {"optimizer": {"name": "decoupled_lionw"}}, 8).optimizer_bytes == 4
    assert "mine" in read_setup(RECIPE | {"optimizer": {"name": "mine"}}, 8).notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_len": None}, "max_seq_len: missing from the recipe"),
        ({"model": None}, "model: missing"),
        ({"fsdp_config": {"sharding_strategy": "HALF"}}, "sharding_strategy: got 'HALF', expected one of FULL_SHARD"),
        ({"fsdp_config": {"mixed_precision": "SOME"}}, "mixed_precision: got 'SOME'"),
        ({"fsdp_config": {"data_parallel_shard_degree": 3}}, "expected a divisor of 8 GPUs"),
        ({"fsdp_config": {"data_parallel_replicate_degree": 3}}, "got 3, expected a divisor of 8 GPUs"),
        ({"device_train_microbatch_size": -1}, "device_train_microbatch_size: got -1"),
    ],
)
def test_setup_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_setup(RECIPE | change, 8)


@pytest.mark.parametrize(
    ("duration", "tokens"),
    [
        ("63900ba", 63900 * 1024 * 2048),
        ("1_000ba", 1000 * 1024 * 2048),
        ("1500sp", 2 * 1024 * 2048),
        ("2000000000tok", 954 * 1024 * 2048),
        ("2ep", None),
        (1, None),
    ],
)
def test_tokens_of_a_duration(duration: Any, tokens: int | None) -> None:
    assert tokens_of_run(RECIPE | {"max_duration": duration}) == tokens
    if duration == "2ep":
        step = 1024 * 2048
        for tokens_there, drop_last, expected in (
            (3 * step, True, 6),
            (3 * step + 7, True, 6),
            (3 * step + 7, False, 8),
        ):
            recipe = RECIPE | {"max_duration": duration, "train_loader": {"drop_last": drop_last}}
            assert tokens_of_run(recipe, dataset_tokens=tokens_there) == expected * step
        recipe = RECIPE | {"max_duration": duration, "train_loader": {"drop_last": True}}
        assert tokens_of_run(recipe, dataset_tokens=7) is None


def test_a_duration_without_a_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_duration: got '12 batches'"):
        tokens_of_run(RECIPE | {"max_duration": "12 batches"})


def test_bytes_between_devices_are_counted_by_hand() -> None:
    alone = {**load_coefficients(), "latency_us": 0.0, "communication": 1.0}
    link = H100.interconnect_bytes_per_s / 2 / (1 - 1 / 8)  # of what all eight have to have
    n = setup().parameters.total
    replicated = step_time(setup(sharding="NO_SHARD"), H100, alone)
    assert replicated.communication_s == pytest.approx(2 * 2 * n / link)  # reduced, once a step
    sharded = step_time(setup(), H100, alone)
    assert sharded.communication_s == pytest.approx(32 * (2 * 2 * n + 2 * n) / link)  # gathered twice, and scattered
    reference = step_time(setup(has_reference=True), H100, alone)
    assert reference.communication_s == pytest.approx(32 * (3 * 2 * n + 2 * n) / link)
