"""What may come from the Hugging Face hub: whether it is in the cache, or the hub can be reached."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.tokenizer_files import hub_reachable
from recipes.config.keys import KeyPath


def not_from_hub(key: KeyPath, what: str, kind: str, name: str) -> Iterator[tuple[KeyPath, str]]:
    if hub_reachable():
        return
    flag = "" if kind == "models" else " --repo-type dataset"
    text = f"{what} is not on this machine and the Hugging Face hub cannot be reached; where it can, run"
    yield key, f"{text} `hf download {name}{flag}` and copy the cache here, or give the path of a local folder"


def in_hub_cache(kind: str, name: str) -> bool:
    return (cache_folder(kind, name) / "snapshots").is_dir()


def cache_folder(kind: str, name: str) -> Path:
    """Where the hub's cache has, or would have, one of its `models` or `datasets`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"  # of anything, also what is no name of the hub's


def tokenizer_folder(name: str) -> Path:
    """Where a tokenizer of that path or name on the hub lies on this machine; the name itself where it does not."""
    from huggingface_hub import try_to_load_from_cache

    if os.path.isdir(name):
        return Path(name)
    cached = None
    with contextlib.suppress(ValueError):  # a path that is not there, and no name of the hub's
        cached = try_to_load_from_cache(name, "tokenizer.json")
    return Path(cached).parent if isinstance(cached, str) else Path(name)
