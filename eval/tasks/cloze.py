"""A multiple-choice cloze from held-out documents: which word comes next?

Each example shows the words before one word of a document and offers that word among three others that are about as
frequent in the same documents, so that frequency alone gives chance, 25 %. The lines are in LLM Foundry's
multiple-choice format: `{"query": …, "choices": [four words], "gold": index}`.
"""

from __future__ import annotations

import collections
import random
import re
from collections.abc import Sequence

CHOICES = 4
CONTEXT_WORDS = 60
SHORTEST_CONTEXT_WORDS = 20
_WORD = re.compile(r"[a-z]{3,}")


def make_cloze(documents: Sequence[str], examples: int, seed: int) -> list[dict[str, object]]:
    """Examples drawn evenly from the documents; the same arguments give the same examples.

    Raises ValueError when the documents hold fewer places for an example than asked for.
    """
    chosen = random.Random(seed)
    split = [document.split() for document in documents]
    counts = collections.Counter(w for words in split for w in words if _WORD.fullmatch(w))
    ranked = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    rank = {word: index for index, word in enumerate(ranked)}
    places = [
        (document, position)
        for document, words in enumerate(split)
        for position in range(SHORTEST_CONTEXT_WORDS, len(words))
        if _WORD.fullmatch(words[position])
    ]
    if len(places) < examples or len(ranked) < 10 * CHOICES:
        raise ValueError(f"{len(places)} places and {len(ranked)} words are too few for {examples} examples")
    made = []
    for document, position in chosen.sample(places, examples):
        words = split[document]
        answer = words[position]
        choices = [answer, *chosen.sample(_peers(ranked, rank[answer]), CHOICES - 1)]
        chosen.shuffle(choices)
        context = " ".join(words[max(0, position - CONTEXT_WORDS) : position])
        made.append({"query": context, "choices": choices, "gold": choices.index(answer)})
    return made


def _peers(ranked: Sequence[str], rank: int) -> list[str]:
    """Words of about the same frequency: the neighbours in the ranking, more of them where words are rarer."""
    reach = max(2 * CHOICES, rank // 4)
    return [w for w in ranked[max(0, rank - reach) : rank + reach + 1] if w != ranked[rank]]
