"""A model to talk to, by the path that a user has: a Hugging Face folder, a run folder, a checkpoint. One process."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipes.config.load import Recipe
from recipes.cost.architecture import OURS, RWKV
from recipes.ranks import is_first_of_machine, is_first_rank
from recipes.training.checkpoints import FILENAME, SHARDED, find_checkpoints
from recipes.training.startup import light_imports
from recipes.weights.merged import merged
from recipes.weights.trained import (
    HF_MODEL,
    LENGTHS,
    RWKV_LENGTH,
    Trained,
    find_trained,
    folder_config_of,
    is_hf_folder,
)


@dataclass(frozen=True)
class Loaded:
    """A model that generates, its tokenizer, and the tokens that it reads at most.

    in_bf16: its matrices are, and what computes with it does so under autocast.
    """

    name: str
    model: Any
    tokenizer: Any
    max_seq_len: int
    in_bf16: bool = False


def load_model(
    path: Path,
    tokenizer: str | None = None,
    recipe: Path | None = None,
    in_bf16: bool = False,
    for_chat: bool = False,
) -> Loaded:
    """Load for generation, on the GPU where there is one.

    in_bf16: where that GPU computes in bf16, with half the memory and time; else as the weights are.
    for_chat: the tokenizer must have a chat template, which is asked before the weights are read.
    Raises ValueError for a path that is neither, a folder of another architecture, files that are not whole.
    """
    trained = None if is_hf_folder(path) else find_trained(path, recipe)  # before the seconds that torch takes
    if trained and trained.model["name"] == HF_MODEL:
        text = f"give the folder that `python -m recipes export {path} FOLDER` makes of it"
        raise ValueError(f"{path} is of {HF_MODEL}: {text}")
    if trained and path.is_dir() and trained.checkpoint != path.resolve():
        say_what_is_ignored(trained.checkpoint, trained.recipe)
    with light_imports():
        import torch

        from recipes.training.processes import quiet

        if trained:
            import recipes.models.mpt  # noqa: F401 (`build_for_generation` takes from it)

    quiet()
    logging.getLogger("recipes").setLevel(logging.WARNING)
    check = partial(refuse_without_template, path.resolve().name) if for_chat else lambda _: None
    loaded = _from_checkpoint(trained, path, tokenizer, check) if trained else _from_folder(path, tokenizer, check)
    if in_bf16 and _gpu_has_bf16():
        _put_matrices_in_bf16(loaded.model)
        loaded = dataclasses.replace(loaded, in_bf16=True)
    loaded.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def load_words(path: Path, tokenizer: str | None = None, recipe: Path | None = None) -> Any:
    """The tokenizer alone of what `load_model` would give, with its errors."""
    trained = None if is_hf_folder(path) else find_trained(path, recipe)
    with light_imports():
        from recipes.weights.folder_files import load_tokenizer, open_tokenizer

    if trained:
        return load_tokenizer(trained, tokenizer)
    with _named(path):
        return open_tokenizer(tokenizer or str(path))


def refuse_without_template(name: str, tokenizer: Any) -> None:
    """Raises ValueError for a model whose tokenizer has no chat template."""
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{name} has no chat template: it was not tuned on conversations. Use `python -m recipes generate`, "
            "or give a tokenizer with a template by --tokenizer FOLDER"
        )


def _gpu_has_bf16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _put_matrices_in_bf16(model: Any) -> None:
    """What autocast would round for every token anew; all else stays, so that the answers are those of evaluations."""
    from torch import nn

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in embeddings:
            module.weight.data = module.weight.data.bfloat16()


def say_what_is_ignored(newest: Path, recipe: Recipe) -> None:
    """On stderr, the checkpoints beside the newest whole one that are not whole: they may be newer than it."""
    filename = recipe.get("save_filename", FILENAME)
    sharded = newest.is_dir()
    broken = find_checkpoints(newest.parent, SHARDED if sharded else filename, sharded).broken
    if broken and is_first_rank():
        print(f"taking {newest}; ignored {', '.join(p.name for p in broken)}: not whole", file=sys.stderr)


def _from_folder(path: Path, tokenizer: str | None, check: Callable[[Any], None]) -> Loaded:
    from recipes.weights.folder_files import open_tokenizer
    from recipes.weights.hf_architecture import architecture_of_folder
    from recipes.weights.tensor_files import safetensors_folder

    config: Any = folder_config_of(path)
    try:
        architecture_of_folder(config)
    except ValueError as error:
        raise ValueError(f"{path} holds {error}") from None
    with safetensors_folder(path):  # whole, before transformers opens it
        pass
    with _named(path):
        words = open_tokenizer(tokenizer or str(path))
    check(words)
    with _named(path):
        model = model_of_folder(path)
    if len(words) > model.config.vocab_size:
        text = f"its tokenizer has {len(words):,} tokens, the model {model.config.vocab_size:,} embeddings"
        raise ValueError(f"{path}: {text}: ids beyond them mean nothing")
    length = next((config[name] for name in LENGTHS if config.get(name)), RWKV_LENGTH)
    return Loaded(path.resolve().name, model, words, int(length))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers raises whatever its loaders raise
        raise ValueError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}") from None


def _first_of(tensors: Sequence[str]) -> str:
    return tensors[0] + (f" and {len(tensors) - 1} more tensors" if tensors[1:] else "")


def model_of_folder(folder: Path) -> Any:
    """transformers' own model of a folder; ours for RWKV, which transformers gets wrong for several rows at a time.

    Raises ValueError where the folder has other tensors than the model: transformers makes up those that are missing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from recipes.weights.hf_architecture import not_computed
    from recipes.weights.tensor_files import safetensors_folder

    written = folder_config_of(folder)
    if written.get("model_type") == "rwkv":
        return _rwkv_of_folder(folder, written)
    if written.get("model_type") == "mpt" and (more := not_computed(written)):
        text = f"config.json has {', '.join(more)}, which transformers' own MPT class does not compute"
        raise ValueError(f"{folder}: {text}: give the run or the checkpoint that the folder was made of")
    rope = {key: written[key] for key in ("rope_theta", "rope_scaling", "partial_rotary_factor") if key in written}
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, **rope)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), config=config, trust_remote_code=False, output_loading_info=True
    )
    model, found = loaded
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if written.get("model_type") == "mpt" and not written.get("tie_word_embeddings", True):
        with safetensors_folder(folder) as files:  # transformers does not miss this one
            missing += [name for name in ("lm_head.weight",) if name not in files.shapes()]
    if missing or unknown:
        said = [
            f"{what} {_first_of(names)}" for what, names in (("lacks", missing), ("has no place for", unknown)) if names
        ]
        raise ValueError(f"{folder / 'config.json'} is not of its weights: the model {' and '.join(said)}")
    return model


