"""Long texts cut where a token begins whatever stands around, so that the pieces' ids are the text's ids.

Of two families it is known where that is. Tokenizers like GPT-2's cut a text into words with a regular expression, in
each of which a run of letters ends where something else than a letter, a mark or an apostrophe follows. Tokenizers like
LLaMA's put ▁ for spaces, and where no token of theirs has one behind another character, a space begins one.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from data_prep.tokenising import Engine


@dataclass(frozen=True)
class CutRule:
    """Where the texts of a tokenizer may be cut."""

    place: str  # a regular expression of no width that looks one character back and two ahead at most
    left_out: int  # characters behind a cut that the tokenizer puts there by itself


# Letters that have been letters since long before any of these tokenizers, and what is no letter, mark or apostrophe.
_LETTER = "a-zα-ωа-яա-ֆא-תء-غف-يऄ-हก-ฮა-ჰ가-힣ぁ-ゖァ-ヺ一-龥"
_OTHER = r"\x00-\x26\x28-\x40\x5b-\x60\x7b-\x7e、。，！？：；（）「」"
_BEHIND_LETTERS = CutRule(f"(?<=[{_LETTER}])(?=[{_OTHER}])", left_out=0)
BETWEEN_WORDS = CutRule("(?<=[a-z])(?= [a-z])", left_out=0)  # which no added token has in it, most often
_AT_SPACES = CutRule("(?<=[^ ▁])(?= [^ ▁])", left_out=0)
_PREPENDED = CutRule(f"(?<=[{_LETTER}A-Z0-9.,])(?= [{_LETTER}A-Z0-9])", left_out=1)  # so not beside an added token
_LOOKED_AT = 3  # characters that a place looks at
_TAIL = r"\s+(?!\S)"  # in the regular expression of every tokenizer of GPT-2's family
_HARMLESS = re.compile(r"(?:\\p\{N\}|\[0-9\]|[0-9{}\[\],+*?-]|[^\x00-\x7f])+")  # one that finds digits and such alone


class NoPlaceToCut(Exception):
    """A stretch of text that is longer than it may be and has no place to cut."""


def pieces_of(blocks: Iterable[str], characters: int, rule: CutRule | None, most: int | None = None) -> Iterator[str]:
    """A text, given in blocks, in pieces of a little more than `characters`; longer where it has no place to cut.

    Raises:
        NoPlaceToCut: more than `most` characters would have to be one piece.
    """
    place = re.compile(rule.place) if rule else None
    waiting: list[str] = []  # joined only where there is a place, so that the time is linear
    length, end = 0, ""  # of what waits: its characters, and the last few of them
    for block in blocks:
        seen = end + block
        first = max(characters - length + len(end), 0)  # in `seen`, from where a place may be
        waiting.append(block)
        length, end = length + len(block), seen[-_LOOKED_AT:]
        if rule and place and place.search(seen, first):
            text, start = "".join(waiting), 0
            while found := place.search(text, start + characters):
                yield text[start : found.start()]
                start = found.start() + rule.left_out
            waiting = [text[start:]]
            length, end = len(waiting[0]), waiting[0][-_LOOKED_AT:]
        if most is not None and length > most:
            raise NoPlaceToCut
    yield "".join(waiting)


def cut_rule(tokenizer_json: bytes, engine: Engine, allow_special: bool, sample: Sequence[str]) -> CutRule | None:
    """Where the tokenizer's texts may be cut, by its configuration, and by its ids on a sample cut everywhere.

    Args:
        engine: with that tokenizer.
        allow_special: whether text that spells a special token becomes that token.
        sample: texts.
    """
    config = orjson.loads(tokenizer_json)
    added = [token for token in config.get("added_tokens") or [] if allow_special or not token.get("special")]
    if any(token.get("lstrip") or token.get("rstrip") or token.get("single_word") for token in added):
        return None
    spelled = [f"x {token['content']} x".replace("▁", " ") for token in added]
    rule = next((rule for rule in _rules_of(config) if not any(_cuts(rule, text) for text in spelled)), None)
    if rule is None:
        return None
    texts = list(sample)
    for text, whole in zip(texts, engine.encode(texts), strict=True):
        if not np.array_equal(np.concatenate(engine.encode(list(pieces_of([text], 1, rule)))), whole):
            return None
    return rule


def _rules_of(config: dict[str, Any]) -> list[CutRule]:
    """Those that hold for all text without added tokens, the one with most places first."""
    normalizers = _steps(config.get("normalizer"), "normalizers")
    pre_tokenizers = _steps(config.get("pre_tokenizer"), "pretokenizers")
    is_unicode_only = all(step.get("type") in ("NFC", "NFD", "NFKC", "NFKD") for step in normalizers)
    if is_unicode_only and _cuts_behind_letters(pre_tokenizers):
        return [_BEHIND_LETTERS, BETWEEN_WORDS]
    model = config.get("model") or {}
    if model.get("type") != "BPE" or any("▁" in token.lstrip("▁") for token in model.get("vocab") or {}):
        return []
    if not normalizers and [step.get("type") for step in pre_tokenizers] == ["Metaspace"]:
        return [_AT_SPACES] if pre_tokenizers[0].get("replacement") == "▁" else []
    prepend, replace = (
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    )
    if not pre_tokenizers and normalizers in ([replace], [prepend, replace]):
        return [_PREPENDED if prepend in normalizers else _AT_SPACES]
    return []


def _cuts(rule: CutRule, token: str) -> bool:
    """Whether a rule cuts the token in `x token x`, or takes a space away that is beside it."""
    if rule.left_out:
        return re.search(rule.place, token) is not None
    content = token[2:-2]
    found = (match.start() for more in ("a", " a") for match in re.finditer(rule.place, content + more))
    return any(0 < place < len(content) for place in found)


def _steps(config: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence of them, one of them, or none."""
    if not config:
        return []
    return list(config[name]) if config.get("type") == "Sequence" else [config]


def _cuts_behind_letters(steps: list[dict[str, Any]]) -> bool:
    """Whether pre-tokenizers are those of GPT-2's family."""
    if not steps or steps[-1].get("type") != "ByteLevel" or any(step.get("add_prefix_space") for step in steps):
        return False
    found = bool(steps[-1].get("use_regex", True))
    for step in steps[:-1]:
        if step.get("type") == "Digits":
            continue
        pattern = (step.get("pattern") or {}).get("Regex", "")
        if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
            return False
        if _TAIL in pattern and r"\p{L}" in pattern and r"\w" not in pattern and r"[\p{L}\p{N}]" not in pattern:
            found = True
        elif not _HARMLESS.fullmatch(pattern):
            return False
    return found
