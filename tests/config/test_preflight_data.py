"""What preflight says of shards and of those who are to read them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.config.load import Recipe
from recipes.parts import build_model
from recipes.preflight.data import data_problems, local_data_files
from recipes.preflight.weights import id_of_end, tokenizer_problems, vocabulary_problems
from tests.conftest import ROOT
from tests.tiny import MPT

COMMAND = r"python -m (data_prep\.\w+) YOUR\.jsonl (--out .*)"


def said_of(shards: Path, name: str = "text", **recipe: Any) -> list[str]:
    loader = {"name": name, "dataset": {"local": str(shards), "split": "train"}}
    values = {"max_seq_len": 32, "tokenizer": {"name": str(shards / "tokenizer")}, **recipe}
    return [text for _, text in data_problems(("train_loader",), loader, Recipe(Path("r.yaml"), values, {}))]


def model(tokenizer: Path, **section: Any) -> Mapping[str, Any]:
    return {"tokenizer": {"name": str(tokenizer)}, "model": section}


def test_every_model_of_an_evaluation_is_asked(shards: Path, tmp_path: Path) -> None:
    own = shards / "tokenizer"
    other = tmp_path / "other"
    shutil.copytree(own, other)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("\u0120the", "\u0120thé", 1))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    assert said_of(shards, models=[model(own, vocab_size=512)]) == []
    (text,) = said_of(shards, models=[model(own, vocab_size=512), model(other, vocab_size=512)])
    assert "were made with another tokenizer" in text
    (text,) = said_of(shards, models=[model(own, pretrained_model_name_or_path=str(tmp_path))])
    assert "hold ids up to 511, the model has 300 embeddings" in text


def test_a_model_has_embeddings_for_its_tokenizer_whatever_the_shards(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    (copy / "train" / "manifest.json").unlink()  # as other programs make them
    settings = {"tokenizer": {"name": str(copy / "tokenizer")}, "model": {"name": "mpt_causal_lm", "vocab_size": 500}}
    ((key, text),) = vocabulary_problems(settings)
    assert key == ("model", "vocab_size")
    assert text.endswith("has ids up to 511, the model has 500 embeddings: set model.vocab_size to at least 512")
    settings["model"] = {"name": "mpt_causal_lm"}  # of 50,368
    assert not [*vocabulary_problems(settings)]


def test_a_tokenizer_from_the_hub_is_asked_when_the_model_is_built() -> None:
    section = {"name": "mpt_causal_lm", **MPT, "vocab_size": 3}
    with pytest.raises(ValueError, match="its tokenizer has 4 tokens, and vocab_size is 3: set it to at least 4"):
        build_model(section, range(4), None, None)


def said_of_separators(shards: Path, **separator: int) -> list[tuple[str, str]]:
    dataset = {"local": str(shards), "split": "train", **separator}
    values = {"max_seq_len": 32, "tokenizer": {"name": str(shards / "tokenizer")}}
    recipe = Recipe(Path("r.yaml"), {**values, "model": {"attn_config": {"attn_uses_sequence_id": True}}}, {})
    said = data_problems(("train_loader",), {"name": "text", "dataset": dataset}, recipe)
    return [(key[-1], text) for key, text in said]


def with_separators(shards: Path, **ids: list[int]) -> None:
    path = shards / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "separators": {"before": [], "after": [], **ids}}))


def test_documents_are_told_apart_by_what_the_shards_have_between_them(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    with_separators(copy, after=[1])  # not the tokenizer's own
    assert said_of_separators(copy, eos_token_id=1) == []
    ((key, text),) = said_of_separators(copy, eos_token_id=0)
    assert key == "eos_token_id"
    assert text.endswith("have [1] after a document: documents would not be told apart; set it to 1")
    ((key, text),) = said_of_separators(copy, bos_token_id=1)
    assert (key, "have nothing before a document" in text) == ("bos_token_id", True)
    with_separators(copy, after=[5, 5])
    assert "with one token there (--eos-text)" in said_of_separators(copy, eos_token_id=5)[0][1]
    with_separators(copy, before=[2])
    assert said_of_separators(copy, bos_token_id=2) == []


def test_shards_without_a_manifest_end_documents_as_the_tokenizer_does(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    (copy / "train" / "manifest.json").unlink()
    end = id_of_end({"name": str(copy / "tokenizer")})
    assert end is not None
    assert said_of_separators(copy, eos_token_id=end) == []
    ((key, text),) = said_of_separators(copy, eos_token_id=77)
    assert (key, text.startswith("got 77, and the tokenizer")) == ("eos_token_id", True)


def test_a_path_that_is_not_there_has_no_tokenizer() -> None:
    assert id_of_end({"name": "no/such/folder"}) is None


def test_a_tokenizers_configuration_is_a_mapping(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards / "tokenizer", copy)
    (copy / "tokenizer_config.json").write_text("[]")
    ((_, text),) = tokenizer_problems({"name": str(copy)})
    assert "tokenizer_config.json cannot be read: expected a mapping in JSON" in text


def test_a_tokenizer_that_was_saved_anew_is_the_same(shards: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(shards / "tokenizer", saved)
    file = saved / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text())))  # other white space
    assert said_of(shards, tokenizer={"name": str(saved)}) == []


@pytest.mark.parametrize(
    "name", ["c4-neox", "c4-llama", "c4-llama-3", "instructions-neox", "instructions-llama", "instructions-llama-3"]
)
def test_the_command_for_missing_shards_is_that_of_the_data_file(name: str) -> None:
    def options(command: re.Match[str] | None) -> tuple[str, dict[str, str]]:
        assert command is not None
        words = command[2].split()
        return command[1], dict(zip(words[::2], words[1::2], strict=True))

    text = (ROOT / "yamls" / "data" / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    loader, (module, written) = values["train_loader"], options(re.search(COMMAND + "$", text, re.MULTILINE))
    recipe = Recipe(Path("r.yaml"), {**values, "max_seq_len": int(written["--seq-len"])}, {})
    ((_, said),) = data_problems(("train_loader",), loader, recipe)
    assert options(re.search(COMMAND + "`", said)) == (module, {**written, "--split": "train"})


def test_instructions_and_text_are_told_apart(shards: Path, tmp_path: Path) -> None:
    assert "hold text (data_prep.pretrain), and a finetuning loader" in said_of(shards, name="finetuning")[0]
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    path = copy / "train" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "loss_tokens": 9}))
    assert said_of(copy, name="finetuning", max_seq_len=128) == []  # their length is the most that one may have
    assert "hold prompts and answers" in said_of(copy)[0]


def test_a_cache_has_room_for_four_shards(shards: Path) -> None:
    largest = max(path.stat().st_size for path in (shards / "train").glob("*.mds"))
    for limit, refused in ((4 * largest - 1, True), (4 * largest, False), ("1kb", True), ("0.1gb", False)):
        loader = {"name": "text", "dataset": {"local": str(shards), "split": "train", "cache_limit": limit}}
        said = data_problems(("train_loader",), loader, Recipe(Path("r.yaml"), {"max_seq_len": 32}, {}))
        expected = f"got {limit}, and the largest shard takes {largest:,} bytes: expected four times that at least, "
        texts = [text for key, text in said if key[-1] == "cache_limit"]
        assert texts == ([f"{expected}{4 * largest:,}"] if refused else [])


def test_a_tokenizer_in_the_hubs_cache_is_compared_with_the_shards(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--words"
    shutil.copytree(shards / "tokenizer", cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert said_of(shards, tokenizer={"name": "somebody/words"}) == []
    settings = {"tokenizer": {"name": "somebody/words"}, "model": {"name": "mpt_causal_lm", "vocab_size": 500}}
    ((_, text),) = vocabulary_problems(settings)
    assert "the tokenizer somebody/words has ids up to 511" in text
    file = cached / "snapshots" / "abc" / "tokenizer.json"
    file.write_text(file.read_text().replace("\u0120the", "\u0120thé", 1))
    (text,) = said_of(shards, tokenizer={"name": "somebody/words"})
    assert "than somebody/words: the ids would mean other words" in text


@pytest.mark.parametrize(
    ("files", "there"),
    [("a1.jsonl", True), ("a[0-9].jsonl", True), ("a?.jsonl", True), ("b.jsonl", False), ("b?.jsonl", False)],
)
def test_files_of_a_data_set_are_found_below_its_folder(files: str, there: bool, tmp_path: Path) -> None:
    (tmp_path / "a1.jsonl").touch()
    dataset = {"hf_name": "json", "hf_kwargs": {"data_dir": str(tmp_path), "data_files": {"train": [files]}}}
    said = data_problems(("train_loader",), {"name": "finetuning", "dataset": dataset}, Recipe(Path("r.yaml"), {}, {}))
    expected = [] if there else [f"no data: there is no file {tmp_path / files}"]
    assert [text for _, text in said] == expected
    of_files = {"hf_name": "json", "hf_kwargs": dataset["hf_kwargs"]}
    assert (tmp_path / "a1.jsonl" in local_data_files(of_files)) is True
    relative = {"hf_name": "json", "hf_kwargs": {"data_files": str(tmp_path / files)}}
    assert local_data_files(relative) == ([tmp_path / "a1.jsonl"] if there else [])
