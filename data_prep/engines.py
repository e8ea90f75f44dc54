"""Which engine encodes: the fast ones, and the check that they give the ids of Hugging Face's `tokenizers`.

Where text that spells a special token is to stay text, gigatoken gets a tokenizer.json without the special tokens.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from tokenizers import Tokenizer

from data_prep.errors import PrepError, changed_meanwhile
from data_prep.long_texts import CutRule, cut_rule, pieces_of
from data_prep.newer_characters import has_newer_character
from data_prep.tokenising import Engine, HuggingFaceEngine
from data_prep.windows import Ids

NAMES = ("gigatoken", "fastokens", "tokenizers")  # tried in this order: by speed
_PIECE_CHARACTERS = 1024  # of a document with a newer character, of which the reference reads those that have one
_CACHE_BYTES = 160 << 20  # that a process may grow by before the engine, whose caches never shrink, is made anew
# Strings on which tokenizers differ most easily: runs of spaces, contractions, digits, control characters, scripts,
# characters that are young.
_HARD_TEXTS = (
    " ",
    "  a   b    c\t\td\n\n\n e \r\n f\u00a0g\u3000h\u2028i \n",
    "I'm you're he'LL 'tis don''t 's'S’s",
    "0 00 000 1234567890 1,234.56 3e-10 ½ ٣ ४",
    "e\u0301 \u00e9 \ufb01 \u1e9b\u0323 \uac00 \u1100\u1161 \U0001d518",
    "naïve 日本語テキスト пример ελληνικά العربية עברית हिन्दी ไทย",
    "😀👩‍👩‍👧‍👦🇩🇪 \u0000\u0001\u007f\ufffd\ufeff ",
    "snake_case CamelCase HTTPServer __init__(self, *args) -> {'a': [1, 2]}; // --x!=y",
    "<|endoftext|> <|padding|> <s></s> [INST] <|im_start|>",
    "a\u0898\u0323 \U000105d2\u0307 \U00011935\U00011930 \u088f's \U000323b0's",  # what newer_characters.py is about
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 8,
)


@dataclass(frozen=True)
class EngineSettings:
    """All that makes an engine, so that another process can make the same one."""

    name: str  # one of NAMES
    path: str  # of tokenizer.json
    sha256: str  # of its bytes
    allow_special: bool  # text that spells a special token becomes that token
    cuts: CutRule | None = None  # where texts may be cut

    def content(self) -> bytes:
        """The bytes of tokenizer.json.

        Raises:
            Interrupted: they are no longer those that the run began with.
            OSError: they cannot be read.
        """
        content = Path(self.path).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise changed_meanwhile(f"--tokenizer {self.path}")
        return content

    def make(self, reference: Engine | None = None) -> Engine:
        """The engine.

        Args:
            reference: what it takes for documents that it is not exact on; made when it is needed, if None.

        Raises:
            PrepError: this engine is not installed or cannot do what the tokenizer wants; says which.
            Interrupted, OSError: as `content` does.
        """
        content = self.content()
        if self.name == "tokenizers":
            return HuggingFaceEngine(Tokenizer.from_buffer(content), self.allow_special, self.path)
        try:
            if self.name == "gigatoken":
                return GigatokenEngine(content, self, reference)
            return FastokensEngine(content, self.allow_special)
        except ImportError as error:
            raise PrepError(f"not installed here ({error})") from error
        except PrepError:
            raise
        except Exception as error:  # whatever the library says about a tokenizer that it does not know
            raise PrepError((str(error).strip() or type(error).__name__).splitlines()[0]) from error


class GigatokenEngine:
    """gigatoken, a document at a time on this thread: no batch calls, so no awkward arrays and no thread pool.

    Of a document with one of NEWER_CHARACTERS the pieces that have them go to `tokenizers`, which is loaded for the
    first; all of it where there is no rule where it may be cut.

    Its caches grow with every new word and have no limit; so it is loaded again (0.15 s) when the process has grown by
    160 MiB since the last time.
    """

    name = "gigatoken"

    def __init__(self, content: bytes, settings: EngineSettings, reference: Engine | None = None):
        from gigatoken.gigatoken_rs import load_hf_json  # only here: not on every platform

        if b"\\p{P" in content or b"\\p{S" in content:
            raise PrepError(
                "knows newer punctuation and symbols than tokenizers (\\p{P} or \\p{S} in the pre-tokenizer)"
            )
        if not settings.allow_special:
            content = without_special_tokens(content)
        self._load: Callable[[], Any] = lambda: load_hf_json(content)
        self.cuts = settings.cuts
        self._make_reference = replace(settings, name="tokenizers").make
        self._reference = reference
        self._process = psutil.Process()
        self._renew()

    def _renew(self) -> None:
        self._encode: Callable[[str], Ids] | None = None  # let go of the old one first
        self._encode = self._load().encode
        self._size = self._process.memory_info().rss

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text."""
        encode = self._encode
        assert encode is not None
        ids = [encode(text) for text in texts]
        for place, text in enumerate(texts):
            if has_newer_character(text):  # asked after encoding, when the text's UTF-8 is at hand
                ids[place] = self._exactly(text, encode)
        if self._process.memory_info().rss > self._size + _CACHE_BYTES:
            del encode
            self._renew()
        return ids

    def _exactly(self, text: str, encode: Callable[[str], Ids]) -> Ids:
        if self._reference is None:
            self._reference = self._make_reference()
        pieces = pieces_of([text], _PIECE_CHARACTERS, self.cuts)
        return np.concatenate(
            [self._reference.encode([piece])[0] if has_newer_character(piece) else encode(piece) for piece in pieces]
        )


