"""What a model must beat to have learned anything about order: the entropy of single tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

LONGEST = 20_000  # sequences looked at


def unigram_entropy(folder: Path) -> float | None:
    """Entropy in nats a token of the token frequencies in a folder of MDS shards.

    None where it holds no token ids, or shards that are compressed and were not opened here.

    H = −Σ p log p over the tokens' shares p: the loss of a model that knows how often each token comes and no more.
    """
    import numpy as np
    from streaming import LocalDataset

    data = LocalDataset(str(folder))
    if not all((folder / file.basename).is_file() for shard in data.shards for file, _ in shard.file_pairs):
        return None
    counts: np.ndarray = np.zeros(0, dtype=np.int64)
    for index in itertools.islice(range(len(data)), LONGEST):
        tokens = data[index].get("tokens")
        if not isinstance(tokens, np.ndarray):
            return None
        found = np.bincount(tokens.astype(np.int64), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
