"""The embedded suite: tasks made from held-out documents, in LLM Foundry's format.

    python -m eval.tasks.generate shards/sotu/val/documents.jsonl --out shards/sotu/tasks

Writes cloze.jsonl (eval/tasks/cloze.py), next_sentence.jsonl (sentences.py) and dates.jsonl (dates.py). The same
documents and seed give the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_prep.durable import write_whole
from eval.tasks.cloze import make_cloze
from eval.tasks.dates import make_dates
from eval.tasks.sentences import make_next_sentences

EXAMPLES = 500  # of each task; dates: as many as there are
Maker = Callable[[Sequence[str], int, int], list[dict[str, object]]]
TASKS: dict[str, Maker] = {"cloze": make_cloze, "next_sentence": make_next_sentences, "dates": make_dates}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.tasks.generate", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "documents", type=Path, help="JSONL of held-out documents, as data_prep.pretrain --holdout keeps them"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the tasks")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help=f"of each task (default {EXAMPLES})")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--text-key", default="text")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.examples < 1:
            raise ValueError(f"--examples: got {chosen.examples}, expected at least 1")
        documents = list(read_documents(chosen.documents, chosen.text_key))
        made = {}
        for name, make in TASKS.items():
            try:
                made[name] = make(documents, chosen.examples, chosen.seed)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        for name, examples in made.items():
            lines = (json.dumps(example, ensure_ascii=False) for example in examples)
            write_whole(chosen.out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
            print(f"{chosen.out / name}.jsonl: {len(examples)} examples, chance 25%")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
