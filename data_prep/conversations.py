"""Rows of instruction data into turns of token ids: a prompt without loss, and the answer that the loss is on.

Two kinds of rows, as LLM Foundry knows them:

    {"prompt": "...", "response": "..."}                                  (or "completion" for "response")
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
"""

import json
from dataclasses import dataclass
from typing import Any

from data_prep.errors import PrepError
from data_prep.instruction_forms import EXPECTED, BadExample

PROMPT_KEYS = ("prompt",)
RESPONSE_KEYS = ("response", "completion")
ROLES = ("system", "user", "assistant", "tool")
# Arguments of apply_chat_template and of the rendering in it, which are no variables of a template
_ARGUMENTS = (
    "self conversation conversations messages tools documents chat_template add_generation_prompt "
    "continue_final_message tokenize padding truncation max_length return_tensors return_dict "
    "return_assistant_tokens_mask tokenizer_kwargs"
)
NOT_VARIABLES = frozenset(_ARGUMENTS.split())
END_OF_TURN = "<|im_end|>"  # of ChatML: it ends a generation where it is a token, which not every vocabulary has
# ChatML, which LLM Foundry takes for tokenizers without a template of their own
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass
class Turn:
    """Ids of a prompt (`input_ids`, no loss) and of the answer (`labels`, loss)."""

    input_ids: list[int]
    labels: list[int]


class ConversationTokenizer:
    """Makes turns as LLM Foundry's `tokenize_formatted_example` does.

    Args:
        tokenizer: of transformers.
        template_values: further variables of the chat template, such as date_string.
    """

    def __init__(self, tokenizer: Any, template_values: dict[str, str]):
        self._tokenizer = tokenizer
        self._template = None if tokenizer.chat_template is not None else DEFAULT_TEMPLATE
        self._values = template_values

    def turns(self, row: dict[str, Any]) -> list[Turn]:
        """The turns of a row.

        Raises:
            BadExample: the row is of neither kind, or not as its kind has to be.
        """
        if "messages" in row:
            turns = [
                Turn(*(self._ids(text=text, add_special_tokens=False) for text in slices))
                for slices in self._slices(checked_messages(row))
            ]
        else:
            turns = [self._prompt_and_response(row)]
        for number, turn in enumerate(turns, 1):
            if not turn.input_ids or not turn.labels:
                which = "prompt" if not turn.input_ids else "answer"
                raise BadExample(f"the {which} of turn {number} has no tokens")
        return turns

    def end_without_a_token(self) -> str | None:
        """What the template writes behind an answer, where no token of it ends a generation; None: one does."""
        answer = "Yes."
        try:
            text = self._render([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], False)
        except BadExample:  # it wants other conversations than this
            return None
        end = text.rpartition(answer)[2]
        ends = {self._tokenizer.eos_token_id, self._tokenizer.get_vocab().get(END_OF_TURN)}
        return None if ends.intersection(self._ids(text=end, add_special_tokens=False)) else end

    def _prompt_and_response(self, row: dict[str, Any]) -> Turn:
        prompt, response = checked_pair(row)
        input_ids = self._ids(text=prompt)
        labels = self._ids(text_target=response)
        bos = self._tokenizer.bos_token_id
        if bos is not None and input_ids[:1] == labels[:1] == [bos]:
            labels = labels[1:]  # the tokenizer adds it to whatever it gets
        return Turn(input_ids, labels)

    def _slices(self, messages: list[dict[str, str]]) -> list[tuple[str, str]]:
        """The conversation as text, cut before and behind each answer."""
        slices = []
        done = ""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            through = self._render(messages[: place + 1], False)
            before = self._render(messages[:place], True)
            if not (before.startswith(done) and through.startswith(before)):
                raise BadExample(
                    f"the chat template does not write message {place + 1} behind the ones before it, so that the "
                    "answer cannot be told from the prompt"
                )
            slices.append((before[len(done) :], through[len(before) :]))
            done = through
        return slices

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    chat_template=self._template,
                    **self._values,
                )
            )
        except Exception as error:  # jinja2's, or whatever the template raises
            raise BadExample(f"the chat template refuses it: {error}") from error

    def _ids(self, **arguments: Any) -> list[int]:
        try:
            return list(self._tokenizer(**arguments)["input_ids"])
        except Exception as error:  # the tokenizers library's, where its unk_token is not in the vocabulary say
            raise PrepError(f"--tokenizer: it cannot encode: {error}.") from error


def checked_pair(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and response of a row.

    Raises:
        BadExample: there are not exactly these two, as text.
    """
    prompt_key = [key for key in PROMPT_KEYS if key in row]
    response_key = [key for key in RESPONSE_KEYS if key in row]
    if len(prompt_key) != 1 or len(response_key) != 1:
        keys = ", ".join(sorted(row)) or "none"
        raise BadExample(f"expected {EXPECTED}; its keys: {keys}")
    for key in (*prompt_key, *response_key):
        if not isinstance(row[key], str) or not row[key]:
            raise BadExample(f"{key!r} is {'empty' if row[key] == '' else type(row[key]).__name__}, expected text")
    return row[prompt_key[0]], row[response_key[0]]


def checked_messages(row: dict[str, Any]) -> list[dict[str, str]]:
    """The messages of a row.

    Raises:
        BadExample: they are not a conversation that ends with an answer.
    """
    messages = row["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise BadExample("'messages' is not a list of two messages or more")
    last = None
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadExample(f"message {number} is not an object with role and content alone")
        if message["role"] not in ROLES:
            raise BadExample(f"message {number} has role {message['role']!r}; expected {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise BadExample(f"the content of message {number} is {type(message['content']).__name__}, expected text")
        if message["role"] == last:
            raise BadExample(f"messages {number - 1} and {number} are both of role {last!r}")
        last = message["role"]
    if last != "assistant":
        raise BadExample(f"the last message is of role {last!r}; expected assistant: there is no answer to learn")
    return messages


def trained_on(row: dict[str, Any]) -> str:
    """What of a row that `turns` takes is trained on, as JSON: the same of copies with other fields or in other order.

    Written as most rows are: a line of nothing else, from json.dumps with ensure_ascii=False, is this already.
    """
    if "messages" in row:
        kept: dict[str, Any] = {
            "messages": [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
        }
    else:
        prompt, response = checked_pair(row)
        kept = {"prompt": prompt, "response": response}
    return json.dumps(kept, ensure_ascii=False)


def truncated(turns: list[Turn], length: int) -> list[Turn]:
    """The turns cut to `length` tokens at the end; what is left ends with an answer, or is empty."""
    kept: list[Turn] = []
    room = length
    for turn in turns:
        if room <= len(turn.input_ids):
            break
        answer = turn.labels[: room - len(turn.input_ids)]
        kept.append(Turn(turn.input_ids, answer))
        room -= len(turn.input_ids) + len(answer)
    return kept


def count_tokens(turns: list[Turn]) -> int:
    """Tokens of all turns, prompts and answers."""
    return sum(len(turn.input_ids) + len(turn.labels) for turn in turns)
