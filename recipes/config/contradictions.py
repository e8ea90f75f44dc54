"""What one key of a recipe demands of another. Each rule is a small function that yields (key, words).

Rules see plain nested dicts, may meet any shape (the grammar is checked elsewhere) and must not raise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recipes.config.file_names import is_remote, names_of_files
from recipes.config.keys import KeyPath, Place, Problem, RecipeError
from recipes.cost.hardware import find_gpu
from recipes.cost.parameters import MODEL_DEFAULTS, MPT, OURS, RWKV, count_parameters
from recipes.cost.run_length import Duration, read_duration
from recipes.cost.setup import shard_degree
from recipes.models.backends import CHOICES, features, precision_refusals, refusals
from recipes.training.lora import target_problems

Finding = tuple[KeyPath, str]
MOST_LAYERS = 10_000
Rule = Callable[[Mapping[str, Any]], Iterator[Finding]]


def contradictions(recipe: Mapping[str, Any], kind: str = "train") -> list[Finding]:
    """All contradictions in a resolved recipe, of kind `train` or `eval`."""
    of_run = TRAIN_RULES if kind == "train" else ()
    models = [(("model",), recipe.get("model"))] if kind == "train" else _evaluated_models(recipe)
    found = [finding for rule in (*of_run, names_of_files, _cost) for finding in _findings(rule, recipe)]
    for key, model in models:
        if isinstance(model, Mapping) and model.get("name") in OURS:
            # the recipe's own code may register layers that cannot be counted here
            of_kind = MODEL_RULES if model["name"] == MPT else (_size,)
            rules = [rule for rule in of_kind if rule is not _size or not recipe.get("code_paths")]
            found += [((*key, *inner), text) for rule in rules for inner, text in _findings(rule, model)]
    return found


def _findings(rule: Rule, section: Mapping[str, Any]) -> list[Finding]:
    """A rule that meets a value of a shape it does not know finds nothing: the grammar reports the shape."""
    try:
        return list(rule(section))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError):
        return []


def _evaluated_models(recipe: Mapping[str, Any]) -> list[tuple[KeyPath, Any]]:
    models = recipe.get("models")
    if not isinstance(models, list):
        return []
    return [(("models", i, "model"), m.get("model")) for i, m in enumerate(models) if isinstance(m, Mapping)]


def world_size() -> int:
    """Number of processes the launcher started; 1 without a launcher. Raises RecipeError for what no launcher sets."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdigit() or int(text) < 1:
        where = Place("environment")
        raise RecipeError([Problem(where, ("WORLD_SIZE",), f"got {text!r}, expected the number of processes")])
    return int(text)


