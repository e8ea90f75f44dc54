"""Imports that wait, and questions answered at once: what stands in is the real thing when it is used."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from recipes.training import startup

SMALL = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}


def test_modules_wait_until_they_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "slowpkg"
    package.mkdir()
    (package / "__init__.py").write_text("def double(x): return 2 * x\n")
    (package / "parts.py").write_text("class Part:\n    size = 3\n")
    (tmp_path / "wanted.py").write_text(
        "import importlib.util\nimport slowpkg\nfrom slowpkg import double, parts\nfrom slowpkg.parts import Part\n"
        "assert importlib.util.find_spec('slowpkg') and not importlib.util.find_spec('hiddenpkg')\n"
    )
    (tmp_path / "hiddenpkg.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(startup, "WAIT", ("slowpkg", "slowpkg.parts"))
    monkeypatch.setattr(startup, "HIDDEN", ("hiddenpkg",))
    with pytest.raises(ModuleNotFoundError), startup.light_imports():
        importlib.import_module("no_such_module")
    assert "slowpkg" not in sys.modules
    with startup.light_imports():
        wanted = importlib.import_module("wanted")
    assert not {"slowpkg", "slowpkg.parts", "hiddenpkg"} & set(sys.modules)
    assert wanted.double(4) == wanted.slowpkg.double(4) == 8
    assert wanted.parts.Part().size == wanted.Part.size == 3
    assert "slowpkg" in sys.modules
    assert importlib.util.find_spec("hiddenpkg")


def test_causal_models_are_known_by_their_names() -> None:
    gpt2 = GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=9)

    class Subclass(GPT2LMHeadModel):
        pass

    assert startup.is_causal_lm(GPT2LMHeadModel(gpt2))
    assert startup.is_causal_lm(Subclass(gpt2))
    assert not startup.is_causal_lm(BertModel(BertConfig(**SMALL)))
