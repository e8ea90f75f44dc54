"""Which documents are kept out of training, decided by each document's text alone."""

import hashlib
from collections.abc import Iterator

from data_prep.errors import PrepError

_BLOCK_CHARACTERS = 1 << 20


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document is in the held-out part of `fraction` (0..1) of all documents.

    SHA-256 of the text in UTF-8, its first 8 bytes read as a big-endian integer, divided by 2**64, below `fraction`.
    So the choice does not depend on order, on files or on other documents; copies of a text are on the same side;
    and the documents held out at 1 % are also held out at 5 %.
    """
    return fraction > 0 and is_digest_held_out(sha256_of_text(text), fraction)


def is_digest_held_out(sha256: bytes, fraction: float) -> bool:
    """`is_held_out` of a text with this SHA-256."""
    return int.from_bytes(sha256[:8], "big") < fraction * 2.0**64


def sha256_of_text(text: str) -> bytes:
    """SHA-256 of the text in UTF-8."""
    digest = hashlib.sha256()
    for block in utf8_blocks(text):
        digest.update(block)
    return digest.digest()


def utf8_blocks(text: str) -> Iterator[bytes]:
    """The text in UTF-8, a block at a time, so that a long one is not held twice."""
    if len(text) <= _BLOCK_CHARACTERS:
        yield text.encode("utf-8")
        return
    for start in range(0, len(text), _BLOCK_CHARACTERS):
        yield text[start : start + _BLOCK_CHARACTERS].encode("utf-8")


def utf8_size(text: str) -> int:
    """Bytes of the text in UTF-8."""
    return len(text) if text.isascii() else sum(map(len, utf8_blocks(text)))


def checked_fraction(fraction: float) -> float:
    """`fraction`, if it is in [0, 1).

    Raises:
        PrepError: otherwise.
    """
    if not 0 <= fraction < 1:
        raise PrepError(f"--holdout {fraction:g}: expected a fraction of the documents, 0 or more and below 1 (0.05).")
    return fraction