def _section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = mapping.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _is_number(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


# --- the model ---------------------------------------------------------------------------------------------------


def _heads(model: Mapping[str, Any]) -> Iterator[Finding]:
    d_model, n_heads = model.get("d_model", 2048), model.get("n_heads", 16)
    attention = _section(model, "attn_config")
    if _is_number(d_model, n_heads) and (n_heads < 1 or d_model % n_heads):
        yield ("n_heads",), f"d_model {d_model} must be a multiple of n_heads, got {n_heads}"
    kind, kv_heads = attention.get("attn_type", "multihead_attention"), attention.get("kv_n_heads")
    if kind == "grouped_query_attention":
        if kv_heads is None:
            yield ("attn_config", "kv_n_heads"), "missing; grouped_query_attention needs the number of key-value heads"
        elif _is_number(kv_heads, n_heads) and (kv_heads < 1 or n_heads % kv_heads):
            yield ("attn_config", "kv_n_heads"), f"n_heads {n_heads} must be a multiple of kv_n_heads, got {kv_heads}"
    elif kv_heads is not None:
        text = f"{kind} sets the number of key-value heads itself: remove kv_n_heads"
        yield ("attn_config", "kv_n_heads"), f"{text}, or set attn_type: grouped_query_attention"
    if attention.get("kv_dim") is not None and attention.get("fused_qkv", True):
        yield ("attn_config", "kv_dim"), "needs projections of their own: set attn_config.fused_qkv: false"
    head_dim = model.get("head_dim")
    if (
        _is_number(head_dim, d_model, n_heads)
        and attention.get("fused_qkv", True)
        and n_heads
        and head_dim * n_heads != d_model
    ):
        text = f"head_dim × n_heads = {head_dim * n_heads} is not d_model {d_model}"
        yield ("head_dim",), f"{text}, where the fused projection splits; set attn_config.fused_qkv: false"


def _positions(model: Mapping[str, Any]) -> Iterator[Finding]:
    attention = _section(model, "attn_config")
    alibi, rope = attention.get("alibi"), attention.get("rope")
    if alibi and rope:
        yield ("attn_config", "rope"), "alibi and rope are both on: a model has one kind of positions, turn one off"
    if attention.get("qk_ln") and attention.get("qk_gn"):
        yield ("attn_config", "qk_gn"), "qk_ln and qk_gn are both on: turn one off"
    if _section(attention, "attn_temperature_tuning").get("attn_scale") and attention.get("attn_uses_sequence_id"):
        text = "attn_scale counts positions along a row, not within its documents: turn attn_uses_sequence_id off"
        yield ("attn_config", "attn_temperature_tuning"), text
    window = attention.get("sliding_window_size", -1)
    if _is_number(window) and window != -1 and window < 1:
        yield ("attn_config", "sliding_window_size"), f"got {window}, expected -1 (no window) or at least 1 token"


def _ranges(model: Mapping[str, Any]) -> Iterator[Finding]:
    for name in ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "expansion_ratio"):
        value: Any = model.get(name)
        if _is_number(value) and value <= 0:
            yield (name,), f"got {value}, expected more than 0"
    probabilities: dict[KeyPath, Any] = {
        ("resid_pdrop",): model.get("resid_pdrop"),
        ("emb_pdrop",): model.get("emb_pdrop"),
        ("attn_config", "attn_pdrop"): _section(model, "attn_config").get("attn_pdrop"),
    }
    for key, value in probabilities.items():
        if _is_number(value) and not 0 <= value <= 1:
            yield key, f"got {value}, expected a probability between 0 and 1"


def _backend(model: Mapping[str, Any]) -> Iterator[Finding]:
    attention = _section(model, "attn_config")
    implementation = attention.get("attn_impl", "flash")
    if implementation in CHOICES:
        for text in refusals(implementation, wanted=features(attention)):
            yield ("attn_config", "attn_impl"), text


def _size(model: Mapping[str, Any]) -> Iterator[Finding]:
    layers: Any = model.get("n_layers", 24)
    if _is_number(layers) and layers > MOST_LAYERS:
        yield ("n_layers",), f"got {layers:,}, which no machine holds; {MOST_LAYERS:,} at most"
        return
    is_dense = _section(model, "ffn_config").get("ffn_type", "mptmlp") in ("mptmlp", "mptglu")
    if is_dense and not model.get("block_overrides"):
        try:
            count_parameters(model)
        except ValueError as error:
            yield (), f"cannot be built: {error}"


# --- the run -----------------------------------------------------------------------------------------------------


