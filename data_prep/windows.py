"""Documents' ids joined end to end and cut into sequences of one length.

S: tokens a sequence; n: sequences; T: tokens.
"""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.generic]  # uint16 or int32


def join_documents(ids: Ids, lengths: npt.NDArray[np.int64], before: list[int], after: list[int]) -> Ids:
    """Documents with `before` (BOS) put in front of each and `after` (EOS) behind it.

    Args:
        ids: (T,) the documents' ids, one document after another.
        lengths: (documents,) tokens of each.

    Returns:
        (T + documents * (len(before) + len(after)),) of the same dtype.
    """
    added = len(before) + len(after)
    if not added or not len(lengths):
        return ids
    ends = np.cumsum(lengths + added)  # (documents,) where each document ends in the result
    joined = np.empty(int(ends[-1]), dtype=ids.dtype)
    is_text = np.ones(len(joined), dtype=bool)
    starts = ends - lengths - added
    places = [(starts + offset, token) for offset, token in enumerate(before)]
    places += [(ends - len(after) + offset, token) for offset, token in enumerate(after)]
    for where, token in places:
        joined[where] = token
        is_text[where] = False
    joined[is_text] = ids
    return joined


class WindowCutter:
    """Cuts a stream of ids into (n, S) blocks; a sequence may begin and end inside a document.

    Memory: the block it is given and fewer than S ids.
    """

    def __init__(self, seq_len: int, dtype: npt.DTypeLike):
        self.seq_len = seq_len
        self._tail: Ids = np.empty(0, dtype=dtype)

    @property
    def left_over(self) -> int:
        """Tokens at the end that do not fill a sequence."""
        return len(self._tail)

    def push(self, ids: Ids) -> Ids:
        """Add ids (T,); returns the sequences that are now full: (n, S)."""
        stream = np.concatenate((self._tail, ids))
        full = len(stream) // self.seq_len
        self._tail = stream[full * self.seq_len :].copy()  # a copy, so that the block can be freed
        return stream[: full * self.seq_len].reshape(full, self.seq_len)  # (n, S)
