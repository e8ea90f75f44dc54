"""The adapters of a LoRA run alone, as the folder that peft loads onto the exported base model.

Where transformers has queries, keys and values apart (LLaMA) and the model has them fused, A is theirs in common and B
is cut into its rows: the product is the same to the last bit of each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipes.cost.parameters import count_parameters
from recipes.weights.folder_files import save_tokenizer, write_json
from recipes.weights.hf_architecture import CLASSES, family_of
from recipes.weights.hf_names import Link, links
from recipes.weights.merged import HIGH, LOW, has_adapters
from recipes.weights.model_card import Adapter, model_card
from recipes.weights.number_types import BEYOND_FP16, torch_type
from recipes.weights.tensor_files import TensorFiles
from recipes.weights.trained import Trained, is_hf_folder


def write_adapter(
    trained: Trained, files: TensorFiles, folder: Path, dtype: str, tokenizer: str | None, out: Path
) -> str:
    """Write adapter_model.safetensors, adapter_config.json, the tokenizer and a card; say in words what that is.

    out: where the folder will be.

    Raises ValueError for a checkpoint without adapters, and for adapters that fit no base as transformers opens it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not has_adapters(files):
        raise ValueError(f"{trained.checkpoint} has no adapters: it was not trained with model.peft_config")
    _refuse_another_base(trained, files)
    save_tokenizer(trained, folder, tokenizer)
    config = trained.model.get("peft_config") or {}
    tensors: dict[str, Any] = {}
    for link in links(trained.model):
        tensors |= _of(link, files, dtype)
    try:
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    except SafetensorError as error:  # of a full disk, among others
        raise ValueError(f"{folder} cannot be written to: {error}") from None
    names = sorted({name.removesuffix(".lora_A.weight").rpartition(".")[2] for name in tensors if "lora_A" in name})
    base = trained.recipe.get("pretrained")
    opens = bool(base) and is_hf_folder(Path(str(base)))  # with transformers; a run folder has to be exported
    write_json(folder / "adapter_config.json", _config(config, names, base if opens else None))
    size = sum(tensor.numel() for tensor in tensors.values())
    adapter = Adapter(size, str(base) if base else "the model that it was trained on", opens)
    kind, parameters = CLASSES[family_of(trained.model)], count_parameters(trained.model).total
    card = model_card(trained, folder, out, kind, parameters, adapter)
    (folder / "README.md").write_text(card, encoding="utf-8")
    said = f"adapters of {size:,} numbers for {', '.join(names)}; load them onto {adapter.base} with peft"
    return said if opens else f"{said}, once it is exported: python -m recipes export {adapter.base} FOLDER"


def _refuse_another_base(trained: Trained, files: TensorFiles) -> None:
    changes = trained.recipe.get("pretrained_changes") or ()
    if changes:
        text = f"pretrained_changes: {', '.join(changes)} made another base of {trained.recipe.get('pretrained')}"
        raise ValueError(f"{text}, which these adapters are for: leave --unmerged out, which writes the merged model")
    matrices = tuple(f".W{letter}.{LOW}.weight" for letter in "qkv")
    apart = [name for name in files.shapes() if name.endswith(matrices)]
    if apart and family_of(trained.model) == "mpt":
        text = (
            f"attn_config.fused_qkv: false makes {apart[0]} one of three, where {CLASSES['mpt']} has one matrix, Wqkv"
        )
        raise ValueError(f"{text}: leave --unmerged out, which writes the merged model")


def _of(link: Link, files: TensorFiles, dtype: str) -> dict[str, Any]:
    module, _, kind = link.ours.rpartition(".")
    low, high = f"{module}.{LOW}.weight", f"{module}.{HIGH}.weight"
    if kind != "weight" or low not in files.shapes():
        return {}
    theirs = f"base_model.model.{link.theirs.removesuffix('.weight')}"
    found = {f"{theirs}.lora_A.weight": _as_type(files.rows(low), dtype, low)}
    fused_there_too = link.theirs.endswith("Wqkv.weight")
    rows = files.rows(high) if fused_there_too else files.rows(high, link.ours_at, link.shape[0])
    found[f"{theirs}.lora_B.weight"] = _as_type(rows, dtype, high).contiguous()
    return found


def _as_type(tensor: Any, dtype: str, name: str) -> Any:
    made = tensor.to(torch_type(dtype))
    if dtype == "F16" and bool((made.isinf() & ~tensor.isinf()).any()):
        raise ValueError(f"{name}: {BEYOND_FP16}")
    return made


def _config(config: Mapping[str, Any], modules: list[str], base: Any) -> dict[str, Any]:
    from peft import LoraConfig

    kept = {k: v for k, v in config.items() if k not in ("target_modules", "peft_type", "task_type")}
    made = LoraConfig(task_type="CAUSAL_LM", target_modules=modules, base_model_name_or_path=base, **kept)
    made.inference_mode = True
    plain = made.to_dict()
    plain["target_modules"] = modules
    return dict(json.loads(json.dumps(plain, default=str)))
