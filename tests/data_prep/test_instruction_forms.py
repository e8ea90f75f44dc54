"""Rows as Alpaca and ShareGPT have them: what of them is trained on, and what is said of bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.finetune import main
from data_prep.instruction_forms import BadExample, in_trained_form
from tests.data_prep.conftest import tree

WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
WITH_INPUT = WITHOUT_INPUT.replace("task.", "task, paired with an input that provides further context.")
SHAREGPT = {
    "id": "a_1",
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Who spoke?", "markdown": None},
        {"from": "gpt", "value": "The President."},
    ],
}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who spoke?"},
    {"role": "assistant", "content": "The President."},
]


def test_alpaca() -> None:
    row = {"instruction": "Sum {up}.", "input": "A {report}.", "output": "It {went} well."}
    prompt = f"{WITH_INPUT}\n\n### Instruction:\nSum {{up}}.\n\n### Input:\nA {{report}}.\n\n### Response:"
    assert in_trained_form(row) == {"prompt": prompt, "response": "It {went} well."}
    prompt = f"{WITHOUT_INPUT}\n\n### Instruction:\nHi.\n\n### Response:"
    for more in ({}, {"input": ""}, {"input": None}):
        assert in_trained_form({"instruction": "Hi.", "output": "Ho.", **more}) == {"prompt": prompt, "response": "Ho."}


def test_sharegpt() -> None:
    assert in_trained_form(SHAREGPT) == {"messages": MESSAGES}


@pytest.mark.parametrize("row", [{"messages": MESSAGES, "conversations": 1}, {"prompt": "a", "output": "b"}, {"a": 1}])
def test_other_rows_stay(row: dict[str, Any]) -> None:
    assert in_trained_form(row) is row


def test_a_system_beside_a_conversation_is_its_first_message() -> None:
    spoken = {"conversations": SHAREGPT["conversations"][1:]}
    assert in_trained_form({**spoken, "system": "Be brief."}) == in_trained_form(SHAREGPT)
    assert in_trained_form({**spoken, "system": ""}) == {"messages": MESSAGES[1:]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": 1, "output": "x"}, "'instruction' is int, expected text"),
        ({"instruction": "x", "output": ""}, "'output' is empty"),
        ({"instruction": "x", "input": ["y"], "output": "z"}, "'input' is list"),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "'history' has no place"),
        ({"conversations": "x"}, "'conversations' is not a list"),
        (
            {"conversations": [{"role": "user", "content": "x"}]},
            "message 1 of 'conversations' is not an object with from",
        ),
    ],
)
def test_bad_rows(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadExample, match=said):
        in_trained_form(row)


def test_the_command_makes_of_them_what_it_makes_of_the_others(
    jsonl: Callable[..., Path], tokenizer: Path, tmp_path: Path
) -> None:
    alpaca = {"instruction": "Sum up.", "input": "", "output": "It went well."}
    for name, rows in (("given", [alpaca, SHAREGPT]), ("plain", [in_trained_form(alpaca), {"messages": MESSAGES}])):
        source = jsonl(rows, f"{name}.jsonl")
        words = ("--out", tmp_path / name, "--tokenizer", tokenizer, "--seq-len", "400")
        assert main([str(word) for word in (source, *words)]) == 0
    given, plain = (tree(tmp_path / name / "train") for name in ("given", "plain"))
    manifests = [json.loads(files.pop("manifest.json")) for files in (given, plain)]
    assert given == plain
    assert manifests[0]["conversations"] == manifests[1]["conversations"] == 1
