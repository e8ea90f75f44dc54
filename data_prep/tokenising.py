"""Text into token ids: the tokenizer's own facts, and the engine that encodes, which can be swapped.

The `tokenizers` library reads tokenizer.json: no transformers, no torch.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from data_prep.errors import PrepError
from data_prep.manifest import TokenizerRecord
from data_prep.tokenizer_files import locate_tokenizer, refuse_other_spacing, special_tokens
from data_prep.windows import Ids

MOST_IDS = 1 << 24  # tables of that many rows are made; the largest vocabularies have a fiftieth of it


class Engine(Protocol):
    """What encodes a batch of documents. Every engine must give the same ids as `HuggingFaceEngine`."""

    name: str

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, in any integer type."""
        ...


def load_tokenizer(name: str) -> tuple[Tokenizer, TokenizerRecord]:
    """Load a tokenizer from a folder, a tokenizer.json, or Hugging Face's cache (then from its hub).

    Raises:
        PrepError: no such tokenizer, or no tokenizer.json in it.
    """
    path = locate_tokenizer(name)
    content = Path(path).read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # tokenizers raises plain Exception
        raise PrepError(f"--tokenizer {path}: not a tokenizer.json of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = special_tokens(Path(path).parent)
    refuse_other_spacing(Path(path).parent, tokenizer.pre_tokenizer)

    def token_id(role: str) -> int | None:
        return tokenizer.token_to_id(special[role]) if special.get(role) else None

    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if max(ids, default=MOST_IDS) >= MOST_IDS:
        raise PrepError(f"--tokenizer {path}: its largest id is {max(ids, default='none')}; expected less than 2^24.")
    facts = TokenizerRecord(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=max(ids) + 1,
        bos_id=token_id("bos_token"),
        eos_id=token_id("eos_token"),
        pad_id=token_id("pad_token"),
    )
    return tokenizer, facts


@dataclass(frozen=True)
class Separators:
    """Ids put in front of (`before`) and behind (`after`) each document."""

    before: list[int]
    after: list[int]


def choose_separators(
    tokenizer: Tokenizer,
    facts: TokenizerRecord,
    bos_text: str | None,
    eos_text: str | None,
    add_special_tokens: bool,
) -> Separators:
    """What goes between documents.

    Args:
        bos_text: text whose ids go in front; None or "": nothing.
        eos_text: text whose ids go behind; "": nothing; None: the tokenizer's own EOS, unless its template adds tokens.
        add_special_tokens: whether the tokenizer's own template is applied to each document.

    Raises:
        PrepError: when nothing would separate two documents, the tokenizer names no EOS, or its template does more than
            to put tokens around a document.
    """
    before, behind = _template(tokenizer, facts) if add_special_tokens else ([], [])
    before = _ids_of(tokenizer, facts, bos_text or "") + before
    if eos_text is None and not add_special_tokens:
        if facts.eos_id is None:
            named = special_tokens(Path(facts.path).parent).get("eos_token")
            what = (
                f"the eos_token {named!r} of its configuration is not in its vocabulary"
                if named
                else "no eos_token is named in the tokenizer_config.json beside it"
            )
            raise PrepError(
                f"--tokenizer {facts.path}: {what}, so that nothing would end a document; give --eos-text, such as "
                "'<|endoftext|>'."
            )
        after = [*behind, facts.eos_id]
    else:
        after = behind + _ids_of(tokenizer, facts, eos_text or "")
    if not before + after:
        raise PrepError("nothing would separate one document from the next; give --eos-text or --bos-text.")
    return Separators(before=before, after=after)


class HuggingFaceEngine:
    """Encodes with Hugging Face's `tokenizers`, on all cores unless TOKENIZERS_PARALLELISM=false.

    Args:
        allow_special: text that spells a special token becomes that token. Off, it is ordinary text.
        path: of tokenizer.json, for messages.
    """

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer, allow_special: bool, path: str):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        self._tokenizer = tokenizer
        self._path = path
        self._special_is_text = not allow_special

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text; `encode_batch_fast` leaves out the offsets, which nobody needs here.

        Raises:
            PrepError: the tokenizer cannot encode one of them.
        """
        self._tokenizer.encode_special_tokens = self._special_is_text  # a tokenizer may serve several
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        with _refusals_in_words(self._path):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def choose_dtype(asked: str, vocab_size: int) -> str:
    """uint16 where every id fits and `asked` is "auto"; else what was asked, or int32.

    Raises:
        PrepError: uint16 was asked for and does not hold the vocabulary.
    """
    fits = vocab_size <= 1 << 16
    if asked == "auto":
        return "uint16" if fits else "int32"
    if asked == "uint16" and not fits:
        raise PrepError(
            f"--dtype uint16 holds ids below 65,536 and the vocabulary has {vocab_size:,}; use int32 or auto."
        )
    return asked


def _template(tokenizer: Tokenizer, facts: TokenizerRecord) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's template puts in front of a document and behind it."""
    text = "A text of some tokens."
    with _refusals_in_words(facts.path):
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        whole = tokenizer.encode(text, add_special_tokens=True).ids
    added = len(whole) - len(plain)
    for front in range(added + 1):
        if whole[front : front + len(plain)] == plain:
            return whole[:front], whole[front + len(plain) :]
    raise PrepError(
        f"--add-special-tokens: the template in {facts.path} does more than to put tokens around a document: {plain} "
        f"becomes {whole}. Leave the option out and give --bos-text or --eos-text."
    )


def _ids_of(tokenizer: Tokenizer, facts: TokenizerRecord, text: str) -> list[int]:
    tokenizer.encode_special_tokens = False  # here "<|endoftext|>" is meant
    with _refusals_in_words(facts.path):
        return list(tokenizer.encode(text, add_special_tokens=False).ids) if text else []


@contextlib.contextmanager
def _refusals_in_words(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tokenizers raises plain Exception, where its unk_token is not in the vocabulary say
        raise PrepError(f"--tokenizer {path}: the tokenizers library cannot encode with it: {error}.") from error