def _from_checkpoint(trained: Trained, path: Path, tokenizer: str | None, check: Callable[[Any], None]) -> Loaded:
    from recipes.weights.folder_files import load_tokenizer

    words = load_tokenizer(trained, tokenizer)
    check(words)
    return Loaded(path.resolve().name, build_for_generation(trained), words, int(trained.recipe["max_seq_len"]))


def _rwkv_of_folder(folder: Path, written: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    from recipes.weights.hf_architecture import architecture_of_folder
    from recipes.weights.tensor_files import safetensors_folder

    try:
        section = architecture_of_folder(written)
    except ValueError as error:
        raise ValueError(f"{folder} holds {error}") from None
    del section["family"]
    ends = {name: written.get(name) for name in ("bos_token_id", "eos_token_id")}
    length = written.get("context_length") or RWKV_LENGTH
    model = _empty({"name": RWKV, "max_seq_len": length, **section, **ends})
    with safetensors_folder(folder) as files:
        state = {name: files.rows(name).float() for name in files.shapes()}  # as transformers 4 loads any folder
    _fill(model, state, f"{folder / 'config.json'} is not of its weights")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return model


def _empty(section: Mapping[str, Any]) -> Any:
    """The language model of a `model:` section, on the meta device."""
    keys = {k: v for k, v in section.items() if k not in ("name", "peft_config", "init_device")}
    if section["name"] == RWKV:
        from recipes.models.rwkv import RwkvConfig, RwkvForCausalLM

        return RwkvForCausalLM(RwkvConfig(**json.loads(json.dumps(keys)), init_device="meta"))
    from recipes.models.mpt import MPTConfig, MPTForCausalLM

    # the same mathematics on whatever kernel this device has: the one it was trained with may be elsewhere
    if (keys.get("attn_config") or {}).get("attn_impl") not in ("torch", "sdpa"):  # which run everywhere
        keys["attn_config"] = {**(keys.get("attn_config") or {}), "attn_impl": "flash"}
    return MPTForCausalLM(MPTConfig(**json.loads(json.dumps(keys)), init_device="meta"))


def _fill(model: Any, state: dict[str, Any], otherwise: str) -> None:
    """Puts tensors in an empty model's places. Raises ValueError, beginning with `otherwise`, where they do not fit."""
    wrong = [n for n, p in model.named_parameters() if n not in state or state[n].shape != p.shape]
    if wrong:
        text = f"{wrong[0]} is missing or of another shape, and so are {len(wrong) - 1} more tensors"
        raise ValueError(f"{otherwise}: {text}")
    unknown = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    if unknown:
        raise ValueError(f"{otherwise}: the model has no place for {_first_of(unknown)}")


def build_for_generation(trained: Trained) -> Any:
    """The language model of a checkpoint, its tensors put in place without initialising any first.

    Raises ValueError where the checkpoint is not one of its recipe.
    """
    if trained.model["name"] not in OURS:
        raise ValueError(f"{trained.checkpoint} is of {trained.model['name']}: only {' and '.join(OURS)} load here")
    if is_first_of_machine():
        trained.verify()
    model = _empty(trained.model)
    with trained.tensors() as files:
        source = merged(files, trained.model)
        state = {name: source.rows(name) for name in source.shapes()}
    _fill(model, state, f"{trained.checkpoint} is not a checkpoint of {trained.recipe.path}")
    return model
