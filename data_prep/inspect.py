"""Look at prepared shards: counts, how long the documents are, and samples as text.

    python -m data_prep.inspect shards/ --samples 2

shows every split below the folder (or the one split that it is): those of data_prep.pretrain and, with --tokenizer,
those that other programs wrote for LLM Foundry's loaders. Where one document ends and the next begins is marked.
"""

import argparse
import bisect
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from data_prep.errors import PrepError, exit_status
from data_prep.manifest import Manifest
from data_prep.mds import ShardEntry, decode_array, read_index, read_samples, token_stream
from data_prep.plan import read_manifest
from data_prep.tokenising import load_tokenizer
from data_prep.windows import Ids
from data_prep.writing import INDEX

BORDER = "\n──────── document border ────────\n"
_BAR = 40  # characters of the longest bar


def run(folder: Path, tokenizer_name: str | None, samples: int, characters: int) -> None:
    """Show every split.

    Raises:
        PrepError: there is none, or no tokenizer to decode with.
    """
    if not folder.is_dir():
        raise PrepError(f"{folder}: no such folder.")
    candidates = (folder, *sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))
    splits = [path for path in candidates if (path / INDEX).is_file()]
    if not splits:
        raise PrepError(f"{folder}: no {INDEX} in it or in a folder below it; expected MDS shards.")
    for number, split in enumerate(splits):
        if number:
            print()
        try:
            show_split(split, tokenizer_name, samples, characters)
        except (OverflowError, TypeError, KeyError, IndexError) as error:  # of ids, types and keys that are none
            raise PrepError(f"{split}: a sample is damaged ({error!r}); data_prep.verify tells more.") from error


def show_split(split: Path, tokenizer_name: str | None, samples: int, characters: int) -> None:
    """Counts, histogram and samples of one split."""
    entries = read_index(split)
    manifest = read_manifest(split)
    columns = ", ".join(f"{name} ({encoding})" for name, encoding, _ in entries[0].columns) if entries else "none"
    size = sum(entry.path.stat().st_size for entry in entries)
    total = sum(entry.samples for entry in entries)
    print(f"{split}: {total:,} samples in {len(entries)} shards, {size / 1e6:,.1f} MB; columns: {columns}")
    tokenizer, eos = _tokenizer_of(manifest, tokenizer_name)
    if not entries:
        return
    if "tokens" in {name for name, _, _ in entries[0].columns}:
        opening = manifest.separators["before"] if manifest else []
        border = [*(manifest.separators["after"] if manifest else eos), *opening]
        if manifest:
            ratio = manifest.text_bytes / max(manifest.tokens + manifest.dropped_tokens, 1)
            counts = f"{manifest.documents:,} documents, {manifest.text_bytes:,} bytes of text"
            print(f"  {counts}, {manifest.tokens:,} tokens, {ratio:.2f} bytes/token")
        show_lengths(entries, border, len(opening))
        for number, ids in enumerate(_evenly(entries, samples)):
            print(f"\nsample {number + 1} of {samples}:")
            print(shorten(decode_with_borders(tokenizer, ids, border, len(opening)), characters))
    else:
        for number, turns in enumerate(_turns(entries, samples)):
            print(f"\nsample {number + 1} of {samples} (what the loss is on is between » and «):")
            text = "".join(
                f"{tokenizer.decode(turn['input_ids'], skip_special_tokens=False)}"
                f"»{tokenizer.decode(turn['labels'], skip_special_tokens=False)}«"
                for turn in turns
            )
            print(shorten(text, characters))


def show_lengths(entries: list[ShardEntry], border: list[int], opening: int) -> None:
    """How many documents have how many tokens, by powers of two; what is cut off at the very end is not counted."""
    lengths = document_lengths(entries, border, opening)
    if not len(lengths):
        print("  no document border found")
        return
    print(
        f"  {len(lengths):,} document borders; tokens a document: shortest {lengths.min():,}, "
        f"median {int(np.median(lengths)):,}, mean {lengths.mean():,.0f}, longest {lengths.max():,}"
    )
    powers = np.frexp(np.maximum(lengths, 1))[1] - 1
    counts = np.bincount(powers)
    for power in range(int(powers.min()), len(counts)):
        bar = "█" * round(_BAR * counts[power] / counts.max()) or ("▏" if counts[power] else "")
        print(f"  {1 << power:>10,} – {(2 << power) - 1:<10,} {counts[power]:>10,} {bar}")


