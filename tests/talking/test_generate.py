"""Text from a model: its ends, prompts that cannot be read, and what a folder asks for and generate must not do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from data_prep.conversations import DEFAULT_TEMPLATE, END_OF_TURN
from recipes.talking import loading
from recipes.talking.generate import Sampling, chat_ids, complete, generate, read_prompts
from recipes.talking.loading import Loaded, load_model
from recipes.weights.export import export

from ..tiny import LLAMA, MPT, RWKV, build, with_changes, write_run

GREEDY = Sampling(max_new_tokens=8, temperature=0)


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer")


def new_ids(loaded: Loaded, **more: Any) -> list[int]:
    ids = torch.tensor([[5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **more}
    out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, eos_token_id=None, **options)
    return list(map(int, out[0, 3:]))


def test_every_end_that_a_folder_names_ends_an_answer(run: Path) -> None:
    loaded = load_model(run)
    written = new_ids(loaded)
    whole = complete(loaded, [5, 6, 7], GREEDY)
    loaded.model.generation_config.eos_token_id = [500, written[2]]
    first = written.index(written[2])
    assert complete(loaded, [5, 6, 7], GREEDY) == loaded.tokenizer.decode(written[:first] + written[first : first + 1])
    assert whole.startswith(complete(loaded, [5, 6, 7], GREEDY))
    assert whole != complete(loaded, [5, 6, 7], GREEDY)


def test_the_end_of_a_turn_ends_an_answer_also_as_a_token(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ChatML's words in the vocabulary beside another EOS; of the checkpoint, and in what is exported of it."""
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer")
    tokenizer.add_tokens(["<|im_start|>", END_OF_TURN])
    tokenizer.chat_template = DEFAULT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    section = with_changes(MPT, vocab_size=520)
    run = write_run(tmp_path / "run", section, build(section), tmp_path / "tokenizer")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)]
    loaded = load_model(run)
    asked: dict[str, Any] = {}

    def generated(**options: Any) -> torch.Tensor:
        asked.update(options)
        return torch.tensor([[5, 6, 7, 8, 9, ends[1]]])

    monkeypatch.setattr(loaded.model, "generate", generated)
    assert complete(loaded, [5, 6, 7], GREEDY) == tokenizer.decode([8, 9])
    assert asked["eos_token_id"] == ends
    assert "stop_strings" not in asked
    export(run, tmp_path / "out", "fp32")
    files = [json.loads((tmp_path / "out" / f"{kind}config.json").read_text()) for kind in ("generation_", "")]
    assert [file["eos_token_id"] for file in files] == [ends, ends[0]]


def test_a_folders_beams_are_not_searched(run: Path) -> None:
    loaded = load_model(run)
    whole, pieces = complete(loaded, [5, 6, 7], GREEDY), []
    loaded.model.generation_config.num_beams = 2
    loaded.model.generation_config.return_dict_in_generate = True
    assert complete(loaded, [5, 6, 7], GREEDY, pieces.append) == whole
    assert "".join(pieces) == whole


def test_weights_that_give_no_probabilities_are_said_to(run: Path) -> None:
    loaded = load_model(run)
    with torch.no_grad():
        loaded.model.transformer.norm_f.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores are no probabilities"):
        complete(loaded, [5, 6, 7], Sampling(max_new_tokens=2))


def test_no_answer_is_written_where_a_prompt_is_too_long(run: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("prompt 2 has ") + r"\d+ tokens, run reads 32: shorten it"):
        generate([run], ["We must", "We must " * 40, "The"], GREEDY, out=tmp_path / "said.jsonl")
    assert "We must" not in capsys.readouterr().out
    generate([run], ["We must", "The"], GREEDY, out=tmp_path / "said.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(row["model"], row["prompt"]) for row in rows] == [("run", "We must"), ("run", "The")]


def test_no_answer_is_lost_for_an_empty_prompt(run: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(ValueError, match="prompt 2 has no tokens for run: write something, or leave it out"):
        generate([run], ["We must", ""], GREEDY, out=tmp_path / "said.jsonl")
    assert "We must" not in capsys.readouterr().out


def test_a_template_that_refuses_a_conversation_is_quoted(run: Path) -> None:
    loaded = load_model(run)
    loaded.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="does not take this conversation: no system role"):
        chat_ids(loaded, [{"role": "system", "content": "be brief"}])


def test_prompts_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes('\ufeff{"prompt": "Wé"}\n'.encode())
    assert read_prompts(file) == ["Wé"]
    for row in ('{"prompt": null}', '{"prompt": ["a"]}', '{"text": "a"}', "[]"):
        file.write_text('{"prompt": "a"}\n' + row)
        with pytest.raises(ValueError, match=r"prompts\.jsonl:2: expected"):
            read_prompts(file)


def test_half_a_pair_of_surrogates_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "caf\\ud800"}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: got 'caf.ud800', and half a pair of surrogates"):
        read_prompts(file)


def test_models_of_one_name_are_told_apart(run: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "other" / "run"
    shutil.copytree(run, other)
    generate([run, other], ["We must"], GREEDY, out=tmp_path / "said.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == [str(run), str(other)]
    assert f"  {other}  " in capsys.readouterr().out


def test_a_missing_template_is_said_before_weights_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "build_for_generation", lambda _: pytest.fail("the weights are read"))
    with pytest.raises(ValueError, match="run has no chat template: it was not tuned on conversations"):
        load_model(run, for_chat=True)


def test_a_seed_that_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="--seed: got 99999999999999999999, expected a whole number of 64 bits"):
        Sampling(seed=99999999999999999999).checked()


@pytest.mark.parametrize(
    "section", [MPT, LLAMA, {**LLAMA, "tie_word_embeddings": True}, RWKV], ids=["mpt", "llama", "tied", "rwkv"]
)
def test_matrices_in_bf16_answer_as_an_evaluation_computes(
    section: dict[str, Any], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU; tried on the CPU, where a model otherwise stays as it is."""
    run = write_run(tmp_path / "run", section, build(section), shards / "tokenizer")
    paths = [run]
    if section is not MPT:
        export(run, tmp_path / "folder", "fp32")
        paths.append(tmp_path / "folder")
    plain = load_model(run, in_bf16=True)
    assert {p.dtype for p in plain.model.parameters()} == {torch.float32}
    monkeypatch.setattr(loading, "_gpu_has_bf16", lambda: True)
    ids = torch.arange(5, 25)[None]
    computed: set[torch.dtype] = set()
    for path in paths:
        whole, halved = load_model(path), load_model(path, in_bf16=True)
        assert not whole.in_bf16
        types = {name: p.dtype for name, p in halved.model.named_parameters()}
        assert {types[name] for name in types if "norm" in name or "wte" in name or "embed" in name} == {torch.float32}
        assert sum(p.element_size() * p.numel() for p in halved.model.parameters()) < 0.8 * sum(
            p.element_size() * p.numel() for p in whole.model.parameters()
        )
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(halved.model(ids).logits, whole.model(ids).logits)
        halved.model.register_forward_hook(lambda *out: computed.add(out[-1].logits.dtype))
        complete(halved, [5, 6, 7], GREEDY)
    assert computed == {torch.bfloat16}
