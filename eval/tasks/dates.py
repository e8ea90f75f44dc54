"""Dates from held-out documents: which year is meant?

Each example shows the words before a year and offers that year among three others, all at least a generation apart. A
model that only knows which years are often named does better than chance; one that reads on does better than that.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

CHOICES = 4
CONTEXT_WORDS = 60
SHORTEST_CONTEXT_WORDS = 10
APART = 25  # years between any two choices, at least
FIRST, LAST = 1789, 2024  # the years that are offered
_YEAR = re.compile(r"(1[789]\d\d|20[0-4]\d)\b")


def make_dates(documents: Sequence[str], examples: int, seed: int) -> list[dict[str, object]]:
    """As many examples as asked for or as there are years; the same arguments give the same examples.

    Raises ValueError when the documents name no year.
    """
    chosen = random.Random(seed)
    split = [document.split() for document in documents]
    places = [
        (document, position, int(found.group(1)))
        for document, words in enumerate(split)
        for position in range(SHORTEST_CONTEXT_WORDS, len(words))
        if (found := _YEAR.match(words[position]))
    ]
    if not places:
        raise ValueError("the documents name no year after their first words")
    made: list[dict[str, object]] = []
    for document, position, year in chosen.sample(places, min(examples, len(places))):
        choices = [year]
        while len(choices) < CHOICES:
            other = chosen.randint(FIRST, LAST)
            if all(abs(other - known) >= APART for known in choices):
                choices.append(other)
        chosen.shuffle(choices)
        context = " ".join(split[document][max(0, position - CONTEXT_WORDS) : position])
        made.append({"query": context, "choices": list(map(str, choices)), "gold": choices.index(year)})
    return made
