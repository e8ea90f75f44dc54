"""Which documents are kept out of training, decided by each document's text alone."""

import hashlib

from data_prep.errors import PrepError


def is_held_out(text: str, fraction: float) -> bool:
    """Whether a document is in the held-out part of `fraction` (0..1) of all documents.

    SHA-256 of the text in UTF-8, its first 8 bytes read as a big-endian integer, divided by 2**64, below `fraction`.
    So the choice does not depend on order, on files or on other documents; copies of a text are on the same side;
    and the documents held out at 1 % are also held out at 5 %.
    """
    if fraction <= 0:
        return False
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64


def checked_fraction(fraction: float) -> float:
    """`fraction`, if it is in [0, 1).

    Raises:
        PrepError: otherwise.
    """
    if not 0 <= fraction < 1:
        raise PrepError(f"--holdout {fraction:g}: expected a fraction of the documents, 0 or more and below 1 (0.05).")
    return fraction
