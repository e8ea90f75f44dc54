"""A tokenizer with a chat template: what is copied, and what is never replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from data_prep.chat_tokenizer import TEMPLATE, main
from data_prep.conversations import ConversationTokenizer


def make(source: Path, out: Path) -> int:
    return main(["--tokenizer", str(source), "--out", str(out)])


def test_it_has_its_own_template_alone_and_ends_answers_with_a_token(tokenizer: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tokenizer, tmp_path / "source"))
    (source / "chat_template.jinja").write_text("{{ 1 }}")
    (source / "model.safetensors").touch()
    assert make(source, tmp_path / "chat") == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert loaded.chat_template == TEMPLATE
    assert len(loaded) == len(AutoTokenizer.from_pretrained(tokenizer))
    files = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in (tmp_path / "chat").iterdir()) == files
    assert ConversationTokenizer(loaded, {}).end_without_a_token() is None
    loaded.chat_template = None
    assert ConversationTokenizer(loaded, {}).end_without_a_token() == "<|im_end|>\n"
    loaded.add_tokens(["<|im_end|>"])
    assert ConversationTokenizer(loaded, {}).end_without_a_token() is None


def test_it_replaces_nothing_else(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # its own it makes again
        assert make(tokenizer, tmp_path / "chat") == 0
    beside = Path(shutil.copytree(tmp_path / "chat", tmp_path / "beside"))
    (beside / "thesis.txt").touch()
    broken = Path(shutil.copytree(tokenizer, tmp_path / "broken"))
    (broken / "tokenizer_config.json").write_text("[]")
    endless = Path(shutil.copytree(tokenizer, tmp_path / "endless"))
    (endless / "tokenizer_config.json").write_text("{}")
    (endless / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    for source, out, words in (
        (tokenizer, beside, "beside is there already, and not made by this command"),
        (tmp_path / "chat", tokenizer, "is there already, and not made by this command"),
        (broken, tmp_path / "new", "got list, expected a JSON object"),
        (endless, tmp_path / "new", "no eos_token in tokenizer_config.json"),
        (tmp_path / "none", tmp_path / "new", "none: no such file or folder"),
    ):
        assert make(source, out) == 1
        assert words in capsys.readouterr().err
    assert (beside / "thesis.txt").exists()
    assert not list(tmp_path.glob(".*"))
