"""Fast engines give the ids of Hugging Face's tokenizers, or another engine is taken, or the run fails."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gigatoken.gigatoken_rs import load_hf_json
from tokenizers import Tokenizer, models, processors

from data_prep import engines
from data_prep.engines import NAMES, EngineSettings, choose_engine, without_special_tokens
from data_prep.errors import Interrupted, PrepError
from data_prep.newer_characters import NEWER_CHARACTERS, has_newer_character
from data_prep.tokenising import HuggingFaceEngine, Separators, choose_separators, load_tokenizer
from tests.data_prep.conftest import engine_settings, tree

FAST = NAMES[:-1]
ALPHABET = "aA zZ  \n\t\r'’stmdlv.,;:!?-_()0123456789éßøñ日本語кир\u0301\u00a0\u200b\ufeff😀👩‍👩‍👧\x00\x7f<|endoftext|>"


@pytest.fixture(scope="module")
def strings(texts: list[str]) -> list[str]:
    rng = random.Random(1)
    made = ["".join(rng.choices(ALPHABET, k=rng.randrange(1, 60))) for _ in range(3000)]
    pieces = ["<|endoftext|>", "<|padding|>", "<|endo", "ftext|>", " the", "\n\n", "  "]
    return [*texts, *made, *("".join(rng.choices(pieces, k=6)) for _ in range(200)), ""]


@pytest.mark.parametrize("allow_special", [False, True])
@pytest.mark.parametrize("name", FAST)
def test_same_ids(name: str, allow_special: bool, tokenizer: Path, strings: list[str]) -> None:
    path = str(tokenizer / "tokenizer.json")
    fast = engine_settings(name, path, allow_special).make()
    reference = HuggingFaceEngine(Tokenizer.from_file(path), allow_special, path)
    for text, ids, expected in zip(strings, fast.encode(strings), reference.encode(strings), strict=True):
        assert np.array_equal(ids, expected), repr(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_that_changed_meanwhile_is_refused(name: str, tokenizer: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(tokenizer / "tokenizer.json", tmp_path))
    settings = engine_settings(name, path)
    engine = settings.make()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"the", b"teh", 1))
    with pytest.raises(Interrupted, match=f"--tokenizer {path} changed while the run went on; put back"):
        settings.make()
    if name == "gigatoken":  # which loads the reference for the first character that it does not know
        with pytest.raises(Interrupted, match="changed while the run went on"):
            engine.encode(list(COMPOSED))
    path.unlink()
    with pytest.raises(FileNotFoundError):  # not a PrepError, which would cost the finished parts
        settings.make()
    path.write_bytes(content)
    engine.encode(list(COMPOSED))


def test_a_tokenizer_that_cannot_encode_is_words(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    loaded, facts = load_tokenizer(str(tmp_path))
    for refused in (
        lambda: engine_settings("tokenizers", facts.path).make().encode(["a", "b"]),
        lambda: choose_separators(loaded, facts, None, "b", False),
        lambda: choose_separators(loaded, facts, None, "a", True),
    ):
        with pytest.raises(
            PrepError, match=f"--tokenizer {facts.path}: the tokenizers library cannot encode with it: "
        ):
            refused()


def nfc_tokenizer(tokenizer: Path, folder: Path) -> str:
    """The tokenizer with GPT-NeoX's normalization: its tokenizer.json."""
    path = folder / "tokenizer.json"
    config = json.loads((tokenizer / "tokenizer.json").read_text())
    path.write_text(json.dumps({**config, "normalizer": {"type": "NFC"}}))
    return str(path)


COMPOSED = (
    "\U000105d2\u0307",
    "\U000105da\u0307",
    "\U00011382\U000113c9",
    "\U0001138b\U000113c2",
    "\U00011935\U00011930",
)


