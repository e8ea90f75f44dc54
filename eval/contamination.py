"""Is a task in the training data? Examples that share n tokens in a row with the training shards.

    python -m eval.contamination yamls/eval/quickstart.yaml --shards shards/sotu/train --tokenizer shards/sotu/tokenizer
    python -m eval.contamination yamls/eval/quickstart.yaml --shards my/a/train my/b/train --tokenizer my/tokenizer

An example is its question and its right answer, without the few-shot examples before it. Shards are read as they lie:
sequences one after the other, so that a text that was cut into several is found as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import PrepError
from data_prep.manifest import load_manifest
from data_prep.mds import ShardEntry, read_index, token_stream
from data_prep.tokenizer_files import locate_tokenizer
from eval.results import contamination_line
from eval.tasks.icl import Task
from eval.tasks.rows import TaskError
from recipes.config.keys import RecipeError
from recipes.screen import exit_status
from recipes.training.startup import light_imports
from recipes.weights.folder_files import open_tokenizer

TOKENS = 13  # in a row; GPT-3 (arXiv:2005.14165, appendix C) took 13 words
SHOWN = 3  # examples
BLOCK = 4_000_000  # tokens of shards looked at together
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd; hashes are polynomials in it modulo 2**64


class OtherTokenizer(TaskError):
    """Shards of another tokenizer's ids, in which nothing would be found."""


def contaminated(
    tasks: Sequence[Task], tokenizer: Any, shards: Sequence[str], tokens: int = TOKENS
) -> list[dict[str, Any]]:
    """How many examples of each task share `tokens` tokens in a row with the shards, and which; these are read once.

    Examples shorter than that are compared whole; `too_short` says how many. shards: folders, of one split each, such
    as those that a mixture is of. tokenizer: the one of the shards.
    Raises TaskError where a folder holds no shards of token ids, or those of another tokenizer.
    """
    folders = [check_shards(Path(folder), tokenizer) for folder in shards]
    too_short = [0] * len(tasks)
    grams: dict[int, dict[int, set[tuple[int, int]]]] = {}  # length → hash → places: task and example
    for number, task in enumerate(tasks):
        for index, example in enumerate(task.examples):
            begins_line, within_line = (_ids_of(tokenizer, f"{space}{example.question}") for space in ("", " "))
            too_short[number] += len(begins_line) < tokens
            for ids in (begins_line, within_line):
                for length, values in hashes(ids, {min(len(ids), tokens)} - {0}):
                    of_length = grams.setdefault(length, {})
                    for value in values.tolist():
                        of_length.setdefault(value, set()).add((number, index))
    wanted = {length: np.array(sorted(of_length), dtype=np.uint64) for length, of_length in grams.items()}
    found: set[tuple[int, int]] = set()
    for block in (block for entries in folders for block in _blocks(entries, max(wanted))) if wanted else ():
        for length, seen in hashes(block, set(wanted)):
            places = np.searchsorted(wanted[length], seen)
            hits = np.unique(seen[wanted[length][places.clip(max=len(wanted[length]) - 1)] == seen])
            found.update(*(grams[length][value] for value in hits.tolist()))
    which = [sorted(index for other, index in found if other == number) for number in range(len(tasks))]
    return [
        {
            "label": task.label,
            "examples": len(task.examples),
            "contaminated": len(which[number]),
            "tokens": tokens,
            "too_short": too_short[number],
            "shards": ", ".join(shards),
            "which": which[number],
        }
        for number, task in enumerate(tasks)
    ]


