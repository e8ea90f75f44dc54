"""How long an epoch is, and how many steps a duration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.config.load import Recipe
from recipes.training.batches import dataset_tokens, plan_batches, sequences_per_epoch


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


def test_a_pair_is_two_sequences(tmp_path: Path) -> None:
    batches = plan_batches(recipe(tmp_path / "data", "30ba", dpo={"beta": 0.1}), 1)
    assert batches.tokens == 30 * 8 * 2 * 128
    assert str(batches).startswith("8 pairs = 1 device")
