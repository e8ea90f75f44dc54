"""Records sorted on the disk, against NumPy's sort in memory."""

from pathlib import Path

import numpy as np
import pytest

from data_prep import sorting
from data_prep.sorting import Sorter

KIND = np.dtype([("key", ">u8"), ("small", ">u4"), ("number", ">u8")])


@pytest.mark.parametrize("keys", [1 << 62, 3, 1])
@pytest.mark.parametrize("count", [0, 1, 5_000])
def test_sorted_as_in_memory(count: int, keys: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "_RUN_BYTES", 4_000)
    monkeypatch.setattr(sorting, "_LEAST_READ", 100)
    rng = np.random.default_rng(count + keys)
    records = np.empty(count, dtype=KIND)
    records["key"], records["small"] = rng.integers(0, keys, count), rng.integers(0, 2, count)
    records["number"] = rng.permutation(count)  # so that no two are the same
    sorter = Sorter(KIND, tmp_path)
    for start in range(0, count, 70):
        sorter.add(records[start : start + 70])
    pieces = list(sorter.sorted())
    found = np.concatenate([np.empty(0, KIND), *pieces])
    order = np.lexsort((records["number"], records["small"], records["key"]))
    assert found.tolist() == records[order].tolist()
    assert max(map(len, pieces), default=0) < max(count // 3, 2)
    assert not list(tmp_path.iterdir())