def document_lengths(entries: list[ShardEntry], border: list[int], opening: int = 0) -> npt.NDArray[np.int64]:
    """Tokens between one border and the next, the border's own included. Memory: 8 bytes a document.

    Args:
        border: the ids that stand between two documents.
        opening: so many of these, the last ones, belong to the document behind them.
    """
    if not border:
        return np.empty(0, dtype=np.int64)
    ends: list[int] = []
    seen = 0
    tail: Ids = np.empty(0, dtype=np.int64)
    for ids in token_stream(entries):
        stream = np.concatenate((tail, ids.astype(np.int64)))
        where = np.flatnonzero(_matches(stream, border)) + len(border) - opening + seen - len(tail)
        ends += [end for end in where.tolist() if not ends or end >= ends[-1] + len(border)]
        seen += len(ids)
        tail = stream[len(stream) - (len(border) - 1) :] if len(border) > 1 else stream[:0]
    return np.diff(np.array([0, *ends] if opening < len(border) else ends, dtype=np.int64))


def decode_with_borders(tokenizer: Tokenizer, ids: Ids, border: list[int], opening: int) -> str:
    """The text of one sample, with BORDER between documents; separators are shown as the tokenizer spells them."""
    if not border:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
    cuts = (np.flatnonzero(_matches(ids, border)) + len(border) - opening).tolist()
    edges = sorted({0, *cuts, len(ids)})
    pieces = [ids[start:end].tolist() for start, end in itertools.pairwise(edges)]
    return BORDER.join(tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces)


def shorten(text: str, characters: int) -> str:
    """The beginning and the end of a long text."""
    if not characters or len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"


def _matches(ids: Ids, border: list[int]) -> npt.NDArray[np.bool_]:
    """Where the border's ids stand one after another."""
    count = max(len(ids) - len(border) + 1, 0)
    found = np.ones(count, dtype=bool)
    for place, token in enumerate(border):
        found &= ids[place : place + count] == token
    return found


def _evenly(entries: list[ShardEntry], samples: int) -> list[Ids]:
    """Samples spread evenly over all."""
    found = []
    for entry, number in _places(entries, samples):
        encoding = next(encoding for name, encoding, _ in entry.columns if name == "tokens")
        (sample,) = read_samples(entry, number, 1)
        is_array = encoding.startswith("ndarray")
        found.append(decode_array(sample["tokens"], encoding) if is_array else np.frombuffer(sample["tokens"], "<i8"))
    return found


def _turns(entries: list[ShardEntry], samples: int) -> list[list[dict[str, list[int]]]]:
    names = {name for name, _, _ in entries[0].columns}
    if "turns" not in names:
        raise PrepError(f"{entries[0].path}: columns {', '.join(sorted(names))}; expected tokens or turns.")
    places = _places(entries, samples)
    try:
        return [json.loads(next(read_samples(entry, number, 1))["turns"]) for entry, number in places]
    except ValueError as error:
        if isinstance(error, PrepError):
            raise
        raise PrepError(
            f"{entries[0].path.parent}: a sample is damaged ({error}); data_prep.verify tells more."
        ) from error


def _places(entries: list[ShardEntry], samples: int) -> list[tuple[ShardEntry, int]]:
    ends = list(itertools.accumulate(entry.samples for entry in entries))
    step = max(ends[-1] // max(samples, 1), 1)
    found = []
    for number in range(0, ends[-1], step)[:samples]:
        shard = bisect.bisect_right(ends, number)
        found.append((entries[shard], number - ends[shard] + entries[shard].samples))
    return found


def _tokenizer_of(manifest: Manifest | None, name: str | None) -> tuple[Tokenizer, list[int]]:
    """The tokenizer, and the ids of its EOS."""
    if name is None and manifest is None:
        raise PrepError("these shards have no manifest.json that names their tokenizer; give --tokenizer.")
    path = name if name is not None else manifest.tokenizer.path if manifest else ""
    if name is None and not Path(path).is_file():
        raise PrepError(f"the tokenizer of these shards is no longer at {path}; give --tokenizer.")
    tokenizer, facts = load_tokenizer(path)
    if manifest and facts.sha256 != manifest.tokenizer.sha256:
        made, given = manifest.tokenizer.sha256[:12], facts.sha256[:12]
        raise PrepError(f"--tokenizer {path}: fingerprint {given}, and the shards were made with {made}.")
    return tokenizer, [] if facts.eos_id is None else [facts.eos_id]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what --out was, or one split in it")
    parser.add_argument("--tokenizer", metavar="T", help="to decode with (the one that the manifest names)")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="samples to show (%(default)s)")
    help_text = "of each sample, from its beginning and its end; 0: all (%(default)s)"
    parser.add_argument("--characters", type=int, default=600, metavar="N", help=help_text)
    given = parser.parse_args(argv)
    if given.samples < 0 or given.characters < 0:
        parser.error("--samples and --characters: expected 0 or more")
    folder = Path(os.path.expanduser(given.folder))
    return exit_status(lambda: run(folder, given.tokenizer, given.samples, given.characters))


if __name__ == "__main__":
    sys.exit(main())
