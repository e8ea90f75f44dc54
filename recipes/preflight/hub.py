"""What may come from the Hugging Face hub: whether it is in the cache, or the hub can be reached."""

from __future__ import annotations

import functools
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from recipes.config.keys import KeyPath


def not_from_hub(key: KeyPath, what: str, kind: str, name: str) -> Iterator[tuple[KeyPath, str]]:
    if _hub_reachable():
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


@functools.cache
def _hub_reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    if {"https", "all"} & urllib.request.getproxies().keys():
        return True  # huggingface_hub goes through it, and says what it cannot reach
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    try:
        with socket.create_connection((name, int(port or 443)), timeout=1):
            return True
    except (OSError, ValueError):
        return False