def test_all_characters_that_differ_are_known(tokenizer: Path, tmp_path: Path) -> None:
    """Every mark and every code point that Python does not know, among marks and contractions; a part of the others."""
    path = nfc_tokenizer(tokenizer, tmp_path)
    known = {code for first, last in NEWER_CHARACTERS for code in range(first, last + 1)}
    fast = load_hf_json(without_special_tokens(Path(path).read_bytes()))
    reference = engine_settings("tokenizers", path, False).make()
    below = [*range(0x80, 0xD800), *range(0xE000, 0x1F000)]
    codes = {code for code in below if unicodedata.combining(chr(code)) or unicodedata.category(chr(code)) == "Cn"}
    codes |= {*range(0xE000, 0x110000, 997), *range(0x20000, 0x34000, 97), *(code for code in known if code < 0x33480)}
    texts = {
        c: f"a{chr(c)}\u0301\u0323{chr(c)}q\u0301{chr(c)}\u0323 b{chr(c)}'s{chr(c)}1{chr(c)}" for c in sorted(codes)
    }
    found = {
        code
        for (code, text), expected in zip(texts.items(), reference.encode(list(texts.values())), strict=True)
        if not np.array_equal(fast.encode(text), expected)
    }
    assert found <= known
    assert len(found) > 1000  # else NEWER_CHARACTERS is no longer needed
    assert [code for code, text in texts.items() if has_newer_character(text)] == sorted(known & codes)
    assert all(map(has_newer_character, COMPOSED))
    differing = [*COMPOSED, *(texts[code] for code in found)]
    engine = engine_settings("gigatoken", path, False).make()
    for ids, expected in zip(engine.encode(differing), reference.encode(differing), strict=True):
        assert np.array_equal(ids, expected)


def test_of_a_long_document_only_the_pieces_with_newer_characters_take_the_reference(
    tokenizer: Path, strings: list[str], tmp_path: Path
) -> None:
    path = nfc_tokenizer(tokenizer, tmp_path)
    chosen, engine = choose_engine(
        "gigatoken", engine_settings("", path, False), Tokenizer.from_file(path), strings, True
    )
    words = "some words of a document, " * 2000
    text = "".join(f"{words}{newer}\u0301 " for newer in COMPOSED) + words
    asked: list[str] = []

    class Watched(HuggingFaceEngine):
        def encode(self, texts: Sequence[str]) -> list[Any]:
            asked.extend(texts)
            return super().encode(texts)

    watched = Watched(Tokenizer.from_file(path), False, path)
    (expected,) = engine_settings("tokenizers", path, False).make().encode([text])
    for one in (engine, chosen.make(watched)):
        assert np.array_equal(one.encode([text])[0], expected)
    assert 0 < sum(map(len, asked)) < len(text) / 10
    assert all(map(has_newer_character, asked))


def test_the_check_at_the_start_finds_characters_that_differ(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "has_newer_character", lambda text: False)
    for path in (str(tokenizer / "tokenizer.json"), nfc_tokenizer(tokenizer, tmp_path)):
        loaded, wanted = Tokenizer.from_file(path), engine_settings("", path, False)
        assert choose_engine("auto", wanted, loaded, ["plain"], strict=False)[0].name == "fastokens"
        assert "note: gigatoken gives other ids than tokenizers: [" in capsys.readouterr().err


