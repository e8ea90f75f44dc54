"""Documents left out, duplicates found, documents shuffled: against plain Python, with any number of workers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from data_prep import near_duplicates
from data_prep.curation import load_predicate, signature_of
from data_prep.errors import PrepError
from data_prep.holdout import is_held_out
from data_prep.manifest import load_manifest
from data_prep.near_duplicates import mark_near_duplicates, rows_of_a_band
from data_prep.ordering import shuffle_keys
from data_prep.part_files import TABLE, DocumentTables, part_folder, table_type
from data_prep.sources import sha256_of_file
from tests.data_prep.conftest import tree


@pytest.fixture(scope="module")
def rows(texts: list[str]) -> list[dict[str, Any]]:
    """Documents, some of them twice, some of them nearly."""
    rng = random.Random(3)
    made = []
    for number, text in enumerate(texts):
        made.append({"text": text, "keep": number % 7 > 0})
        if number % 5 == 0:
            made.append({"text": rng.choice(texts[: number + 1]), "keep": True})
        if number % 9 == 0 and len(text) > 900:
            made.append({"text": text.replace("a", "o", 2), "keep": True})
    return made


@pytest.fixture
def compare(prepare: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Prepare rows with options, and the rows expected to be left without: the same shards; returns the manifest."""

    def check(given: list[Any], expected: list[Any], *options: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
        source, plain = jsonl(given, "given.jsonl"), jsonl(expected, "expected.jsonl")
        assert prepare(plain, "--out", tmp_path / "expected", *also).returncode == 0
        for name, more in (("one", ()), ("two", ("--workers", "2", "--part-mb", "0.05"))):
            result = prepare(source, "--out", tmp_path / name, *options, *also, *more)
            assert (result.returncode, result.stderr) == (0, "")
            for path, content in tree(tmp_path / "expected").items():
                if not path.endswith("manifest.json"):
                    assert tree(tmp_path / name)[path] == content, path
        manifest = load_manifest(tmp_path / "one" / "train")
        assert manifest is not None
        plain_manifest = load_manifest(tmp_path / "expected" / "train")
        assert plain_manifest is not None
        assert (manifest.documents, manifest.text_bytes) == (plain_manifest.documents, plain_manifest.text_bytes)
        return {"left_out": manifest.left_out, "options": manifest.options, "said": result.stdout}

    return check


def test_lengths(
    compare: Callable[..., Any],
    prepare: Callable[..., Any],
    jsonl: Callable[..., Path],
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    kept = [row for row in rows if 100 <= len(row["text"]) <= 1500]
    short = sum(len(row["text"]) < 100 for row in rows)
    found = compare(rows, kept, "--min-chars", "100", "--max-chars", "1500")
    assert found["left_out"] == {"too short": short, "too long": len(rows) - len(kept) - short}
    assert f"{short} too short" in found["said"]
    nothing = prepare(jsonl(rows), "--out", tmp_path / "nothing", "--min-chars", "100000")
    assert nothing.returncode == 1
    told = (
        f"0 documents with 0 tokens are fewer than one sequence of 64 (left out: {len(rows)} too short); give more text"
    )
    assert told in nothing.stderr


def test_filter(
    compare: Callable[..., Any], prepare: Callable[..., Any], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def good(row):\n    return row['keep']\n\n\ndef bad(row):\n    return 1 / 0\n\n\ndef odd(row):\n    pass\n"
    )
    found = compare(rows, [row for row in rows if row["keep"]], "--filter", f"{path}:good")
    assert found["left_out"] == {"refused by --filter": sum(not row["keep"] for row in rows)}
    assert found["options"]["filter_sha256"] == sha256_of_file(path)
    source = tmp_path / "given.jsonl"
    for function, said in (
        ("bad", "bad failed on '"),
        ("odd", "odd returned None; expected True (keep) or False"),
        ("none", f"{path} has no function none"),
    ):
        result = prepare(source, "--out", tmp_path / "out", "--filter", f"{path}:{function}")
        assert result.returncode == 1
        assert said in result.stderr
    path.write_text(path.read_text() + "# changed\n")
    refused = prepare(source, "--out", tmp_path / "one", "--filter", f"{path}:good")
    assert "--filter-sha256: '" in refused.stderr
    with pytest.raises(PrepError, match=r"expected FILE\.py:FUNCTION"):
        load_predicate("mine.good", "")


def test_exact_duplicates(compare: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    first = list({row["text"]: row for row in reversed(rows)}.values())[::-1]
    kept = sorted(first, key=lambda row: next(n for n, other in enumerate(rows) if other["text"] == row["text"]))
    kept = [next(row for row in rows if row["text"] == found["text"]) for found in kept]
    found = compare(rows, kept, "--dedup", also=("--holdout", "0.2"))
    assert found["left_out"] == {"exact duplicate": len(rows) - len(kept)}


def test_near_duplicates(compare: Callable[..., Any], rows: list[dict[str, Any]]) -> None:
    kept: list[dict[str, Any]] = []
    signatures: list[Any] = []
    for row in rows:
        signature = signature_of([row["text"]])
        if not any(np.mean(signature == other) >= 0.8 for other in signatures):
            kept.append(row)
            signatures.append(signature)
    assert len(kept) < len({row["text"] for row in rows})
    found = compare(rows, kept, "--near-dedup", "0.8")
    assert found["left_out"] == {"near duplicate": len(rows) - len(kept)}


def test_a_signature_does_not_depend_on_blocks(texts: list[str]) -> None:
    rng = random.Random(4)
    text = "".join(texts[:9]) + "\u2003ΟΔΟΣ " + "x" * 300 + "\n" + "y" * 700 + " z漢字かな" + "ไทย" * 99 + "w" * 512
    for given in (text, "two words", "", " ", "one two three four five"):
        for longest in (1, 7, 400):
            blocks, at = [], 0
            while at < len(given):
                blocks.append(given[at : at + rng.randint(1, longest)])
                at += len(blocks[-1])
            assert signature_of(blocks).tolist() == signature_of([given]).tolist()
    assert signature_of(["a b c d e f"]).tolist() != signature_of(["a b c d e g"]).tolist()


def test_texts_without_spaces_are_alike_by_all_that_they_hold() -> None:
    rng = random.Random(5)

    def written(first: int, last: int, count: int) -> str:
        return "".join(chr(rng.randrange(first, last)) for _ in range(count))

    for first, last in ((0x4E00, 0x9FA5), (0x3041, 0x3097), (0x0E01, 0x0E2F), (0x61, 0x7B)):
        beginning = written(first, last, 256)
        one, other = (signature_of([beginning, written(first, last, 5000)]) for _ in range(2))
        assert np.mean(one == other) < 0.3
    text = written(0x4E00, 0x9FA5, 140)
    changed = text[:70] + "的" + text[71:]
    assert np.mean(signature_of([text]) == signature_of([changed])) > 0.8
    assert signature_of(["Ab漢c，字"]).tolist() == signature_of(["ab 漢 c， 字"]).tolist()


def test_bands_find_pairs_at_the_threshold(tmp_path: Path) -> None:
    assert rows_of_a_band(0.8) == 7
    assert rows_of_a_band(1.0) == 128
    rng = np.random.default_rng(0)
    first = rng.integers(0, 1 << 32, (200, 128), dtype=np.uint32)
    equal = rng.permuted(np.tile(np.arange(128) < 104, (200, 1)), axis=1)  # 81 %
    states = marked(np.stack([first, np.where(equal, first, first ^ np.uint32(1))], axis=1).reshape(400, 128), tmp_path)
    assert not states[::2].any()
    assert states[1::2].sum() >= 180


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_of_kept_documents_only(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains and crowds, in which what is left out depends on what was kept before; in blocks that cut them."""
    monkeypatch.setattr(near_duplicates, "_BLOCK_RECORDS", 64)
    monkeypatch.setattr(near_duplicates, "_PAIRS", 5)
    rng = np.random.default_rng(seed)
    signatures = [rng.integers(0, 1 << 32, 128, dtype=np.uint32) for _ in range(30)]
    for _ in range(600):
        made = signatures[rng.integers(len(signatures))].copy()
        changed = rng.permutation(128)[: rng.choice([0, 6, 14, 20, 40])]
        made[changed] = rng.integers(0, 1 << 32, len(changed), dtype=np.uint32)
        signatures.append(made)
    order = rng.permutation(len(signatures))
    shuffled_signatures = np.stack([signatures[place] for place in order])
    rows = rows_of_a_band(0.8)
    kept: list[npt.NDArray[np.uint32]] = []
    expected = []
    for signature in shuffled_signatures:
        banded = signature[: 128 // rows * rows].reshape(-1, rows)
        alike = [
            np.all(banded == other[: 128 // rows * rows].reshape(-1, rows), axis=1).any()
            and np.mean(other == signature) >= 0.8
            for other in kept
        ]
        expected.append(any(alike))
        if not any(alike):
            kept.append(signature)
    assert 100 < len(kept) < 600
    assert marked(shuffled_signatures, tmp_path).astype(bool).tolist() == expected


def test_documents_of_one_template_are_decided_about_in_so_many_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 1 << 32, (300, 128), dtype=np.uint32)
    signatures = np.where(rng.random((300, 128)) < 0.2, own, own[0])  # pairs are alike to about 0.65
    signatures[[1, 299]] = signatures[0]  # whatever is compared with the first
    undecided, states = counted(signatures, tmp_path / "all")
    assert (undecided, states[[0, 1, 299]].tolist()) == (0, [0, 1, 1])
    monkeypatch.setattr(near_duplicates, "_MOST_ROUNDS", 5)
    undecided, states = counted(signatures, tmp_path / "few")
    assert 100 < undecided < 200
    assert states[[0, 1, 299]].tolist() == [0, 1, 1]
    assert set(states.tolist()) == {0, 1}


def marked(signatures: npt.NDArray[np.uint32], folder: Path) -> npt.NDArray[np.uint8]:
    """The states of documents that are all decided about."""
    undecided, states = counted(signatures, folder)
    assert not undecided
    return states


def counted(
    signatures: npt.NDArray[np.uint32], folder: Path, threshold: float = 0.8
) -> tuple[int, npt.NDArray[np.uint8]]:
    """How many documents in two parts are undecided, and the states of all."""
    kind = table_type(with_hashes=False, with_signatures=True)
    records = np.zeros(len(signatures), dtype=kind)
    records["signature"] = signatures
    half = len(records) // 3
    for number, part in enumerate((records[:half], records[half:])):
        path = part_folder(folder, number)
        path.mkdir(parents=True)
        part.tofile(path / TABLE)
    states = np.zeros(len(signatures), dtype=np.uint8)
    return mark_near_duplicates(DocumentTables(folder, 2, kind), states, threshold, folder), states


def test_shuffling(prepare: Callable[..., Any], jsonl: Callable[..., Path], texts: list[str], tmp_path: Path) -> None:
    main = [{"text": text} for text in texts if not is_held_out(text, 0.1)]
    source = jsonl([{"text": text} for text in texts], "given.jsonl")
    reordered = jsonl([main[place] for place in np.argsort(shuffle_keys(0, len(main), 7)).tolist()], "reordered.jsonl")
    for name, more in (("one", ()), ("two", ("--workers", "2", "--part-mb", "0.05"))):
        assert (
            prepare(source, "--out", tmp_path / name, "--holdout", "0.1", "--shuffle-seed", "7", *more).returncode == 0
        )
    assert prepare(reordered, "--out", tmp_path / "expected").returncode == 0
    assert prepare(source, "--out", tmp_path / "other", "--holdout", "0.1", "--shuffle-seed", "8").returncode == 0
    shard = "train/shard.00000.mds"
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert tree(tmp_path / "one")[shard] == tree(tmp_path / "expected")[shard]
    assert tree(tmp_path / "one")[shard] != tree(tmp_path / "other")[shard]
    held = [row["text"] for row in map(json.loads, tree(tmp_path / "one")["val/documents.jsonl"].splitlines())]
    assert held == [text for text in texts if is_held_out(text, 0.1)]


def test_a_shuffle_never_changes() -> None:
    assert np.argsort(shuffle_keys(0, 8, 0)).tolist() == PERMUTATION
    whole = shuffle_keys(0, 1000, 5)
    assert shuffle_keys(300, 20, 5).tolist() == whole[300:320].tolist()
    order = np.argsort(whole)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


PERMUTATION = [2, 4, 6, 5, 1, 7, 0, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-chars", "5", "--max-chars", "4"], "the first not above the second"),
        (["--near-dedup", "1.5"], "--near-dedup 1.5: expected a similarity"),
    ],
)
def test_refusals_are_words(
    options: list[str], said: str, corpus: Path, prepare: Callable[..., Any], tmp_path: Path
) -> None:
    result = prepare(corpus, "--out", tmp_path / "out", *options)
    assert result.returncode == 1
    assert said in result.stderr


@pytest.mark.parametrize(("threshold", "equal", "is_left_out"), [(0.75, 96, 1), (0.75, 95, 0), (1.0, 128, 1)])
def test_a_pair_at_the_threshold_itself_is_a_near_duplicate(
    threshold: float, equal: int, is_left_out: int, tmp_path: Path
) -> None:
    signatures = np.random.default_rng(0).integers(0, 1 << 32, (2, 128), dtype=np.uint32)
    signatures[1, :equal] = signatures[0, :equal]
    undecided, states = counted(signatures, tmp_path, threshold)
    assert (undecided, states.tolist()) == (0, [0, is_left_out])
