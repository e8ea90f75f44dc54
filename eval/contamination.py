"""Is a task in the training data? Examples that share n tokens in a row with the training shards.

    python -m eval.contamination yamls/eval/quickstart.yaml --shards shards/sotu/train --tokenizer shards/sotu/tokenizer

An example is its question and its right answer, without the few-shot examples before it. Shards are read as they lie:
sequences one after the other, so that a text that was cut into several is found as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import PrepError
from data_prep.manifest import load_manifest
from data_prep.mds import ShardEntry, read_index, token_stream
from data_prep.sources import sha256_of_file
from data_prep.tokenizer_files import locate_tokenizer
from eval.results import contamination_line
from eval.tasks.icl import Task
from eval.tasks.rows import TaskError
from recipes.config.keys import RecipeError
from recipes.training.startup import light_imports

TOKENS = 13  # in a row; GPT-3 (arXiv:2005.14165, appendix C) took 13 words
SHOWN = 3  # examples
BLOCK = 4_000_000  # tokens of shards looked at together
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd; hashes are polynomials in it modulo 2**64


def contaminated(task: Task, tokenizer: Any, shards: str, tokens: int = TOKENS) -> dict[str, Any]:
    """How many examples share `tokens` tokens in a row with the shards, and which.

    Examples shorter than that are compared whole; `too_short` says how many. tokenizer: the one of the shards.
    Raises TaskError where the folder holds no shards of token ids, or those of another tokenizer.
    """
    entries = check_shards(Path(shards), tokenizer)
    too_short = 0
    by_length: dict[int, list[tuple[int, np.ndarray[Any, Any]]]] = {}
    for index, example in enumerate(task.examples):
        ids = np.asarray(tokenizer(example.question, add_special_tokens=False)["input_ids"], dtype=np.uint64)
        too_short += len(ids) < tokens
        by_length.setdefault(min(len(ids), tokens), []).append((index, ids))
    found: set[int] = set()
    for length, examples in by_length.items():
        if length == 0:
            continue
        grams: dict[int, set[int]] = {}  # hash → examples
        for index, ids in examples:
            for value in hashes(ids, length).tolist():
                grams.setdefault(value, set()).add(index)
        wanted = np.array(sorted(grams), dtype=np.uint64)
        for block in _blocks(entries, length):
            seen = hashes(block, length)
            places = np.searchsorted(wanted, seen)
            hits = np.unique(seen[wanted[places.clip(max=len(wanted) - 1)] == seen])
            for value in hits.tolist():
                found |= grams[value]
    return {
        "label": task.label,
        "examples": len(task.examples),
        "contaminated": len(found),
        "tokens": tokens,
        "too_short": too_short,
        "shards": str(shards),
        "which": sorted(found),
    }


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
        if manifest is not None and sha256_of_file(locate_tokenizer(name)) != manifest.tokenizer.sha256:
            text = f"{folder} was made with another tokenizer ({manifest.tokenizer.path}) than {name}"
            raise TaskError(f"{text}, so that nothing would be found in it; give the tokenizer of the shards")
    return entries


def hashes(ids: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """64-bit hashes of every `length` ids in a row: (N,) → (N − length + 1,)."""
    if len(ids) < length:
        return np.zeros(0, dtype=np.uint64)
    count = len(ids) - length + 1
    values: np.ndarray[Any, Any] = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(length):
            values = values * BASE + (ids[offset : offset + count] + np.uint64(1))
        return values ^ (values >> np.uint64(29))


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
    parser.add_argument("--shards", required=True, help="the folder of one split, such as shards/sotu/train")
    parser.add_argument("--tokenizer", required=True, help="the tokenizer that the shards were made with")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"in a row (default {TOKENS})")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with light_imports():
        from transformers import AutoTokenizer

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
        entries = [{**entry, "num_fewshot": [0]} for entry in entries]
        length = recipe.get("max_seq_len") or 2048
        if not isinstance(length, int) or length < 1:
            raise TaskError(f"{chosen.tasks}: max_seq_len: got {length!r}, expected a whole number of at least 1")
        try:
            tokenizer = AutoTokenizer.from_pretrained(chosen.tokenizer)
        except Exception as error:  # the tokenizers library raises plain ones
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise TaskError(f"--tokenizer: {chosen.tokenizer}: cannot be read: {words}") from None
        for task in tasks_of(entries, tokenizer, length, 1, Path("."), None):
            found = contaminated(task, tokenizer, chosen.shards, chosen.tokens)
            print(contamination_line(found))
            for index in found["which"][:SHOWN]:
                print(f"  example {index + 1}: {task.examples[index].shown!r}")
    except (RecipeError, TaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