def check_shards(folder: Path, tokenizer: Any) -> list[ShardEntry]:
    """The shards of a folder, whose ids must be this tokenizer's: another's would never be found in them.

    Raises TaskError.
    """
    made = "name a folder that data_prep.pretrain made"
    if not (folder / "index.json").is_file():
        raise TaskError(f"{folder} holds no shards: it has no index.json; {made}")
    try:
        entries, manifest = read_index(folder), load_manifest(folder)
    except (PrepError, ValueError, OSError) as error:
        raise TaskError(str(error)) from None
    if not sum(entry.samples for entry in entries):
        raise TaskError(f"{folder} holds no shards: its index.json lists no samples; {made}")
    name = str(tokenizer.name_or_path)
    with contextlib.suppress(PrepError):  # without a tokenizer.json of its own nothing tells them apart
        if manifest is not None and not manifest.was_made_with(Path(locate_tokenizer(name))):
            text = f"{folder} was made with another tokenizer ({manifest.tokenizer.path}) than {name}"
            raise OtherTokenizer(f"{text}, so that nothing would be found in it; give the tokenizer of the shards")
    return entries


def hashes(ids: np.ndarray[Any, Any], lengths: Collection[int]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """For each of the lengths, least first, 64-bit hashes of every so many ids in a row: (N,) → (N − length + 1,)."""
    values: np.ndarray[Any, Any] = np.zeros(len(ids), dtype=np.uint64)
    more = ids + np.uint64(1)
    for length in range(1, min(max(lengths, default=0), len(ids)) + 1):
        values = values[: len(ids) - length + 1]
        values *= BASE  # modulo 2**64: arrays wrap around
        values += more[length - 1 :]
        if length in lengths:
            yield length, values ^ (values >> np.uint64(29))


def _ids_of(tokenizer: Any, text: str) -> np.ndarray[Any, Any]:
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.uint64)


def _blocks(entries: list[ShardEntry], length: int) -> Iterator[np.ndarray[Any, Any]]:
    """The shards' ids as one row, in blocks that overlap by length − 1."""
    parts: list[np.ndarray[Any, Any]] = []
    held = 0
    for ids in _ids(entries):
        parts.append(ids.astype(np.uint64))
        held += len(ids)
        if held >= BLOCK:
            whole = np.concatenate(parts)
            yield whole
            parts, held = [whole[len(whole) - length + 1 :]], length - 1
    if parts:
        yield np.concatenate(parts)


def _ids(entries: list[ShardEntry]) -> Iterator[np.ndarray[Any, Any]]:
    """The ids of each sample."""
    try:
        yield from token_stream(entries)
    except (PrepError, OSError) as error:
        raise TaskError(str(error)) from None


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.contamination", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("tasks", help="an evaluation recipe, or a YAML file with icl_tasks")
    parser.add_argument(
        "--shards", required=True, nargs="+", metavar="FOLDER", help="of one split each, such as shards/sotu/train"
    )
    parser.add_argument("--tokenizer", required=True, help="the tokenizer that the shards were made with")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"in a row (default {TOKENS})")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with light_imports():
        from eval.suite import tasks_of
        from recipes.config.load import load
        from recipes.config.named_files import with_named_files

    try:
        if chosen.tokens < 1:
            raise TaskError(f"--tokens: got {chosen.tokens}, expected at least 1")
        recipe = with_named_files(load(chosen.tasks))
        entries = recipe.get("icl_tasks")
        if not entries:
            raise TaskError(f"{chosen.tasks} has no icl_tasks")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise TaskError(f"{chosen.tasks}: icl_tasks: got {entries!r}, expected a list of tasks")
        length = recipe.get("max_seq_len") or 2048
        if not isinstance(length, int) or length < 1:
            raise TaskError(f"{chosen.tasks}: max_seq_len: got {length!r}, expected a whole number of at least 1")
        try:
            tokenizer = open_tokenizer(chosen.tokenizer)
        except Exception as error:  # the tokenizers library raises plain ones
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise TaskError(f"--tokenizer: {chosen.tokenizer}: cannot be read: {words}") from None
        tasks = tasks_of(entries, tokenizer, length, 1, Path("."), None)
        for task, found in zip(tasks, contaminated(tasks, tokenizer, chosen.shards, chosen.tokens), strict=True):
            print(contamination_line(found))
            for index in found["which"][:SHOWN]:
                print(f"  example {index + 1}: {task.examples[index].question!r}")
    except (RecipeError, TaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, "begins anew"))
