"""Long texts in pieces: their ids are the text's, for the tokenizers of which it is known where to cut."""

from __future__ import annotations

import itertools
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep.engines import NAMES
from data_prep.long_texts import CutRule, NoPlaceToCut, cut_rule, pieces_of
from tests.data_prep.conftest import engine_settings


def test_long_texts_are_cut_where_tokens_begin(tokenizer: Path, texts: list[str]) -> None:
    path = str(tokenizer / "tokenizer.json")
    text = "".join(texts) + "日本語、日本語。" * 1000 + "x1" * 1000 + "don't\n" * 1000
    for name in NAMES:
        engine = engine_settings(name, path, False).make()
        rule = cut_rule(Path(path).read_bytes(), engine, False, texts)
        pieces = list(pieces_of([text], 1000, rule))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) < 1200
        assert np.array_equal(np.concatenate(engine.encode(pieces)), engine.encode([text])[0])
        assert list(pieces_of(["日本語" * 1000], 10, rule)) == ["日本語" * 1000]
    assert list(pieces_of(["one text", " of two blocks"], 1, None)) == ["one text of two blocks"]


@pytest.mark.parametrize("place", ["(?<=[a-z])(?=[,.])", "(?<=[^ ▁])(?= [^ ▁])"])
@pytest.mark.parametrize("left_out", [0, 1])
def test_pieces_do_not_depend_on_blocks(place: str, left_out: int) -> None:
    rng = random.Random(3)
    rule = CutRule(place, left_out)
    for _ in range(300):
        text = "".join(rng.choices("ab ,▁", k=rng.randrange(60)))
        ends = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(9)))
        blocks = [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]
        characters = rng.randrange(1, 9)
        pieces = list(pieces_of([text], characters, rule))
        assert list(pieces_of(blocks, characters, rule)) == pieces
        found, start = [], 0
        while cut := re.compile(place).search(text, start + characters):
            found.append(text[start : cut.start()])
            start = cut.start() + left_out
        assert pieces == [*found, text[start:]]


def test_a_stretch_without_a_place_is_limited_and_takes_linear_time() -> None:
    rule = CutRule("(?<=[a-z])(?=,)", 0)
    text = ["ab,cd," * 100, "x" * 500, "y" * 400, ",z"]
    assert max(map(len, pieces_of(text, 50, rule, 1000))) == 940  # with what is in front of them
    with pytest.raises(NoPlaceToCut):
        list(pieces_of(text, 50, rule, 850))
    with pytest.raises(NoPlaceToCut):
        list(pieces_of(text, 50, None, 1500))
    took = []
    for count in (200, 400):
        start = time.process_time()
        (piece,) = pieces_of(("x" * 100_000 for _ in range(count)), 50, rule)
        took.append(time.process_time() - start)
        assert len(piece) == count * 100_000
    assert took[1] < 3 * took[0] + 0.1  # 400 blocks joined one by one are four times 200


GPT_4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


PLAIN = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT_2 = {**PLAIN, "use_regex": True}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "changed",
    [
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(GPT_4), {"type": "ByteLevel", **PLAIN}]}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    split(r"\p{N}{1,3}"),
                    split("[一-龥぀-ゟ゠-ヿ]+"),
                    split(GPT_4),
                    {"type": "ByteLevel", **PLAIN},
                ],
            }
        },
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", **GPT_2}],
            }
        },
    ],
)
def test_relatives_of_gpt_2s_are_cut(
    changed: dict[str, Any], tokenizer: Path, texts: list[str], tmp_path: Path
) -> None:
    check_pieces(changed, tokenizer, texts, tmp_path, "x1 2y don't\r\n\r\n (z),\n 1234567a.b. ")


@pytest.mark.parametrize("allow_special", [True, False])
def test_special_tokens_are_not_cut(allow_special: bool, tokenizer: Path, texts: list[str], tmp_path: Path) -> None:
    check_pieces({}, tokenizer, texts, tmp_path, "a<|endoftext|>b <|padding|> c", allow_special)


@pytest.mark.parametrize("prepend", [True, False, "always", "first", "never"])
def test_llama_like_texts_are_cut_at_spaces(prepend: bool | str, texts: list[str], tmp_path: Path) -> None:
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *bytes_of], show_progress=False)
    made.train_from_iterator(texts, trainer)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    before = [{"type": "Prepend", "prepend": "▁"}] if prepend is True else []
    changed: dict[str, Any] = {
        "normalizer": {"type": "Sequence", "normalizers": [*before, replace]},
        "pre_tokenizer": None,
    }
    if isinstance(prepend, str):
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": False}
        changed = {"normalizer": None, "pre_tokenizer": metaspace}
    folder = tmp_path / "made"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    for allow_special in (False, True):
        check_pieces(changed, folder, texts, tmp_path, "a  b   c ▁ d▁e <unk> ☃ \n f <unk>g<unk> h", allow_special)


def check_pieces(
    changed: dict[str, Any], tokenizer: Path, texts: list[str], folder: Path, hard: str, allow_special: bool = False
) -> None:
    """The pieces' ids are the text's, and the text is cut often."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads((tokenizer / "tokenizer.json").read_text()), **changed}))
    engine = engine_settings("tokenizers", str(path), allow_special).make()
    rule = cut_rule(path.read_bytes(), engine, allow_special, texts[:20])
    text = hard * 3 + "".join(texts)[:30_000] + hard * 3
    pieces = list(pieces_of([text[:777], text[777:]], 1, rule))
    assert len(pieces) > 3000
    assert np.array_equal(np.concatenate(engine.encode(pieces)), engine.encode([text])[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [split(r"\w+ \w+"), split(GPT_4), {"type": "ByteLevel"}],
            }
        },
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"normalizer": {"type": "Prepend", "prepend": "▁"}},
        {"added_tokens": [{"content": "of the", "special": False}]},
        {"added_tokens": [{"content": "x", "special": False, "lstrip": True}]},
    ],
)
def test_other_tokenizers_are_not_cut(changed: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads((tokenizer / "tokenizer.json").read_text()), **changed}))
    engine = engine_settings("tokenizers", str(tokenizer / "tokenizer.json"), False).make()
    assert cut_rule(path.read_bytes(), engine, True, []) is None
