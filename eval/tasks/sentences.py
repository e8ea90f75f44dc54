"""Next-sentence choice from held-out documents: after which of four passages does a sentence come?

Each example has one sentence and four passages of the same number of words: the one before it, and three from other
places. The sentence is the same after each, so that how likely it is by itself does not count (arXiv:1806.02847).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

CHOICES = 4
CONTEXT_WORDS = 45
SHORTEST, LONGEST = 6, 22  # words of the sentence
NEAR = 8  # sentences before and behind that are never offered against the right passage
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def make_next_sentences(documents: Sequence[str], examples: int, seed: int) -> list[dict[str, object]]:
    """Examples drawn evenly from the documents; the same arguments give the same examples.

    Raises ValueError when the documents hold fewer sentences for an example than asked for.
    """
    chosen = random.Random(seed)
    split = [_END.split(" ".join(document.split())) for document in documents]
    passages = {
        (document, position): passage
        for document, sentences in enumerate(split)
        for position in range(1, len(sentences))
        if SHORTEST <= len(sentences[position].split()) <= LONGEST
        and len(passage := " ".join(sentences[:position]).split()[-CONTEXT_WORDS:]) == CONTEXT_WORDS
    }
    places = list(passages)
    if len(places) < max(examples, 10 * CHOICES):
        words = f"{len(places)} sentences of {SHORTEST} to {LONGEST} words with {CONTEXT_WORDS} words before them"
        raise ValueError(f"{words} are too few for {examples} examples")
    made: list[dict[str, object]] = []
    for place in chosen.sample(places, examples):
        document, position = place
        options = [place]
        while len(options) < CHOICES:
            other = chosen.choice(places)
            if other not in options and (other[0] != document or abs(other[1] - position) > NEAR):
                options.append(other)
        chosen.shuffle(options)
        texts = [" ".join(passages[option]) for option in options]
        made.append({"context_options": texts, "continuation": split[document][position], "gold": options.index(place)})
    return made
