"""What stands beside the weights in an exported folder: the tokenizer, config.json and the like."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.conversations import END_OF_TURN
from data_prep.manifest import load_manifest
from recipes.training.batches import shard_folders
from recipes.weights.hf_rwkv import RESCALED_EVERY
from recipes.weights.trained import Trained

INPUTS = {"model_input_names": ["input_ids", "attention_mask"]}  # of generate(); these classes know no token types
TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def save_tokenizer(trained: Trained, folder: Path, other: str | None = None, embeddings: int | None = None) -> Any:
    """Write load_tokenizer's tokenizer into the folder, and return it."""
    tokenizer = load_tokenizer(trained, other, embeddings)
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:  # the tokenizers library has no kinds of errors: this one is of the disk
        raise ValueError(f"the tokenizer cannot be written to {folder}: {error}") from None
    return tokenizer


def open_tokenizer(name: str, **options: Any) -> Any:
    """A tokenizer of transformers; also one that transformers 5 saved, under the name of a class that 4 has not."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(name, **options)
    except ValueError as error:
        if "TokenizersBackend" not in str(error):
            raise
        return PreTrainedTokenizerFast.from_pretrained(name, **options)


def load_tokenizer(trained: Trained, other: str | None = None, embeddings: int | None = None) -> Any:
    """The recipe's tokenizer, or the other. embeddings: of the model, where the recipe does not say how many.

    For a model that was tuned on conversations it has the chat template that they were written with; rows of prompt and
    response go through none.

    Raises:
        ValueError: there is no tokenizer, or it has more tokens than the model has embeddings.
    """
    name = other or str(trained.recipe.get("tokenizer.name"))
    try:
        tokenizer = open_tokenizer(name, **{**INPUTS, **(trained.recipe.get("tokenizer.kwargs") or {})})
    except Exception as error:  # transformers raises whatever its loaders raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"tokenizer {name} cannot be loaded ({reason}): name one with --tokenizer FOLDER") from None
    embeddings = embeddings or int(trained.recipe.get("model.vocab_size", 50368))
    if len(tokenizer) > embeddings:
        text = f"tokenizer {name} has {len(tokenizer):,} tokens, the model {embeddings:,} embeddings"
        raise ValueError(f"{text}: ids beyond them mean nothing; name the tokenizer it was trained with")
    return with_template(tokenizer, trained.recipe.get("train_loader") or {})


def with_template(tokenizer: Any, loader: Mapping[str, Any]) -> Any:
    """The tokenizer with the chat template that a `train_loader:`'s conversations were written with, where it has none.

    What is given stays as it is.
    """
    if tokenizer.chat_template is not None or not _saw_conversations(loader):
        return tokenizer
    from data_prep.conversations import DEFAULT_TEMPLATE

    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return tokenizer


def end_of_turn(tokenizer: Any) -> str:
    """What the chat template writes behind an answer, besides EOS; empty where it writes nothing."""
    return END_OF_TURN if END_OF_TURN in str(tokenizer.chat_template) else ""


def ids_of_ends(tokenizer: Any) -> list[int]:
    """The ids that end an answer: EOS, and the end of a turn where the template writes it and it is a token."""
    turn = tokenizer.get_vocab().get(end_of_turn(tokenizer))
    return list(dict.fromkeys(end for end in (tokenizer.eos_token_id, turn) if end is not None))


def _saw_conversations(loader: Mapping[str, Any]) -> bool:
    """Whether the training data went through a chat template; so it is taken to where no manifest says otherwise."""
    if loader.get("name") != "finetuning":
        return loader.get("name") == "preferences"
    found = [_conversations_in(folder) for folder in shard_folders(loader.get("dataset") or {})]
    return not found or any(count != 0 for count in found)


def _conversations_in(folder: Path) -> int | None:
    try:
        manifest = load_manifest(folder)
    except ValueError:  # an export is not lost for a file that somebody damaged
        return None
    return manifest.conversations if manifest else None


def write_configs(config: Mapping[str, Any], tokenizer: Any, folder: Path, dtype: str) -> None:
    """config.json, of the architecture's keys in `config`, and generation_config.json."""
    import transformers

    words = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    known = {key: value for key, value in words.items() if value is not None}
    ends = ids_of_ends(tokenizer)
    several = {"eos_token_id": ends} if len(ends) > 1 else {}
    version = {"transformers_version": transformers.__version__}
    rescaled = {"rescale_every": RESCALED_EVERY} if "rescale_every" in config and dtype == "F16" else {}
    write_json(folder / "config.json", {**config, **rescaled, **known, "torch_dtype": TORCH_NAMES[dtype], **version})
    write_json(folder / "generation_config.json", {"_from_model_config": False, **known, **several, **version})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
