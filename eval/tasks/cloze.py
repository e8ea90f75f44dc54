"""A multiple-choice cloze from held-out documents: which word comes next?

    python -m eval.tasks.cloze shards/sotu/val/documents.jsonl --out shards/sotu/tasks/cloze.jsonl

Each example shows the words before one word of a document and offers that word among three others that are about as
frequent in the same documents, so that frequency alone gives chance, 25 %. The lines are in LLM Foundry's
multiple-choice format: `{"query": …, "choices": [four words], "gold": index}`.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from recipes.reports.runs import write_whole

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


def read_documents(path: Path, key: str) -> Iterator[str]:
    """The texts of a JSONL file, under `key`. Raises ValueError naming a line that has none."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)[key]
                if not isinstance(text, str):
                    raise TypeError(f"{key} is {type(text).__name__}, not text")
                yield text
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not a JSON object with {key!r}: {error}") from None


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.tasks.cloze", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "documents", type=Path, help="JSONL of held-out documents, as data_prep.pretrain --holdout keeps them"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--text-key", default="text")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.examples < 1:
            raise ValueError(f"--examples: got {chosen.examples}, expected at least 1")
        made = make_cloze(list(read_documents(chosen.documents, chosen.text_key)), chosen.examples, chosen.seed)
        lines = (json.dumps(example, ensure_ascii=False) for example in made)
        write_whole(chosen.out, "".join(f"{line}\n" for line in lines))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.out}: {len(made)} examples, chance {1 / CHOICES:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
