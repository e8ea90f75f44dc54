"""Beside the weights of an export: the chat template where the data went through one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.conversations import DEFAULT_TEMPLATE
from recipes.weights.folder_files import load_tokenizer
from recipes.weights.trained import find_trained

from ..tiny import MPT, build, write_run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("counts", "template"),
    [
        ([0], None),
        ([3], DEFAULT_TEMPLATE),
        ([0, 3], DEFAULT_TEMPLATE),
        ([None], DEFAULT_TEMPLATE),  # of an earlier version
        ([0, "damaged"], DEFAULT_TEMPLATE),
        ([], DEFAULT_TEMPLATE),
    ],
)
def test_a_template_that_no_row_went_through_is_not_given_to_the_model(
    counts: list[Any], template: str | None, shards: Path, tmp_path: Path
) -> None:
    manifest = json.loads((shards / "train" / "manifest.json").read_text())
    streams = {}
    for number, count in enumerate(counts):
        folder = tmp_path / str(number) / "train"
        folder.mkdir(parents=True)
        record = {} if count is None else {"conversations": count}
        (folder / "manifest.json").write_text(json.dumps({**manifest, "loss_tokens": 5, **record}))
        streams[str(number)] = {"local": str(folder.parent), "split": "train"}
    dataset = {"streams": streams} if streams else {"hf_name": "json"}
    loader = {"name": "finetuning", "dataset": dataset, "drop_last": True, "num_workers": 0}
    run = write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer", train_loader=loader)
    assert load_tokenizer(find_trained(run)).chat_template == template
