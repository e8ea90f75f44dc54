"""What is left out of the documents one by one: too short, too long, or refused by a function of the user's.

Exact and near duplicates are found later, by what is noted of each document here.
"""

import hashlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.errors import PrepError, changed_meanwhile
from data_prep.long_rows import LongDocument
from data_prep.part_files import SIGNATURES
from data_prep.rows import Document

TOO_SHORT, TOO_LONG, PREDICATE = "too short", "too long", "refused by --filter"
EXACT, NEAR = "exact duplicate", "near duplicate"
_SHINGLE_WORDS = 5
_WORD_CHARACTERS = 256
_BLOCK_CHARACTERS = 1 << 16  # whose words are in memory at once: of Chinese that is 0.3 kB a character
# Thai, Lao, Tibetan and Burmese; Khmer; New Tai Lue and Khmer signs; Tai Tham; Han, kana and their punctuation, without
# Hangul, which has spaces; Burmese again; halfwidth kana.
_UNSPACED = re.compile(
    "([\u0e00-\u109f\u1780-\u17ff\u1980-\u19ff\u1a20-\u1aad\u2e80-\u312f\u3190-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U00016fe0-\U00016fff\U0001aff0-\U0001b16f\U00020000-\U0003ffff])"
)
_PERHAPS_UNSPACED = re.compile("[\u0e00-\u1fff\u2e80-\U0003ffff]")  # asked first: it takes a quarter of the time
WORDS = (
    "spaces, characters of scripts without them, 256 characters"  # what words end at: another makes other signatures
)

Predicate = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class FilterSettings:
    """Which documents are left out. Lengths are characters of the text; 0: no limit."""

    min_chars: int = 0
    max_chars: int = 0
    predicate: str = ""  # FILE.py:FUNCTION
    predicate_sha256: str = ""  # of that file
    dedup: bool = False
    near_dedup: bool = False


class DocumentFilter:
    """Decides about one document at a time."""

    def __init__(self, settings: FilterSettings):
        self._settings = settings
        self._predicate = load_predicate(settings.predicate, settings.predicate_sha256) if settings.predicate else None

    def by_length(self, document: Document | LongDocument) -> str | None:
        """Why a document is left out before it is read; None: it is not."""
        length = len(document.text)
        if length < self._settings.min_chars:
            return TOO_SHORT
        if self._settings.max_chars and length > self._settings.max_chars:
            return TOO_LONG
        return None

    def by_predicate(self, document: Document | LongDocument) -> str | None:
        """Why the user's function leaves a document out; None: it is kept.

        Raises:
            PrepError: it failed or did not answer True or False.
        """
        if self._predicate is None:
            return None
        try:
            kept = self._predicate(document.fields())
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise PrepError(f"--filter {self._settings.predicate} failed on {document.text[:60]!r}: {what}") from error
        if not isinstance(kept, bool):
            raise PrepError(f"--filter {self._settings.predicate} returned {kept!r}; expected True (keep) or False.")
        return None if kept else PREDICATE


def filter_file(name: str) -> str:
    """FILE.py of FILE.py:FUNCTION. Raises PrepError where it is not written so."""
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not function:
        raise PrepError(f"--filter {name}: expected FILE.py:FUNCTION.")
    return path


def load_predicate(name: str, sha256: str) -> Predicate:
    """The function that FILE.py:FUNCTION names, of a file with this SHA-256.

    Raises:
        PrepError: there is none.
        Interrupted: the file holds something else by now.
        OSError: it cannot be read.
    """
    path, function = filter_file(name), name.rpartition(":")[2]
    content = Path(path).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise changed_meanwhile(f"--filter {path}")
    module = types.ModuleType("data_prep_user_filter")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look for their own module
    try:
        exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)  # what was hashed, and no cached code
    except (Exception, SystemExit) as error:
        raise PrepError(f"--filter {path} cannot be loaded: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise PrepError(f"--filter {name}: {path} has no function {function}.")
    return found


def digest_pair(sha256: bytes) -> tuple[int, int]:
    """The first 16 bytes of a text's SHA-256, as two integers."""
    return int.from_bytes(sha256[:8], "little"), int.from_bytes(sha256[8:16], "little")


def signature_of(blocks: Iterable[str]) -> npt.NDArray[np.uint32]:
    """The MinHash signature (SIGNATURES,) of a text's shingles of 5 words, in lower case; the text is given in blocks.

    A word is what stands between spaces, each character of a script that is written without them, and of more than 256
    characters each 256 of them.
    """
    from rensa import RMinHash  # only here: an optional package

    minhash = RMinHash(num_perm=SIGNATURES, seed=1)
    words: list[str] = []
    is_short = True
    for more in _words(blocks):
        words += more
        shingles = [" ".join(words[n : n + _SHINGLE_WORDS]) for n in range(len(words) - _SHINGLE_WORDS + 1)]
        if shingles:
            minhash.update(shingles)
            words, is_short = words[1 - _SHINGLE_WORDS :], False
    if is_short:
        minhash.update([" ".join(words)])
    return np.array(minhash.digest(), dtype=np.uint32)


def _words(blocks: Iterable[str]) -> Iterator[list[str]]:
    """The words of a text, some at a time, none of them cut where a block ends."""
    begun = ""
    pieces = (block[at : at + _BLOCK_CHARACTERS] for block in blocks for at in range(0, len(block), _BLOCK_CHARACTERS))
    for piece in pieces:
        text = begun + piece
        if not text.isascii() and _PERHAPS_UNSPACED.search(text):
            text = " ".join(_UNSPACED.split(text))
        words = _without_long_ones(text.split())
        begun = words.pop() if words and not text[-1].isspace() else ""
        yield [word.lower() for word in words]
    yield [begun.lower()] if begun else []


def _without_long_ones(words: list[str]) -> list[str]:
    """The words, and the pieces of those that are too long."""
    if len(max(words, key=len, default="")) <= _WORD_CHARACTERS:
        return words
    return [word[at : at + _WORD_CHARACTERS] for word in words for at in range(0, len(word), _WORD_CHARACTERS)]
