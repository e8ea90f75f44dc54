"""A checkpoint as a folder that any Hugging Face tool opens: `python -m recipes export CHECKPOINT OUT --dtype bf16`.

Weights go from the checkpoint's file to safetensors shards a few rows at a time, so memory does not grow with the
model, no GPU is needed and no model is built. OUT appears only when all of it is written.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.cost.architecture import OURS
from recipes.weights.atomic_folder import atomic_folder
from recipes.weights.export_adapter import write_adapter
from recipes.weights.folder_files import save_tokenizer, write_configs
from recipes.weights.hf_architecture import folder_config
from recipes.weights.hf_names import Link, links, own_shapes
from recipes.weights.hf_refusals import THROUGH_LLM_FOUNDRY, refusals
from recipes.weights.hf_trained import config_of, targets_of
from recipes.weights.merged import merged
from recipes.weights.model_card import model_card
from recipes.weights.shards import Target, write_shards
from recipes.weights.tensor_files import Buffers, TensorFiles
from recipes.weights.trained import HF_MODEL, Trained, find_trained

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
SHARD_GB = 5.0  # as transformers splits them
WRITTEN = re.compile(  # names of an export's files, those of every kind of tokenizer among them
    r"README\.md|(generation_|adapter_|tokenizer_)?config\.json|adapter_model\.safetensors"
    r"|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|chat_template\.(jinja|json)"
    r"|(tokenizer|vocab|added_tokens|special_tokens_map|normalizer)\.json"
    r"|merges\.txt|vocab\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)


def export(
    path: Path,
    out: Path,
    dtype: str = "bf16",
    recipe: Path | None = None,
    tokenizer: str | None = None,
    shard_gb: float = SHARD_GB,
    unmerged: bool = False,
    overwrite: bool = False,
) -> str:
    """Write the folder and say in a line what it is.

    unmerged: of a model trained with LoRA write the adapters alone, as peft's own folder.

    Raises ValueError: a checkpoint that is not whole, is damaged or not of its recipe, a model that transformers cannot
    express (naming the keys), a tokenizer with more tokens than the model, an OUT that is there already, a full disk.
    """
    if dtype not in DTYPES:
        raise ValueError(f"--dtype: got {dtype}, expected one of {', '.join(DTYPES)}")
    if not 0 < shard_gb < math.inf:
        raise ValueError(f"--shard-gb: got {shard_gb:g}, expected gigabytes above 0")
    trained = find_trained(path, recipe)
    refuse_to_replace(out, overwrite, trained.checkpoint)
    refuse_what_cannot_be_said(trained.model)
    with trained.tensors() as files:
        _refuse_diverged(trained, files)
        if unmerged:
            trained.verify()
            with atomic_folder(out) as folder:
                said = write_adapter(trained, files, folder, DTYPES[dtype], tokenizer, out)
            return f"{out}: {said}"
        is_theirs = trained.model["name"] == HF_MODEL
        config = config_of(trained) if is_theirs else folder_config(trained.model)
        source = files if is_theirs else merged(files, trained.model)
        targets = targets_of(files) if is_theirs else plan(trained, source)
        parameters = sum(math.prod(target.shape) for target in targets)
        kind = config["architectures"][0]
        _refuse_full_disk(out, sum(target.bytes(DTYPES[dtype]) for target in targets))
        trained.verify()
        with atomic_folder(out) as folder:
            saved = save_tokenizer(trained, folder, tokenizer, config.get("vocab_size"))
            start = time.perf_counter()
            names = write_shards(source, targets, folder, DTYPES[dtype], int(shard_gb * 1e9))
            seconds = time.perf_counter() - start
            write_configs(config, saved, folder, DTYPES[dtype])
            card = model_card(trained, folder, out, kind, parameters)
            (folder / "README.md").write_text(card, encoding="utf-8")
    size = sum(target.bytes(DTYPES[dtype]) for target in targets)
    files_said = f"{size / 1e9:,.2f} GB in {len(names)} file{'s' * (len(names) > 1)}, written in {seconds:.1f} s"
    return f"{out}: {kind}, {parameters:,} parameters in {dtype}, {files_said}"


def refuse_what_cannot_be_said(model: Mapping[str, Any]) -> None:
    """Raises ValueError naming every key that transformers' class does not compute, and what exports all the same."""
    found = refusals(model)
    if found:
        listed = "".join(f"\n  {key}: {text}" for key, text in found)
        text = f"this model cannot be exported to transformers' own classes:{listed}"
        if model.get("name") not in OURS or not model.get("peft_config"):  # whose adapters LLM Foundry does not know
            what = "peft's folder of them" if model.get("name") == HF_MODEL else "LLM Foundry's own folder of it"
            text += f"\n{what} is written by {THROUGH_LLM_FOUNDRY}"
        raise ValueError(text)


def _refuse_diverged(trained: Trained, files: TensorFiles) -> None:
    """Raises ValueError where weights are no numbers. A diverged run has lost all that it trains: small ones tell."""
    buffers = Buffers()
    for name, shape in files.shapes().items():
        if len(shape) != 1 and ".lora_" not in name:
            continue
        numbers = np.frombuffer(files.rows_as("F32", name, 0, shape[0], buffers), np.float32)  # torch takes seconds
        if not np.isfinite(numbers).all():
            text = f"{name} in {trained.checkpoint} is not finite: the run has diverged"
            raise ValueError(f"{text}; give an earlier checkpoint")


def plan(trained: Trained, source: TensorFiles) -> list[Target]:
    """What to write, in order. Raises ValueError where the checkpoint has not the tensors of its recipe."""
    wanted = links(trained.model)
    there = source.shapes()
    expected = own_shapes(trained.model)
    wrong = [name for name, shape in expected.items() if there.get(name) != shape]
    more = [name for name in there if name not in expected]
    if wrong or more:
        name = (wrong or more)[0]
        got = there.get(name, "nothing")
        count = f" and {len(wrong) + len(more) - 1} more" if len(wrong) + len(more) > 1 else ""
        text = f"{name}{count}: got {got}, expected {expected.get(name, 'nothing')}"
        raise ValueError(f"{trained.checkpoint} is not a checkpoint of {trained.recipe.path}: {text}")
    targets: dict[str, list[Link]] = {}
    for link in wanted:
        targets.setdefault(link.theirs, []).append(link)
    made = []
    for name, pieces in targets.items():
        pieces.sort(key=lambda link: link.theirs_at)
        made.append(Target(name, (sum(p.shape[0] for p in pieces), *pieces[0].shape[1:]), tuple(pieces)))
    return made


def refuse_to_replace(out: Path, overwrite: bool, checkpoint: Path) -> None:
    """Raises ValueError where OUT is there, unless it is an export and nothing else, that may be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} is there already: give another folder, or --overwrite to replace it")
    is_export = any((out / name).is_file() for name in ("config.json", "adapter_config.json"))
    if not is_export or checkpoint.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{out} is no exported folder: --overwrite would delete what is in it; give another")
    others = sorted(p.name for p in out.iterdir() if not (p.is_file() and WRITTEN.fullmatch(p.name)))
    if others:
        text = f"{out} holds {', '.join(others[:3])}{' and more' * (len(others) > 3)}, which no export writes"
        raise ValueError(f"{text}: --overwrite would delete it; move it, or give another folder")


def _refuse_full_disk(out: Path, needed: int) -> None:
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f"the export takes {needed / 1e9:,.1f} GB, and {place} has {free / 1e9:,.1f} GB free")
