"""Near-duplicate documents, by locality-sensitive hashing of their MinHash signatures."""

import numpy as np
import numpy.typing as npt

from data_prep.part_files import SIGNATURES


class NearDuplicates:
    """Meets documents in order and says of each whether it is a near duplicate of one that was kept before.

    A signature is cut into bands; documents that agree in one whole band are compared, and are near duplicates where
    the share of equal hashes, which estimates the Jaccard similarity of their shingles, is `threshold` or more.

    Memory: about 512 bytes of signature and 2 kB of tables a kept document.
    """

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._rows = rows_of_a_band(threshold)
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(SIGNATURES // self._rows)]
        self._kept: list[npt.NDArray[np.uint32]] = []

    def is_duplicate(self, signature: npt.NDArray[np.uint32]) -> bool:
        """Whether the document is one; if not, it is remembered."""
        content = signature.tobytes()
        width = 4 * self._rows
        keys = [content[n * width : (n + 1) * width] for n in range(len(self._bands))]
        seen: set[int] = set()
        for band, key in zip(self._bands, keys, strict=True):
            for other in band.get(key, ()):
                if other not in seen and np.mean(self._kept[other] == signature) >= self._threshold:
                    return True
                seen.add(other)
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, []).append(len(self._kept))
        self._kept.append(signature.copy())
        return False


def rows_of_a_band(threshold: float) -> int:
    """The most rows a band with which a pair at the threshold still agrees in some band in 19 cases of 20.

    With b bands of r rows the chance is 1 - (1 - threshold^r)^b (Leskovec, Rajaraman, Ullman, section 3.4.2).
    """
    fitting = [r for r in range(1, SIGNATURES + 1) if 1 - (1 - threshold**r) ** (SIGNATURES // r) >= 0.95]
    return max(fitting, default=1)
