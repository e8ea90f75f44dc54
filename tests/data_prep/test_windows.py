"""Joining and cutting, against the plain loop that they stand for."""

import numpy as np
import pytest

from data_prep.windows import WindowCutter, join_documents


@pytest.mark.parametrize("before", [[], [7], [7, 8]])
@pytest.mark.parametrize("after", [[], [9], [9, 10, 11]])
@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0], [4], []])
def test_joining_is_the_plain_loop(before: list[int], after: list[int], lengths: list[int]) -> None:
    documents = [list(range(100 * n, 100 * n + length)) for n, length in enumerate(lengths)]
    expected = [token for document in documents for token in before + document + after]

    flat = np.array([token for document in documents for token in document], dtype=np.uint16)
    joined = join_documents(flat, np.array(lengths, dtype=np.int64), before, after)

    assert joined.tolist() == expected
    assert joined.dtype == np.uint16


@pytest.mark.parametrize("sizes", [[10], [3, 3, 3, 3], [0, 1, 25, 0, 2], [4, 4], [1] * 9])
def test_windows_do_not_depend_on_how_the_stream_arrives(sizes: list[int]) -> None:
    stream = np.arange(sum(sizes), dtype=np.int32)
    cutter = WindowCutter(seq_len=4, dtype=np.int32)

    pieces = np.split(stream, np.cumsum(sizes)[:-1])
    windows = np.concatenate([cutter.push(piece) for piece in pieces])

    full = len(stream) // 4
    assert np.array_equal(windows, stream[: full * 4].reshape(full, 4))
    assert cutter.left_over == len(stream) - 4 * full
