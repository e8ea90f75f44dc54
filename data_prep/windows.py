"""Documents' ids joined end to end. T: tokens."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.generic]  # any integer type


def join_documents(documents: Sequence[Ids], before: list[int], after: list[int], dtype: npt.DTypeLike) -> Ids:
    """Documents with `before` (BOS) put in front of each and `after` (EOS) behind it, in one pass.

    Args:
        documents: the ids of each, (tokens,) in any integer type; every id must fit into `dtype`.

    Returns:
        (T,) with T = tokens of all + len(documents) * (len(before) + len(after)).
    """
    if not documents:
        return np.empty(0, dtype=dtype)
    front, behind = np.array(before, dtype=dtype), np.array(after, dtype=dtype)
    pieces: list[Ids] = []
    for document in documents:
        if len(front):
            pieces.append(front)
        pieces.append(document)
        if len(behind):
            pieces.append(behind)
    return np.concatenate(pieces, dtype=dtype, casting="unsafe")
