"""Where a tokenizer's files are: a folder, a tokenizer.json, or a name on Hugging Face."""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

from data_prep.errors import PrepError, refuse_not_utf8

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")  # either names the special tokens
SETTINGS = (*CONFIG_FILES, "chat_template.jinja")  # what transformers reads beside tokenizer.json
_ROLES = ("bos_token", "eos_token", "pad_token")


def locate_tokenizer(name: str) -> str:
    """The path of the tokenizer.json that `--tokenizer name` means; its configuration is beside it.

    Raises:
        PrepError: there is none.
    """
    refuse_not_utf8("--tokenizer ", name)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / TOKENIZER_FILE).is_file():
            raise PrepError(
                f"--tokenizer {name}: a folder without {TOKENIZER_FILE}. Save a fast tokenizer there: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
            )
        return str(path / TOKENIZER_FILE)
    if path.is_file():
        return str(path)
    if path.suffix == ".json" or name.startswith((".", "/", "~")) or not 0 <= name.count("/") <= 1:
        raise PrepError(f"--tokenizer {name}: no such file or folder.")
    found = _from_hub(name, TOKENIZER_FILE)
    for config in SETTINGS:
        with contextlib.suppress(PrepError):  # a repository may lack one of them
            _from_hub(name, config)
    return found


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and pad_token, as far as the configuration in `folder` names them.

    Raises:
        PrepError: a configuration that is not JSON.
    """
    named: dict[str, str] = {}
    for path in (folder / file for file in CONFIG_FILES if (folder / file).is_file()):
        try:
            config: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PrepError(f"{path}: not JSON ({error}).") from error
        for role in _ROLES:
            value = config.get(role) if isinstance(config, dict) else None
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named.setdefault(role, text)
    return named


def refuse_other_spacing(folder: Path, pre_tokenizer: Any) -> None:
    """Refuse a configuration that makes transformers, and so LLM Foundry and this project's training, split otherwise.

    Args:
        pre_tokenizer: of tokenizer.json, as the tokenizers library has it.

    Raises:
        PrepError: add_prefix_space is one thing in tokenizer.json and another in its configuration.
    """
    path = folder / CONFIG_FILES[0]
    if pre_tokenizer is None or not path.is_file():
        return
    state: Any = json.loads(pre_tokenizer.__getstate__())
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    if state.get("type") != "ByteLevel" or not isinstance(config, dict):
        return
    here, there = state["add_prefix_space"], bool(config.get("add_prefix_space", False))
    if here != there:
        raise PrepError(
            f"--tokenizer {folder}: add_prefix_space is {there} in {path.name}, which transformers follows, and {here} "
            f"in {TOKENIZER_FILE}; load it with transformers and save it anew (save_pretrained)."
        )


@functools.cache
def hub_reachable() -> bool:
    """Whether Hugging Face's hub answers within a second: hf_hub_download would try for half a minute."""
    import socket  # only here
    import urllib.parse
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    hub = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    if {hub.scheme, "all"} & urllib.request.getproxies().keys():
        return True  # huggingface_hub goes through it, and says what it cannot reach
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        with socket.create_connection((hub.hostname, port), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def _from_hub(repository: str, file: str) -> str:
    """A file of a repository: from the cache, else fetched."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # only here

    try:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return cached
        if not hub_reachable():
            raise OSError("the hub cannot be reached, or HF_HUB_OFFLINE is set")
        return hf_hub_download(repository, file)
    except Exception as error:  # many kinds: offline, unknown, gated, not a valid name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PrepError(
            f"--tokenizer {repository}: no such folder here, and its {file} is neither in Hugging Face's cache nor "
            f"could it be fetched ({reason}). Give a folder that holds {TOKENIZER_FILE}."
        ) from error