def test_ids_stay_the_same_when_the_caches_are_thrown_away(
    tokenizer: Path, strings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_CACHE_BYTES", -(1 << 40))
    settings = engine_settings("gigatoken", str(tokenizer / "tokenizer.json"), False)
    engine = settings.make()
    first, second = engine.encode(strings), engine.encode(strings)
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


class Wrong:
    """An engine that is wrong about one character."""

    name = "wrong"

    def __init__(self, right: Any):
        self._right = right

    def encode(self, texts: list[str]) -> list[Any]:
        return self._right.encode([text.replace("é", "e") for text in texts])


def test_a_wrong_engine_is_found_out(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tokenizer / "tokenizer.json")
    loaded = Tokenizer.from_file(path)
    wanted = engine_settings("", path, False)
    make = EngineSettings.make
    monkeypatch.setattr(EngineSettings, "make", lambda self, reference=None: Wrong(make(self, reference)))
    assert choose_engine("auto", wanted, loaded, ["plain"], strict=False)[0].name == "tokenizers"
    said = capsys.readouterr().err
    assert "note: gigatoken gives other ids than tokenizers: [" in said
    assert "note: fastokens gives other ids" in said
    with pytest.raises(PrepError, match=r"--encoder gigatoken gives other ids than tokenizers: .*Without --strict"):
        choose_engine("auto", wanted, loaded, [], strict=True)


def test_an_engine_that_is_not_installed(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tokenizer / "tokenizer.json")
    for module in ("gigatoken", "gigatoken.gigatoken_rs", "fastokens", "fastokens._native"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    loaded, wanted = Tokenizer.from_file(path), engine_settings("", path, False)
    assert choose_engine("auto", wanted, loaded, [], strict=True)[0].name == "tokenizers"
    assert capsys.readouterr().err == ""
    assert choose_engine("gigatoken", wanted, loaded, [], strict=False)[0].name == "tokenizers"
    assert "note: gigatoken cannot be used: not installed here" in capsys.readouterr().err
    with pytest.raises(PrepError, match="--encoder gigatoken cannot be used: not installed here"):
        choose_engine("gigatoken", wanted, loaded, [], strict=True)


def test_special_tokens_are_taken_out() -> None:
    special = {"content": "<|x|>", "special": True}
    spaces = {"content": "  ", "special": False}
    assert json.loads(without_special_tokens(json.dumps({"added_tokens": [special, spaces]}).encode())) == {
        "added_tokens": [spaces]
    }
    with pytest.raises(PrepError, match=r"cannot tell special tokens from other added tokens, such as '\|\|'"):
        without_special_tokens(json.dumps({"added_tokens": [special, {"content": "||", "special": False}]}).encode())


def test_all_engines_write_the_same_bytes(
    corpus: Path, prepare: Callable[..., Any], tokenizer: Path, tmp_path: Path
) -> None:
    for name in NAMES:
        result = prepare(corpus, "--out", tmp_path / name, "--holdout", "0.1", "--encoder", name, "--strict")
        assert (result.returncode, result.stderr) == (0, "")
        assert f"with {name}" in result.stdout
        assert tree(tmp_path / name) == tree(tmp_path / NAMES[0])


def test_a_template_puts_tokens_around_documents(tokenizer: Path) -> None:
    loaded, facts = load_tokenizer(str(tokenizer))
    special = [("<|endoftext|>", 0), ("<|padding|>", 1)]
    loaded.post_processor = processors.TemplateProcessing("<|endoftext|> $A <|padding|> <|padding|>", None, special)
    assert choose_separators(loaded, facts, None, None, True) == Separators([0], [1, 1])
    assert choose_separators(loaded, facts, "<|padding|>", "<|endoftext|>", True) == Separators([1, 0], [1, 1, 0])
    assert choose_separators(loaded, facts, None, None, False) == Separators([], [0])
    loaded.post_processor = processors.TemplateProcessing("$A", None, special)
    with pytest.raises(PrepError, match="nothing would separate"):
        choose_separators(loaded, facts, None, None, True)
    loaded.post_processor = processors.TemplateProcessing("$A <|padding|> $A", None, special)
    with pytest.raises(PrepError, match="does more than to put tokens around a document"):
        choose_separators(loaded, facts, None, None, True)


def test_an_end_of_text_that_is_no_token_is_named(tokenizer: Path, tmp_path: Path) -> None:
    shutil.copy(tokenizer / "tokenizer.json", tmp_path)
    for config, said in (
        (
            '{"eos_token": "</s>"}',
            "the eos_token '</s>' of its configuration is not in its vocabulary, so that nothing",
        ),
        ("{}", "no eos_token is named in the tokenizer_config.json beside it, so that nothing"),
    ):
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(PrepError) as caught:
            choose_separators(*load_tokenizer(str(tmp_path)), None, None, False)
        assert said in str(caught.value)