def _sequence_lengths(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    length: Any = recipe.get("max_seq_len")
    model = _section(recipe, "model")
    places: dict[KeyPath, Any] = {
        ("model", "max_seq_len"): model.get("max_seq_len") or MODEL_DEFAULTS["max_seq_len"]
        if model.get("name") in OURS
        else None
    }
    for key, loader in _loaders(recipe):
        dataset = _section(loader, "dataset")
        place = (*key, "dataset", "max_seq_len")
        places[place] = dataset.get("max_seq_len")
    limit = places[("model", "max_seq_len")] or length
    if _is_number(limit, length):
        limit = max(limit, length)  # a model that is too short for the recipe is said once, not for every loader too
    for key, value in places.items():
        if not _is_number(value, length, limit):
            continue
        if key[0] == "model" and value < length:
            yield key, f"the model reads {value} tokens at most, but max_seq_len is {length}"
        elif key[0] != "model" and value > limit:
            yield key, f"sequences of {value} tokens do not fit the model's {limit}"


def _loaders(recipe: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    for name in ("train_loader", "eval_loader"):
        loader = recipe.get(name)
        if isinstance(loader, Mapping):
            yield (name,), loader
        elif isinstance(loader, list):
            yield from (((name, i), inner) for i, inner in enumerate(loader) if isinstance(inner, Mapping))


def _batches(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    total, devices = recipe.get("global_train_batch_size"), world_size()
    if isinstance(total, int) and total > 0 and total % devices:
        lower, upper = total // devices * devices, (total // devices + 1) * devices
        nearest = f"{lower} or {upper}" if lower else str(upper)
        yield ("global_train_batch_size",), f"{total} sequences cannot be shared by {devices} devices; {nearest} can"
    micro: Any = recipe.get("device_train_microbatch_size")
    shares_sequences = _section(_section(recipe, "model"), "attn_config").get("seq_parallel_world_size")
    if _is_number(micro) and micro % 1 and not shares_sequences:
        text = f"got {micro}, expected whole sequences: a part of one needs model.attn_config.seq_parallel_world_size"
        yield ("device_train_microbatch_size",), text


def _data_source(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    for key, loader in _loaders(recipe):
        dataset = _section(loader, "dataset")
        where = (*key, "dataset")
        streams = dataset.get("streams")
        if loader.get("name") == "text":
            if streams and (dataset.get("local") or dataset.get("remote")):
                yield (*where, "streams"), "streams and local/remote are both set: keep one"
            elif not streams and not dataset.get("local") and not dataset.get("remote"):
                yield (*where, "local"), "missing; say where the shards are: local, remote or streams"
            if _section(_section(recipe, "model"), "attn_config").get("attn_uses_sequence_id") and (
                dataset.get("eos_token_id") is None and dataset.get("bos_token_id") is None
            ):
                text = "missing; attn_uses_sequence_id needs the id of the token that ends (or begins) a document"
                yield (*where, "eos_token_id"), text
            if dataset.get("eos_token_id") is not None and dataset.get("bos_token_id") is not None:
                yield (*where, "bos_token_id"), "eos_token_id and bos_token_id are both set: documents are split by one"
        elif loader.get("name") == "finetuning" and not any(dataset.get(k) for k in ("hf_name", "remote", "streams")):
            yield (*where, "hf_name"), "missing; say where the examples are: hf_name, remote or streams"


def _schedule(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    scheduler = _section(recipe, "scheduler")
    written, whole = scheduler.get("t_warmup"), recipe.get("max_duration")
    warmup, duration = read_duration(written), read_duration(whole)
    if duration and duration.amount % 1:
        yield ("max_duration",), f"got {whole}, expected a whole number of {duration.unit}"
    if warmup and warmup.unit == "dur" and warmup.amount > 1:
        yield ("scheduler", "t_warmup"), f"{written} is more than the whole run"
    decay = read_duration(scheduler.get("t_max"))
    if decay and decay.amount == 0:
        text = f"got {scheduler['t_max']}, expected more than nothing: the learning rate falls in this time"
        yield ("scheduler", "t_max"), text
    for key in ("eval_interval", "save_interval", "task_interval"):
        share = read_duration(recipe.get(key))
        if share and share.unit == "dur" and share.amount == 0:
            yield (key,), f"got {recipe[key]}, expected a part of the run, such as 0.1dur"
    for key, value in scheduler.items():
        part = read_duration(value) if str(key).startswith("t_") and key != "t_max" else None
        fall = decay or duration
        if part and fall and duration and _counted_in(part, duration) != _counted_in(fall, duration):
            length = f"t_max of {scheduler['t_max']}" if decay else f"run of {whole}"
            text = f"got {value}, expected it in {_counted_in(fall, duration)}, in which the {length} is counted"
            yield ("scheduler", key), text
    learning_rate: Any = _section(recipe, "optimizer").get("lr")
    if _is_number(learning_rate) and learning_rate <= 0 and _section(recipe, "optimizer").get("name") != "no_op":
        yield ("optimizer", "lr"), f"got {learning_rate}, expected more than 0"
    betas = _section(recipe, "optimizer").get("betas")
    if isinstance(betas, list) and (len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas)):
        yield ("optimizer", "betas"), f"got {betas}, expected two numbers from 0 up to 1"


def _counted_in(part: Duration, run: Duration) -> str:
    """The unit in which Composer's schedulers count: parts of the run in the run's own, epochs in batches."""
    unit = run.unit if part.unit == "dur" else part.unit
    return "ba" if unit == "ep" else unit


def _checkpoints(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    if recipe.get("autoresume") is True:
        if not recipe.get("save_folder"):
            yield ("autoresume",), "needs save_folder: that is where the checkpoints to resume from are"
        if recipe.get("save_weights_only"):
            yield ("save_weights_only",), "weights alone cannot be resumed from: turn it or autoresume off"
    has_own_adapters = _section(recipe, "model").get("name") == MPT and _section(recipe, "model").get("peft_config")
    if has_own_adapters and "hf_checkpointer" in _section(recipe, "callbacks"):
        text = (
            "does not know the adapters of mpt_causal_lm: leave it out, and use `python -m recipes export` on the run"
        )
        yield ("callbacks", "hf_checkpointer"), text
    if recipe.get("only_hf_checkpoint") and "hf_checkpointer" not in _section(recipe, "callbacks"):
        yield ("only_hf_checkpoint",), "needs the hf_checkpointer callback"
    if (
        recipe.get("save_num_checkpoints_to_keep") == 0
        and recipe.get("save_folder")
        and not is_remote(recipe["save_folder"])
    ):
        yield (
            ("save_num_checkpoints_to_keep",),
            "0 keeps no checkpoint in a local save_folder: use -1 (all) or at least 1",
        )


def _evaluation(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    model = _section(recipe, "model").get("name")
    has_evaluation = any(recipe.get(key) for key in ("eval_loader", "icl_tasks", "harness_tasks"))
    if recipe.get("eval_first") and not has_evaluation:
        yield ("eval_first",), "there is nothing to evaluate: add eval_loader or icl_tasks"
    if recipe.get("eval_gauntlet") and not recipe.get("icl_tasks"):
        yield ("eval_gauntlet",), "averages icl_tasks, and there are none"
    if model == "hf_t5":
        if recipe.get("icl_tasks"):
            yield ("icl_tasks",), "in-context learning evaluates decoder-only models, not hf_t5"
        for key, loader in _loaders(recipe):
            if loader.get("name") == "text":
                yield (*key, "name"), "hf_t5 is trained on prompts and responses: use the finetuning loader"
    if _section(recipe, "model").get("load_in_8bit"):
        yield ("model", "load_in_8bit"), "8-bit weights can be evaluated but not trained"


def _cost(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    for section in (("cost",), ("callbacks", "cost_monitor")):
        inner: Any = recipe
        for name in section:
            inner = _section(inner, name)
        gpu = inner.get("gpu")
        if isinstance(gpu, str) and gpu.strip().lower() != "cpu":
            try:
                find_gpu(gpu)
            except ValueError as error:
                yield (*section, "gpu"), str(error)


def _sharding(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    model, fsdp = _section(recipe, "model"), recipe.get("fsdp_config")
    if model.get("init_device") == "mixed" and fsdp is None:
        yield ("model", "init_device"), "mixed needs fsdp_config: rank 0 holds the weights and sends the others theirs"
    if isinstance(fsdp, Mapping) and world_size() > 1:
        try:
            shard_degree(fsdp, world_size())
        except ValueError as error:
            name, _, text = str(error).removeprefix("fsdp_config.").partition(": ")
            yield ("fsdp_config", name), text
    for planner in ("load_planner", "save_planner"):
        if _section(recipe, "fsdp_config").get(planner):
            yield ("fsdp_config", planner), "is of FSDP1, and Composer's FSDP2 asks for none: leave it out"
    if recipe.get("precision") == "amp_fp8" and model.get("name") == RWKV:
        yield ("precision",), f"amp_fp8 works on Transformer Engine layers only, and {RWKV} has none: use amp_bf16"
    elif recipe.get("precision") == "amp_fp8" and "te" not in (
        str(model.get("fc_type")),
        str(_section(model, "ffn_config").get("ffn_type"))[:2],
    ):
        yield ("precision",), "amp_fp8 works on Transformer Engine layers only: set model.fc_type: te"


def _kernels(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    model = _section(recipe, "model")
    if model.get("name") not in OURS:
        return
    implementation = _section(model, "attn_config").get("attn_impl", "flash")
    for text in precision_refusals(implementation, recipe.get("precision", "amp_bf16")):
        yield ("model", "attn_config", "attn_impl"), text
    if "loss_perp_v_len" in _section(recipe, "callbacks") and model.get("loss_fn") != "torch_crossentropy":
        text = "loss_perp_v_len reads the logits of training: set model.loss_fn: torch_crossentropy, which keeps them"
        yield ("callbacks", "loss_perp_v_len"), text


def _blocks(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    compiled, selective = recipe.get("compile") is True, recipe.get("selective_checkpointing") is True
    for key, on in (("compile", compiled), ("selective_checkpointing", selective)):
        if on and _section(recipe, "model").get("name") not in OURS:
            yield (key,), f"works on the blocks of {' and '.join(OURS)}, not on {_section(recipe, 'model').get('name')}"
    if compiled and recipe.get("compile_config") is not None:
        yield ("compile_config",), "compile: true compiles the blocks, compile_config the whole model: keep one"
    if compiled and selective:
        yield ("selective_checkpointing",), "cannot see the operations inside compiled blocks: turn off this or compile"
    if selective and _section(recipe, "fsdp_config").get("activation_checkpointing"):
        text = "true recomputes whole blocks: set it to false for selective_checkpointing, or leave that out"
        yield ("fsdp_config", "activation_checkpointing"), text


def _lora(model: Mapping[str, Any]) -> Iterator[Finding]:
    if model.get("peft_config"):
        for text in target_problems(model):
            yield ("peft_config", "target_modules"), text


def _preferences(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    has_pairs = any(loader.get("name") == "preferences" for _, loader in _loaders(recipe))
    if recipe.get("dpo"):
        model = _section(recipe, "model")
        if model.get("name") == RWKV:
            yield ("dpo",), f"compares with the model without its adapters (LoRA), which {RWKV} does not have"
        elif not model.get("peft_config"):
            yield ("model", "peft_config"), "missing; dpo compares with the model without its adapters (LoRA)"
        for name in (("resid_pdrop",), ("emb_pdrop",), ("attn_config", "attn_pdrop")):
            if (_section(model, name[0]) if len(name) > 1 else model).get(name[-1]):
                text = "dpo compares two readings of a text, in which dropout would drop different numbers: set it to 0"
                yield ("model", *name), text
        for key, loader in _loaders(recipe):
            if loader.get("name") != "preferences":
                yield (*key, "name"), f"got {loader.get('name')}, expected preferences: dpo learns from pairs"
    elif has_pairs:
        yield ("dpo",), "missing; the preferences loader gives pairs, for which it says beta, such as dpo: {beta: 0.1}"


MODEL_RULES: tuple[Rule, ...] = (_heads, _positions, _ranges, _backend, _size, _lora)
TRAIN_RULES: tuple[Rule, ...] = (
    _sequence_lengths,
    _batches,
    _data_source,
    _schedule,
    _checkpoints,
    _evaluation,
    _sharding,
    _kernels,
    _blocks,
    _preferences,
)
