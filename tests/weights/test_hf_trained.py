"""Export of what `hf_causal_lm` trained: the checkpoint's own tensors and config.json, which transformers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from recipes.talking.loading import load_model
from recipes.weights.export import export
from recipes.weights.tensor_files import safetensors_folder

from ..tiny import SIZES, VOCAB, write_run

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(folder: Path, tokenizer: Path, config: bool = True, is_tied: bool = False, **more: Any) -> tuple[Path, Any]:
    """A run folder as Composer's model of transformers leaves it, and the module that it trained."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, tie_word_embeddings=is_tied, use_cache=False, **sizes))
    section = {"name": "hf_causal_lm", "pretrained_model_name_or_path": "meta-llama/Llama-2-7b-hf", **more}
    run = write_run(folder, SIZES, module, tokenizer)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": section}))
    checkpoint = run / "checkpoints" / "ep0-ba1-rank0.pt"
    content = torch.load(checkpoint, weights_only=False)
    kept = {"content": module.config.to_dict(), "class": f"{type(module).__module__}.LlamaForCausalLM"}
    if config:
        content["state"]["integrations"] = {"huggingface": {"model": {"config": kept}, "tokenizer": {}}}
    torch.save(content, checkpoint)
    return run, module


@pytest.mark.parametrize("is_tied", [False, True])
def test_transformers_opens_what_it_trained(is_tied: bool, shards: Path, tmp_path: Path) -> None:
    run, module = trained(tmp_path / "run", shards / "tokenizer", is_tied=is_tied)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert f"LlamaForCausalLM, {count:,} parameters in fp32" in export(run, tmp_path / "out", "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, module.eval()(input_ids=ids).logits)
    assert theirs.config.use_cache  # which training turns off
    with safetensors_folder(tmp_path / "out") as files:
        assert ("lm_head.weight" in files.shapes()) != is_tied
    assert load_model(tmp_path / "out").name == "out"
    assert f"{count:,} parameters, `LlamaForCausalLM`" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"run is of hf_causal_lm: give the folder that `python -m recipes export"):
        load_model(run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_config": {"peft_type": "LORA", "r": 4}}, r"are peft's own.*\n.*only_hf_checkpoint=true load_path="),
        ({"config": False}, "has no config of transformers.*only_hf_checkpoint=true load_path="),
    ],
    ids=["lora", "no config"],
)
def test_what_is_not_exported_names_a_way(changes: dict[str, Any], words: str, shards: Path, tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "run", shards / "tokenizer", **changes)
    with pytest.raises(ValueError, match=words):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