class FastokensEngine:
    """fastokens, a document at a time on this thread, into a flat buffer: a batch costs more and uses other cores."""

    name = "fastokens"

    def __init__(self, content: bytes, allow_special: bool):
        from fastokens._native import Tokenizer as Fast  # not `fastokens`, whose shim imports more

        self._tokenizer = Fast.from_json_str(content.decode("utf-8"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._split_special_tokens = not allow_special

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text."""
        encode, split = self._tokenizer.encode_batch_flat, self._split_special_tokens
        return [np.frombuffer(encode([text], False, split)[0], dtype="<u4") for text in texts]


def choose_engine(
    asked: str, settings: EngineSettings, tokenizer: Tokenizer, sample: Sequence[str], strict: bool
) -> tuple[EngineSettings, Engine]:
    """The first engine that gives the reference's ids on a sample of the input and on strings that are hard.

    Args:
        asked: one of NAMES, or "auto" for the first of them that passes.
        sample: documents of the input, or beginnings of them.
        strict: fail where an engine gives other ids, or the one asked for cannot be used, instead of taking the next.

    Raises:
        PrepError: under `strict`, or where the tokenizer itself cannot encode them.
        Interrupted, OSError: as `EngineSettings.content` does.
    """
    texts = [*_HARD_TEXTS, *(f"a{token} b{token}\n{token}" for token in special_tokens_of(tokenizer)[:8]), *sample]
    reference = HuggingFaceEngine(tokenizer, settings.allow_special, settings.path)
    expected: list[Ids] | None = None
    for name in NAMES[:-1] if asked == "auto" else (asked,):
        candidate = replace(settings, name=name)
        if name == reference.name:
            break
        try:
            engine = candidate.make(reference)
        except PrepError as error:
            _report(name, f"cannot be used: {error}", strict and asked != "auto", loud=asked != "auto")
            continue
        if expected is None:
            expected = reference.encode(texts)
        difference = first_difference(texts, expected, engine.encode(texts))
        if difference is None:
            return _with_cuts(candidate, engine, sample)
        _report(name, f"gives other ids than tokenizers: {difference}", strict, loud=True)
    return _with_cuts(replace(settings, name=reference.name), reference, sample)


def first_difference(texts: Sequence[str], expected: Sequence[Ids], got: Sequence[Ids]) -> str | None:
    """Where two engines first differ, in words; None: they do not."""
    for text, right, ids in zip(texts, expected, got, strict=True):
        if not np.array_equal(right, ids):
            shorter = min(len(right), len(ids))
            at = int(np.argmax(np.append(right[:shorter] != ids[:shorter], True)))
            here = slice(at, at + 4)
            return f"{ids[here].tolist()} instead of {right[here].tolist()} at token {at} of {text[:60]!r}"
    return None


def _with_cuts(settings: EngineSettings, engine: Engine, sample: Sequence[str]) -> tuple[EngineSettings, Engine]:
    """Where texts may be cut, found out and told to the engine."""
    cuts = cut_rule(settings.content(), engine, settings.allow_special, sample)
    if isinstance(engine, GigatokenEngine):
        engine.cuts = cuts
    return replace(settings, cuts=cuts), engine


def _report(name: str, problem: str, fail: bool, loud: bool) -> None:
    if fail:
        raise PrepError(
            f"--encoder {name} {problem}. Without --strict another engine is taken; --encoder tokenizers always works."
        )
    if loud:
        print(f"note: {name} {problem}; trying the next engine.", file=sys.stderr)


def special_tokens_of(tokenizer: Tokenizer) -> list[str]:
    """What the special tokens are spelled like."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def without_special_tokens(content: bytes) -> bytes:
    """A tokenizer.json in which nothing is a special token, so that no text becomes one.

    Raises:
        PrepError: other added tokens have characters in common with special ones; then `tokenizers`, which finds both
            and lets the special ones pass, could differ.
    """
    config = orjson.loads(content)
    added = config.get("added_tokens") or []
    special = {letter for token in added if token.get("special") for letter in token["content"]}
    others = [token for token in added if not token.get("special")]
    mixed = [token["content"] for token in others if special.intersection(token["content"])]
    if mixed:
        raise PrepError(f"cannot tell special tokens from other added tokens, such as {mixed[0]!r}")
    return orjson.dumps({**config, "added_tokens": others})
