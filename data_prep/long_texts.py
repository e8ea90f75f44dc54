"""Long texts cut where every tokenizer of the GPT-2 family cuts too, so that the pieces' ids are the text's ids.

Between a lower-case ASCII letter and a single space that a lower-case ASCII letter follows, these tokenizers always
begin a new word, whatever stands farther away.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_prep.tokenising import Engine

_CUT = re.compile(r"(?<=[a-z]) (?=[a-z])")
_TAIL = r"\s+(?!\S)"  # in the pattern of every tokenizer of the family


def pieces_of(blocks: Iterable[str], characters: int) -> Iterator[str]:
    """A text, given in blocks, in pieces of a little more than `characters`; longer where it has no place to cut."""
    text, searched = "", 0
    for block in blocks:
        text, start = text + block, 0
        while len(text) - start > characters:
            found = _CUT.search(text, max(start + characters, searched))
            if found is None:
                break
            yield text[start : found.start()]
            start = searched = found.start()
        text = text[start:]
        searched = max(len(text) - 2, 0)
    yield text


def can_be_cut(tokenizer_json: str, engine: Engine, sample: Sequence[str]) -> bool:
    """Whether the tokenizer is of the family, by its configuration and by its ids on a sample cut everywhere."""
    config = orjson.loads(Path(tokenizer_json).read_bytes())
    if not _is_of_the_family(config):
        return False
    texts = list(sample)
    for text, whole in zip(texts, engine.encode(texts), strict=True):
        if not np.array_equal(np.concatenate(engine.encode(list(pieces_of([text], 1)))), whole):
            return False
    return True


def _is_of_the_family(config: dict[str, Any]) -> bool:
    normalizer = config.get("normalizer") or {"type": "NFC"}
    if normalizer.get("type") not in ("NFC", "NFD", "NFKC", "NFKD"):
        return False
    for token in config.get("added_tokens") or []:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word") or _CUT.search(token["content"]):
            return False
    first = config.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers") or [first]
    kinds = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        return False
    if kinds == ["ByteLevel"]:
        return bool(steps[0].get("use_regex", True))
    pattern = (steps[0].get("pattern") or {}).get("Regex", "")
    isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    return kinds == ["Split", "ByteLevel"] and isolated and _TAIL in pattern
