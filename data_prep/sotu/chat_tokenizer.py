"""Give a tokenizer a chat template, in a folder of its own; the words stay, and so a model's weights.

    python -m data_prep.sotu.chat_tokenizer shards/sotu/tokenizer shards/sotu-chat/tokenizer

The template is short, for a model that reads 128 tokens, and ends each answer with the EOS token, at which generation
stops. ChatML, the default of data_prep.finetune, would spend a third of them on its marks.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data_prep.errors import PrepError, exit_status

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
LEFT_OUT = ("chat_template.jinja", "training.json")  # a template that would win, and what says how the words were made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a tokenizer's folder")
    parser.add_argument("out", type=Path, help="the folder to make")
    arguments = parser.parse_args()
    return exit_status(lambda: run(arguments.source, arguments.out))


def run(source: Path, out: Path) -> None:
    """Copy the folder `source`, with the template, to `out`. Raises PrepError where that is another folder already."""
    config = config_of(source)
    if out.exists() and config_of(out).get("chat_template") != TEMPLATE:
        raise PrepError(f"{out} is there already, and not made by this command: name another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*LEFT_OUT))
        text = json.dumps({**config, "chat_template": TEMPLATE}, indent=2, ensure_ascii=False)
        (partial / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {source} with a chat template")


def config_of(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder. Raises PrepError where it has none."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrepError(f"{folder} is no tokenizer's folder: {error}") from None
    if not isinstance(config, dict):
        raise PrepError(f"{folder}/tokenizer_config.json: got {type(config).__name__}, expected a JSON object")
    return config


if __name__ == "__main__":
    sys.exit(main())
