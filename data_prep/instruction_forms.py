"""Forms that instruction data is published in, put into the two that are trained on: prompt and response, messages.

{"instruction": "...", "input": "...", "output": "..."}                       Alpaca's; input may be "" or absent
{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}   ShareGPT's; perhaps with "system": "..."
"""

from typing import Any

EXPECTED = "prompt and response, messages, conversations, or instruction and output"
# The prompts of Stanford Alpaca, PROMPT_DICT in github.com/tatsu-lab/stanford_alpaca/blob/main/train.py, to the letter:
# the answer follows without a line break.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}  # as in LLM Foundry's preprocessor; others stay what they are


class BadExample(ValueError):
    """A row that cannot be trained on; the message is the reason."""


def in_trained_form(row: dict[str, Any]) -> dict[str, Any]:
    """A row with prompt and response, or messages; one that has either, or none of the known forms, as it is.

    Raises:
        BadExample: it is of a known form, but a value of it is not what that has there.
    """
    if "messages" in row or "prompt" in row:
        return row
    if "conversations" in row:
        return {"messages": [*_instructions(row), *_messages(row["conversations"])]}
    if "instruction" in row and "output" in row:
        return _alpaca(row)
    return row


def _instructions(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What some write beside a conversation, as its first message."""
    system = row.get("system")
    return [{"role": "system", "content": system}] if system else []


def _messages(conversation: Any) -> list[dict[str, Any]]:
    if not isinstance(conversation, list):
        raise BadExample("'conversations' is not a list of messages")
    messages = []
    for number, message in enumerate(conversation, 1):
        if not isinstance(message, dict) or not {"from", "value"} <= set(message):
            raise BadExample(f"message {number} of 'conversations' is not an object with from and value")
        role = message["from"]
        messages.append(
            {"role": _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, "content": message["value"]}
        )
    return messages


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("system", "history"):
        if row.get(name):
            raise BadExample(f"{name!r} has no place in a prompt of Alpaca's form: write the row as messages")
    values = {name: "" if row.get(name) is None else row[name] for name in ("instruction", "input", "output")}
    for name, value in values.items():
        if not isinstance(value, str):
            raise BadExample(f"{name!r} is {type(value).__name__}, expected text")
        if not value and name != "input":
            raise BadExample(f"{name!r} is empty, expected text")
    template = _ALPACA_WITH_INPUT if values["input"] else _ALPACA
    return {"prompt": template.format(**values), "response": values["output"]}
