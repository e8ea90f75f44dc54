"""Joining, against the plain loop that it stands for."""

import numpy as np
import pytest

from data_prep.windows import join_documents


@pytest.mark.parametrize("before", [[], [7], [7, 8]])
@pytest.mark.parametrize("after", [[], [9], [9, 10, 11]])
@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0], [4], []])
def test_joining_is_the_plain_loop(before: list[int], after: list[int], lengths: list[int]) -> None:
    documents = [list(range(100 * n, 100 * n + length)) for n, length in enumerate(lengths)]
    expected = [token for document in documents for token in before + document + after]

    joined = join_documents([np.array(document, dtype=np.uint32) for document in documents], before, after, "uint16")

    assert joined.tolist() == expected
    assert joined.dtype == np.uint16
