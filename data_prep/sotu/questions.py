"""Make questions.jsonl and preferences.jsonl, small data for fine-tuning, from addresses.jsonl beside this file.

    python -m data_prep.sotu.questions            # the same addresses give the same bytes

Conversations of one question about one year's address: who gave it, of which party he was, how it begins, how one
of its sentences goes on. Preferences are the same questions, the right answer chosen and another president's
rejected.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.durable import write_whole
from data_prep.errors import exit_status

FOLDER = Path(__file__).parent
ADDRESSES = FOLDER / "addresses.jsonl"
QUESTIONS = FOLDER / "questions.jsonl"
PREFERENCES = FOLDER / "preferences.jsonl"
MEMBER = {"Democratic": "a Democrat", "Republican": "a Republican"}
WHO = ("Who gave the State of the Union address in {year}?", "Which president spoke in {year}?")
PARTY = ("Which party was the president of {year} from?",)
BEGIN = ("How does the address of {year} begin?",)
FINISH = "Finish this sentence from the address of {year}: {start}"
SHORTEST, LONGEST = 12, 24  # words of a sentence that is to be finished
SENTENCES_A_YEAR = 2


def conversations(rows: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    """Questions and answers, by year. A year with two addresses has the one that is first in the file."""
    for row in one_a_year(rows):
        for question in WHO:
            yield question.format(**row), f"{row['president']}."
        for question in PARTY:
            yield question.format(**row), f"{row['president']} was {MEMBER[row['party']]}."
        sentences = re.findall(r"[A-Z][^.!?]*[.!?]", row["text"])
        for question in BEGIN:
            yield question.format(**row), " ".join(row["text"].split()[:15])
        for words in [s.split() for s in sentences if SHORTEST <= len(s.split()) <= LONGEST][:SENTENCES_A_YEAR]:
            half = len(words) // 2
            yield FINISH.format(year=row["year"], start=" ".join(words[:half])), " ".join(words[half:])


def preferences(rows: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Pairs of the right president and the one of 40 years further on, around the end."""
    years = one_a_year(rows)
    for place, row in enumerate(years):
        other = years[(place + 40) % len(years)]
        for question in WHO:
            right, wrong = f"{row['president']}.", f"{other['president']}."
            if right != wrong:
                yield {"prompt": question.format(**row), "chosen": right, "rejected": wrong}


def one_a_year(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(row["year"], row)
    return list(first.values())


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    return exit_status(run)


def run() -> None:
    rows = [json.loads(line) for line in ADDRESSES.read_text(encoding="utf-8").splitlines()]
    asked = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in conversations(rows)
    ]
    for path, made in ((QUESTIONS, asked), (PREFERENCES, list(preferences(rows)))):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode()
        write_whole(path, content)
        print(f"{path}: {len(made)} rows, {len(content):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
