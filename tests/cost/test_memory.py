"""Memory against the micro-batches that ran, and the change that makes a recipe fit."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import pytest

from recipes.cost.fit import load_rows, microbatch_ratio, microbatch_table
from recipes.cost.hardware import find_gpu
from recipes.cost.memory import GIB, fits, largest_microbatch, memory, smallest_change
from recipes.cost.setup import Setup, read_setup, tokens_of_run
from recipes.cost.throughput import step_time

from .seven_b import RECIPE

README = Path(__file__).parents[2] / "recipes" / "cost" / "README.md"
A100_40, A100_80 = find_gpu("a100-40gb"), find_gpu("a100-80gb")


def mpt_7b(gpus: int, **changes: Any) -> Setup:
    return dataclasses.replace(read_setup(RECIPE, gpus), **changes)


def test_every_micro_batch_that_ran_fits() -> None:
    rows = load_rows()
    assert sum(fits(r.setup, r.gpu) for r in rows) >= 0.95 * len(rows)


def test_the_limit_is_not_far_above_what_ran() -> None:
    """The people who measured mostly took the largest micro-batch that ran: the model must not allow much more."""
    rows = load_rows()
    ratios = [microbatch_ratio(r) for r in rows]
    assert statistics.median(ratios) < 2
    assert sum(ratio < 1.15 for ratio in ratios) > len(ratios) / 4
    assert "\n".join(microbatch_table(rows)) in README.read_text()


def test_parts_are_the_formulas() -> None:
    setup = mpt_7b(8)
    n = setup.parameters.total
    parts = memory(setup, A100_80).by_part()
    assert parts["weights"] == parts["gradients"] == 4 * n / 8 / GIB
    assert parts["optimizer"] == 8 * n / 8 / GIB
    assert parts["activations"] == pytest.approx(4 * 2048 * 32 * 32 * 4096 / GIB, rel=0.01)  # 32 d bytes a layer
    assert parts["logits"] == (8 * 2**27 + 6 * 50432 * 4096 + 4 * 4 * 2048 * 4096) / GIB  # a chunk, and what is kept
    assert sum(parts.values()) == pytest.approx(memory(setup, A100_80).total_gib)


def test_choices_change_what_they_should() -> None:
    def parts(**changes: Any) -> dict[str, float]:
        return memory(mpt_7b(8, **changes), A100_80).by_part()

    base = parts()
    assert parts(recompute="blocks")["activations"] < base["activations"] / 8
    of_products = parts(recompute="operations")["activations"]
    assert of_products == pytest.approx(base["activations"] * 11 / 16, rel=0.02)  # what enters, and five products
    assert parts(loss="torch")["logits"] == pytest.approx(parts(loss="fused")["logits"] * 3.5)
    assert base["logits"] < parts(loss="torch")["logits"]
    assert parts(optimizer_bytes=4)["optimizer"] == base["optimizer"] / 2
    assert parts(sharding="NO_SHARD")["weights"] == pytest.approx(8 * base["weights"])
    assert parts(sharding="SHARD_GRAD_OP")["gathered"] > base["gathered"]
    assert parts(attn_impl="torch")["activations"] > base["activations"] + 4 * 32 * 32 * 2048**2 * 4 / GIB
    assert parts(compute_bytes=4)["activations"] == pytest.approx(2 * base["activations"])


SMALL_BATCH: dict[str, Any] = {
    **RECIPE,
    "global_train_batch_size": 64,
    "device_train_microbatch_size": 1,
    "max_duration": "100ba",
    "fsdp_config": {**RECIPE["fsdp_config"], "activation_checkpointing": True},
}
LORA = {"r": 16, "target_modules": ["Wqkv", "out_proj"]}


def with_lora(**more: Any) -> dict[str, Any]:
    return {**SMALL_BATCH, "model": {**SMALL_BATCH["model"], "peft_config": LORA}, **more}


def test_adapters_take_gradients_and_states_of_their_own_only() -> None:
    full, lora = (memory(read_setup(recipe, 1), A100_80).by_part() for recipe in (SMALL_BATCH, with_lora()))
    trained = 16 * 32 * (4096 * 4 + 4096 * 2)
    assert lora["weights"] == full["weights"] + 4 * trained / GIB
    assert lora["gradients"] == 4 * trained / GIB
    assert lora["optimizer"] == 8 * trained / GIB
    assert fits(read_setup(with_lora(), 1), A100_80)
    assert not fits(read_setup(SMALL_BATCH, 1), A100_80)
    assert "LoRA" in read_setup(with_lora(), 1).notes[0]


def test_master_weights_in_16_bits_are_half_as_large() -> None:
    def in_bf16(recipe: dict[str, Any]) -> dict[str, Any]:
        return {**recipe, "model": {**recipe["model"], "master_weights_dtype": "bf16"}}

    for recipe in (SMALL_BATCH, with_lora()):
        wide, narrow = (read_setup(each, 1) for each in (recipe, in_bf16(recipe)))
        before, after = memory(wide, A100_80).by_part(), memory(narrow, A100_80).by_part()
        trained = 0 if recipe is SMALL_BATCH else wide.trained_parameters  # adapters stay in fp32
        assert after["weights"] - 4 * trained / GIB == (before["weights"] - 4 * trained / GIB) / 2
        for part in ("gradients", "optimizer"):
            assert after[part] == (before[part] if trained else before[part] / 2)
        assert after["gathered"] == 0  # autocast has nothing to copy
        assert not any("master_weights" in note for note in narrow.notes)
    rtx_4090 = find_gpu("rtx-4090")  # of 24 GB
    assert not fits(read_setup(with_lora(), 1), rtx_4090)
    assert fits(read_setup(in_bf16(with_lora()), 1), rtx_4090)


def test_adapters_and_pairs_change_the_work() -> None:
    full, lora, dpo = (read_setup(recipe, 8) for recipe in (SMALL_BATCH, with_lora(), with_lora(dpo={"beta": 0.1})))
    steps = {name: step_time(setup, A100_80) for name, setup in (("full", full), ("lora", lora), ("dpo", dpo))}
    assert steps["lora"].matrix_s == pytest.approx(steps["full"].matrix_s * 3 / 4, rel=0.02)  # with what is recomputed
    assert steps["lora"].attention_s == steps["full"].attention_s
    assert steps["dpo"].matrix_s == pytest.approx(2 * steps["lora"].matrix_s * 4 / 3, rel=0.02)  # and a reference
    assert steps["dpo"].tokens_per_device == 2 * steps["lora"].tokens_per_device
    assert tokens_of_run(with_lora(dpo={"beta": 0.1})) == 2 * tokens_of_run(SMALL_BATCH)  # type: ignore[operator]
    logits = memory(dpo, A100_80).logits_gib
    assert logits == (12 * 2**27 + 2 * 2 * 2 * 2048 * 4096) / GIB  # a chunk's, and no gradient of the frozen head


def test_losses_without_logits_are_alike_and_devices_must_share_the_batch() -> None:
    def with_loss(name: str) -> float:
        return memory(
            read_setup({**SMALL_BATCH, "model": {**SMALL_BATCH["model"], "loss_fn": name}}, 8), A100_80
        ).logits_gib

    fused, chunked, liger = (with_loss(f"{name}_crossentropy") for name in ("fused", "chunked", "liger"))
    assert fused == chunked == liger != with_loss("torch_crossentropy")
    assert read_setup({**SMALL_BATCH, "optimizer": {"name": "fused_adamw"}}, 8).notes == ()
    small = read_setup({**SMALL_BATCH, "global_train_batch_size": 2, "max_seq_len": 2**17}, 2)
    answer = smallest_change(small, A100_40)
    assert answer is not None
    assert "or a global_train_batch_size that 4 GPUs can share" in answer


def test_largest_micro_batch_is_the_last_that_fits() -> None:
    setup = mpt_7b(8)
    most = largest_microbatch(setup, A100_80)
    assert most >= 6  # what was measured
    assert fits(dataclasses.replace(setup, microbatch_sequences=most), A100_80)
    assert not fits(dataclasses.replace(setup, microbatch_sequences=most + 1), A100_80)
    assert largest_microbatch(dataclasses.replace(setup, global_batch_sequences=16), A100_80) == 2  # its whole share
    assert largest_microbatch(mpt_7b(1, sharding="NO_SHARD"), A100_40) == 0


def test_smallest_change() -> None:
    assert smallest_change(mpt_7b(8), A100_80) is None
    most = largest_microbatch(mpt_7b(8), A100_80)
    assert smallest_change(mpt_7b(8, microbatch_sequences=64), A100_80) == f"set device_train_microbatch_size: {most}"

    long = mpt_7b(8, seq_len=32768, microbatch_sequences=1)
    assert smallest_change(long, A100_80) == "set fsdp_config.activation_checkpointing: true"
    assert fits(dataclasses.replace(long, recompute="blocks"), A100_80)

    replicated = mpt_7b(8, sharding="NO_SHARD", recompute="blocks", microbatch_sequences=1)
    assert smallest_change(replicated, A100_80) == "set fsdp_config.sharding_strategy: FULL_SHARD"

    alone = smallest_change(mpt_7b(1, sharding="NO_SHARD", recompute="blocks", microbatch_sequences=1), A100_80)
    assert alone == "set 2 GPUs with fsdp_config.sharding_strategy: FULL_SHARD"

    for gpus in (3, 6, 12):  # which doubling never takes to a divisor of the batch
        small = mpt_7b(gpus, recompute="blocks", microbatch_sequences=1, global_batch_sequences=32)
        answer = smallest_change(small, dataclasses.replace(A100_40, visible_memory_gib=8.0))
        assert answer == "set 32 GPUs with fsdp_config.sharding_strategy: FULL_SHARD"

    none: dict[str, Any] = {
        **RECIPE,
        "fsdp_config": None,
        "device_train_microbatch_size": 1,
    }  # FSDP comes on with its key
    assert smallest_change(read_setup(none, 8), A100_40) == "set fsdp_config.activation_checkpointing: true"

    alone = smallest_change(read_setup(with_lora(), 1), find_gpu("rtx-4090"))
    assert alone == "set model.master_weights_dtype: bf16"

    huge = mpt_7b(8, seq_len=2**22, microbatch_sequences=1, recompute="blocks")
    answer = smallest_change(huge, A100_40)
    assert answer is not None
    assert answer.startswith("use a GPU with more memory")


def test_scores_of_plain_attention_are_held_for_one_layer_while_it_is_computed_again() -> None:
    long = mpt_7b(8, seq_len=8192, microbatch_sequences=1, recompute="blocks")
    plain = dataclasses.replace(long, attn_impl="torch")
    more = memory(plain, A100_80).activations_gib - memory(long, A100_80).activations_gib
    scores = 32 * 8192**2  # in fp32, with their bias and their softmax; the logits are gone by then
    assert 11 * scores / GIB < more < 12 * scores / GIB


def test_queries_and_keys_are_kept_before_and_behind_their_rotation() -> None:
    alibi, rope = (
        memory(read_setup({**RECIPE, "model": {**RECIPE["model"], "attn_config": {name: True}}}, 8), A100_80)
        for name in ("alibi", "rope")
    )
    kept = 32 * 4 * 2048 * 2 * 4096 * 2 / GIB  # layers, tokens, queries and keys, bytes
    assert rope.activations_gib - alibi.activations_gib == pytest.approx(kept)
