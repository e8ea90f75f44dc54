"""Give a tokenizer a chat template that ends each answer with its EOS, in a folder of its own.

    python -m data_prep.chat_tokenizer --tokenizer tokenizer/ --out chat-tokenizer/

The tokens stay, and so a model's weights. Generation stops at EOS wherever the model is served. The marks of ChatML,
the default of data_prep.finetune, are plain text to a tokenizer that has no such tokens: nothing stops there, and a
conversation of a few words spends most of its tokens on them.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import PrepError, exit_status
from data_prep.storage import local_output
from data_prep.tokenizer_files import CONFIG_FILES, TOKENIZER_FILE, locate_tokenizer, special_tokens

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'Answer: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
)
CONFIG_FILE = CONFIG_FILES[0]
COPIED = (TOKENIZER_FILE, *CONFIG_FILES)  # no chat_template.jinja, which would win, and no weights beside them


def run(tokenizer: str, name: str) -> None:
    """Copy the tokenizer, with the template, to the folder `name`.

    Raises:
        PrepError: it has no EOS, or the folder holds something else already.
    """
    source, out = Path(locate_tokenizer(tokenizer)).parent, local_output(name)
    config = config_of(source)
    if "eos_token" not in special_tokens(source):
        raise PrepError(f"--tokenizer {tokenizer}: no eos_token in {CONFIG_FILE}, with which an answer could end.")
    if out.exists() and not is_own(out):
        raise PrepError(f"{out} is there already, and not made by this command: name another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in COPIED:
            if (source / file).is_file():
                shutil.copyfile(source / file, partial / file)
        text = json.dumps({**config, "chat_template": TEMPLATE}, indent=2, ensure_ascii=False)
        (partial / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{out}: {tokenizer} with a chat template")


def is_own(folder: Path) -> bool:
    """Whether this command made the folder, and nothing was put beside."""
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= {*COPIED}:
        return False
    return not any(folder.iterdir()) or config_of(folder).get("chat_template") == TEMPLATE


def config_of(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json of a folder. Raises PrepError where it has none."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrepError(f"{folder} is no tokenizer's folder: {error}") from None
    if not isinstance(config, dict):
        raise PrepError(f"{folder}/{CONFIG_FILE}: got {type(config).__name__}, expected a JSON object")
    return config


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.chat_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    help_text = "a folder with tokenizer.json and its configuration, or a Hugging Face name; its own template is lost"
    parser.add_argument("--tokenizer", required=True, metavar="T", help=help_text)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run(arguments.tokenizer, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
