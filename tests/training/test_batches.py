"""How long an epoch is, and how many steps a duration."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import DataSpec

from recipes.config.load import Recipe, load
from recipes.cost.hardware import find_gpu
from recipes.cost.setup import drops_last
from recipes.training.batches import (
    dataset_tokens,
    microbatch_with_room,
    plan_batches,
    sequences_per_epoch,
    too_little_data,
    too_little_to_evaluate,
)
from recipes.training.loaders import refuse_empty, without_needless_mask
from recipes.training.microbatch import batch_of_evaluation, microbatch_of_training
from recipes.training.preferences import build_preference_loader


def recipe(folder: Path, duration: str = "1ep", dataset: dict[str, Any] | None = None, **more: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"shards": [{"samples": 400}, {"samples": 240}]}))
    loader = {"name": "finetuning", "dataset": {"local": str(folder), **(dataset or {})}, "drop_last": True}
    values = {
        "max_seq_len": 128,
        "global_train_batch_size": 8,
        "max_duration": duration,
        "train_loader": loader,
        **more,
    }
    return Recipe(Path("mine.yaml"), values, {})


@pytest.mark.parametrize(
    ("dataset", "more", "sequences"),
    [
        ({}, {}, 640),
        ({"packing_ratio": 2.0}, {}, 320),  # two examples share a sequence
        ({"packing_ratio": "auto"}, {}, None),  # known only once the examples have been looked at
        ({"epoch_size": 100}, {}, 100),
        ({"epoch_size": "0.5k"}, {}, 500),
        ({"epoch_size": "100"}, {}, 100),
        ({}, {"train_subset_num_batches": 10}, 80),
        ({}, {"train_subset_num_batches": -1}, 640),
        ({"local": "/nowhere"}, {}, None),
    ],
)
def test_sequences_of_an_epoch(
    dataset: dict[str, Any], more: dict[str, Any], sequences: int | None, tmp_path: Path
) -> None:
    made = recipe(tmp_path / "data", dataset=dataset, **more)
    assert sequences_per_epoch(made) == sequences
    assert plan_batches(made, 1).steps == (None if sequences is None else sequences // 8)


@pytest.mark.parametrize(
    ("duration", "steps"), [("2ep", 160), ("30ba", 30), ("80sp", 10), ("2048tok", 2), ("2e3tok", 2), ("1.5e4tok", 15)]
)
def test_steps_of_a_duration(duration: str, steps: int, tmp_path: Path) -> None:
    made = recipe(tmp_path / "data", duration)
    # rows of examples are padded, which Composer does not count
    assert plan_batches(made, 1).steps == (None if duration.endswith("tok") else steps)
    made.values["train_loader"]["name"] = "text"
    assert plan_batches(made, 1).steps == steps


@pytest.mark.parametrize(
    ("samples", "devices", "drop_last", "is_enough"),
    [
        (8, 1, True, True),
        (7, 1, True, False),
        (7, 1, False, True),
        (7, 2, True, True),  # one of them is read twice
        (6, 2, True, False),
    ],
)
def test_data_of_less_than_a_batch_is_refused(
    samples: int, devices: int, drop_last: bool, is_enough: bool, tmp_path: Path
) -> None:
    made = recipe(tmp_path / "train", dataset={"epoch_size": samples})
    made["train_loader"]["drop_last"] = drop_last
    said = too_little_data(made, plan_batches(made, devices))
    assert (said is None) is is_enough
    if said:
        assert said.startswith(f"{samples} sequences are fewer than a batch of 8, and drop_last")


def test_a_loader_of_ones_own_may_be_torchs() -> None:
    empty, full = (torch.utils.data.DataLoader([0] * n) for n in (0, 3))  # type: ignore[arg-type]
    for loader in (full, iter([0])):
        refuse_empty(DataSpec(loader), "3 pairs")
    with pytest.raises(ValueError, match="its data gives no batch of 3 pairs"):
        refuse_empty(DataSpec(empty), "3 pairs")


@pytest.mark.parametrize(
    ("loader", "devices", "said"),
    [
        ({"drop_last": True}, 1, ""),
        ({"drop_last": True}, 4, "640 sequences are fewer than a batch of 1,600, and drop_last leaves out"),
        ({}, 4, ""),
        ({"drop_last": True, "packing": 2}, 1, "640 examples are fewer than a batch of 800"),
        ({"drop_last": True, "packing": "auto"}, 9, ""),
    ],
)
def test_an_evaluation_without_a_batch_is_said(loader: dict[str, Any], devices: int, said: str, tmp_path: Path) -> None:
    made = recipe(tmp_path / "data", device_eval_batch_size=400, global_train_batch_size=36)
    dataset = {"local": str(tmp_path / "data"), "packing_ratio": loader.get("packing")}
    found = too_little_to_evaluate(made, plan_batches(made, devices), {**loader, "dataset": dataset})
    assert (found or "").startswith(said)
    assert bool(found) == bool(said)
    with pytest.raises(ValueError, match="its data gives no batch of 3 pairs"):
        refuse_empty(DataSpec([]), "3 pairs")


def test_streams_that_repeat_or_choose_count_as_often(tmp_path: Path) -> None:
    recipe(tmp_path / "data")
    where = {"local": str(tmp_path / "data")}
    for stream, samples in (({"repeat": 3.0}, 1920), ({"choose": 100}, 100), ({"proportion": 0.5}, 640), ({}, 640)):
        made = recipe(tmp_path / "data", dataset={"streams": {"a": {**where, **stream}, "b": where}})
        assert sequences_per_epoch(made) == samples + 640


def test_an_epoch_of_pairs_is_the_rows_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n" * 20 + "\n")
    made = recipe(tmp_path / "data", dataset={"path": str(tmp_path / "pairs.jsonl")}, dpo={"beta": 0.1})
    assert plan_batches(made, 1).steps == 2
    assert dataset_tokens(made) == 20 * 2 * 128


@pytest.mark.parametrize(
    ("pairs", "devices", "said", "steps", "is_enough"),
    [
        (10, 1, {}, 2, True),
        (10, 1, {"drop_last": False}, 4, True),
        (5, 1, {}, 0, False),
        (5, 1, {"drop_last": False}, 2, True),
        (15, 2, {}, 0, False),  # seven each: the sampler leaves out the last, too
    ],
)
def test_pairs_that_are_no_whole_batch_are_left_out_unless_the_recipe_keeps_them(
    pairs: int, devices: int, said: dict[str, bool], steps: int, is_enough: bool, tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n" * pairs)
    loader = {"name": "preferences", "dataset": {"path": str(tmp_path / "pairs.jsonl")}, **said}
    more = {"dpo": {"beta": 0.1}, "global_train_batch_size": 8 * devices}
    made = recipe(tmp_path / "data", "2ep", train_loader=loader, **more)
    batches = plan_batches(made, devices)
    assert batches.steps == steps
    assert (too_little_data(made, batches) is None) is is_enough


def test_what_an_unsaid_drop_last_is_taken_for_is_the_loaders_own_default() -> None:
    default = inspect.signature(build_preference_loader).parameters["drop_last"].default
    assert drops_last({"train_loader": {"name": "preferences"}}) is default
    assert not drops_last({"train_loader": {"name": "text"}})


def test_a_pair_is_two_sequences(tmp_path: Path) -> None:
    batches = plan_batches(recipe(tmp_path / "data", "30ba", dpo={"beta": 0.1}), 1)
    assert batches.tokens == 30 * 8 * 2 * 128
    assert str(batches).startswith("8 pairs = 1 device")


def test_micro_batches_that_do_not_divide_the_batch_are_said_to(tmp_path: Path) -> None:
    made = recipe(tmp_path / "data", "30ba")
    made.values["device_train_microbatch_size"] = 3
    assert str(plan_batches(made, 1)) == "8 sequences = 1 device × 3 micro-batches of at most 3"
    made.values["device_train_microbatch_size"] = 4
    assert str(plan_batches(made, 1)) == "8 sequences = 1 device × 2 micro-batches × 4"


def test_a_microbatch_that_memory_has_room_for() -> None:
    seven_b, h100 = load("yamls/pretrain/mpt-7b-8k.yaml"), find_gpu("h100")
    sizes = [microbatch_with_room(seven_b, 8, h100, memory_gib) for memory_gib in (20, 40, 79, 500)]
    assert sizes[0] == 1  # which may be too many already
    assert sizes[0] < sizes[1] < sizes[2] < sizes[3] == 256 / 8  # at most a device's share of the batch
    assert microbatch_with_room(seven_b, 64, None, 79) == 1
    of_the_hub = Recipe(Path("x.yaml"), {**seven_b.values, "model": {"name": "hf_causal_lm"}}, {})
    assert microbatch_with_room(of_the_hub, 64, h100, 79) == 1


def test_auto_is_composers_search_only_where_it_can_search(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**load("yamls/pretrain/mpt-7b-8k.yaml").values, "device_train_microbatch_size": "auto"}
    automatic = Recipe(Path("x.yaml"), values, {})
    batches = plan_batches(automatic, devices=64)
    assert microbatch_of_training(automatic, batches, is_split=True) == 4  # on a CPU all of a device's share
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 79 * 2**30))
    assert microbatch_of_training(automatic, batches, is_split=False) == "auto"
    assert microbatch_of_training(automatic, batches, is_split=True) == microbatch_with_room(
        automatic, 64, find_gpu("h100"), 79
    )


def test_evaluations_take_what_memory_has_room_for_while_composer_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**load("yamls/pretrain/mpt-125m.yaml").values, "device_train_microbatch_size": "auto"}
    del values["device_eval_batch_size"]
    automatic = Recipe(Path("x.yaml"), values, {})
    batches = plan_batches(automatic, devices=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 79 * 2**30))
    microbatch = microbatch_of_training(automatic, batches, is_split=False)
    assert microbatch == "auto"
    assert batch_of_evaluation(automatic, batches, microbatch) == microbatch_with_room(
        automatic, 1, find_gpu("h100"), 79
    )
    assert microbatch_with_room(automatic, 1, find_gpu("h100"), 79) > 1
    assert batch_of_evaluation(automatic, batches, 4) == 4
    values["device_eval_batch_size"] = 2
    assert batch_of_evaluation(automatic, batches, microbatch) == 2


def test_a_mask_that_masks_nothing_is_left_out_before_it_is_on_the_gpu() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    assert list(without_needless_mask({"input_ids": ids, "attention_mask": ids})) == ["input_ids"]
    padded = {"input_ids": ids, "attention_mask": ids.clone().index_fill_(1, torch.tensor(2), 0)}
    assert without_needless_mask(padded) is padded
    assert "attention_mask" in padded


def test_a_micro_batch_is_no_larger_than_a_devices_share(tmp_path: Path) -> None:
    batches = plan_batches(recipe(tmp_path / "data", device_train_microbatch_size=16), 2)
    assert (batches.microbatch, batches.gradient_accumulation) == (4, 1)
