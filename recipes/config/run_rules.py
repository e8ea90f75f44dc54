"""What one key of a training recipe demands of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.config.file_names import is_remote
from recipes.config.keys import KeyPath
from recipes.config.sections import Finding, is_number, loaders, section
from recipes.cost.architecture import MODEL_DEFAULTS, MPT, OURS, RWKV
from recipes.cost.run_length import Duration, read_duration
from recipes.cost.setup import shard_degree, shards
from recipes.models.backends import precision_refusals
from recipes.ranks import world_size

PARTS = ("proportion", "repeat", "choose")  # how much of a stream is read


def _sequence_lengths(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    length: Any = recipe.get("max_seq_len")
    model = section(recipe, "model")
    places: dict[KeyPath, Any] = {
        ("model", "max_seq_len"): model.get("max_seq_len") or MODEL_DEFAULTS["max_seq_len"]
        if model.get("name") in OURS
        else None
    }
    for key, loader in loaders(recipe):
        dataset = section(loader, "dataset")
        place = (*key, "dataset", "max_seq_len")
        places[place] = dataset.get("max_seq_len")
    limit = places[("model", "max_seq_len")] or length
    if is_number(limit, length):
        limit = max(limit, length)  # a model that is too short for the recipe is said once, not for every loader too
    for key, value in places.items():
        if not is_number(value, length, limit):
            continue
        if key[0] == "model" and value < length:
            yield key, f"the model reads {value} tokens at most, but max_seq_len is {length}"
        elif key[0] != "model" and value > limit:
            yield key, f"sequences of {value} tokens do not fit the model's {limit}"
        elif key[0] == "train_loader" and value < length:  # a plan, a bill and a report count max_seq_len
            text = (
                f"got {value}, and max_seq_len is {length}: what is longer would be cut off, and counted all the same"
            )
            yield key, f"{text}; leave it out, and set max_seq_len to what a sequence has"


def _batches(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    total, devices = recipe.get("global_train_batch_size"), world_size()
    if isinstance(total, int) and total > 0 and total % devices:
        lower, upper = total // devices * devices, (total // devices + 1) * devices
        nearest = f"{lower} or {upper}" if lower else str(upper)
        yield ("global_train_batch_size",), f"{total} sequences cannot be shared by {devices} devices; {nearest} can"
    micro: Any = recipe.get("device_train_microbatch_size")
    if is_number(micro) and micro % 1:
        yield ("device_train_microbatch_size",), f"got {micro}, expected whole sequences"


def _data_source(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    for key, loader in loaders(recipe):
        dataset = section(loader, "dataset")
        where = (*key, "dataset")
        streams = dataset.get("streams")
        if loader.get("name") == "text":
            if streams and (dataset.get("local") or dataset.get("remote")):
                yield (*where, "streams"), "streams and local/remote are both set: keep one"
            elif not streams and not dataset.get("local") and not dataset.get("remote"):
                yield (*where, "local"), "missing; say where the shards are: local, remote or streams"
            if section(section(recipe, "model"), "attn_config").get("attn_uses_sequence_id") and (
                dataset.get("eos_token_id") is None and dataset.get("bos_token_id") is None
            ):
                text = "missing; attn_uses_sequence_id needs the id of the token that ends (or begins) a document"
                yield (*where, "eos_token_id"), text
            if dataset.get("eos_token_id") is not None and dataset.get("bos_token_id") is not None:
                yield (*where, "bos_token_id"), "eos_token_id and bos_token_id are both set: documents are split by one"
        elif loader.get("name") == "finetuning" and not any(dataset.get(k) for k in ("hf_name", "remote", "streams")):
            text = "missing; say where the examples are: hf_name, remote or streams"
            if dataset.get("local"):  # LLM Foundry's loader takes it for the cache of a remote
                text = f"{text}. Shards in a folder are a stream: {_as_stream(dataset)} in place of local"
            yield (*where, "hf_name"), text


def _workers(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    for key, loader in loaders(recipe):
        if loader.get("timeout") and loader.get("num_workers") == 0:
            yield (
                (*key, "timeout"),
                f"got {loader['timeout']}, and without workers there is none to wait for: leave it out",
            )
        if key == ("train_loader",) and loader.get("label") is not None:
            yield (*key, "label"), "tells several eval_loaders apart, and training has one loader: leave it out"


def _as_stream(dataset: Mapping[str, Any]) -> str:
    split = f", split: {dataset['split']}" if dataset.get("split") else ""
    return f"streams: {{mine: {{local: {dataset['local']}{split}}}}}"


def _streams(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    for key, loader in loaders(recipe):
        streams = section(section(loader, "dataset"), "streams")
        parts = {name: [part for part in PARTS if section(streams, name).get(part) is not None] for name in streams}
        with_share = [name for name, said in parts.items() if "proportion" in said]
        for name, said in parts.items():
            where = (*key, "dataset", "streams", name)
            if len(said) > 1:
                yield (*where, said[1]), f"{' and '.join(said)} are both set: a stream has one of them"
            elif with_share and "proportion" not in said:
                yield (*where, "proportion"), f"missing; all streams have one or none, and {with_share[0]} has one"


def _schedule(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    scheduler = section(recipe, "scheduler")
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
    elif decay and duration and decay.unit == duration.unit and decay.amount < duration.amount:
        text = f"got {scheduler['t_max']}, expected {whole} (max_duration) at least: Composer takes no other"
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
    learning_rate: Any = section(recipe, "optimizer").get("lr")
    if is_number(learning_rate) and learning_rate <= 0 and section(recipe, "optimizer").get("name") != "no_op":
        yield ("optimizer", "lr"), f"got {learning_rate}, expected more than 0"
    betas = section(recipe, "optimizer").get("betas")
    if isinstance(betas, list) and (len(betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in betas)):
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
    has_own_adapters = section(recipe, "model").get("name") == MPT and section(recipe, "model").get("peft_config")
    if has_own_adapters and "hf_checkpointer" in section(recipe, "callbacks"):
        text = (
            "does not know the adapters of mpt_causal_lm: leave it out, and use `python -m recipes export` on the run"
        )
        yield ("callbacks", "hf_checkpointer"), text
    if recipe.get("only_composer_checkpoint") and not recipe.get("save_folder"):
        yield ("only_composer_checkpoint",), "needs save_folder: that is where it would be written"
    if recipe.get("only_hf_checkpoint") and "hf_checkpointer" not in section(recipe, "callbacks"):
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


def _sharding(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    model, fsdp = section(recipe, "model"), recipe.get("fsdp_config")
    if model.get("init_device") == "mixed" and fsdp is None:
        yield ("model", "init_device"), "mixed needs fsdp_config: rank 0 holds the weights and sends the others theirs"
    if isinstance(fsdp, Mapping) and world_size() > 1:
        try:
            shard_degree(fsdp, world_size())
        except ValueError as error:
            name, _, text = str(error).removeprefix("fsdp_config.").partition(": ")
            yield ("fsdp_config", name), text
    for planner in ("load_planner", "save_planner"):
        if section(recipe, "fsdp_config").get(planner):
            yield ("fsdp_config", planner), "is of FSDP1, and Composer's FSDP2 asks for none: leave it out"
    if section(recipe, "fsdp_config").get("cpu_offload"):
        text = "is of FSDP1, and Composer's FSDP2 keeps everything on the devices: leave it out"
        yield ("fsdp_config", "cpu_offload"), text
    if recipe.get("precision") == "amp_fp8" and model.get("name") == RWKV:
        yield ("precision",), f"amp_fp8 works on Transformer Engine layers only, and {RWKV} has none: use amp_bf16"
    elif (
        recipe.get("precision") == "amp_fp8"
        and model.get("name") == MPT
        and "te"
        not in (
            str(model.get("fc_type")),
            str(section(model, "ffn_config").get("ffn_type"))[:2],
        )
    ):
        yield ("precision",), "amp_fp8 works on Transformer Engine layers only: set model.fc_type: te"


def _kernels(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    model = section(recipe, "model")
    if model.get("name") not in OURS:
        return
    implementation = section(model, "attn_config").get("attn_impl", "flash")
    is_sharded = shards(recipe.get("fsdp_config"))  # on several devices; of this machine preflight judges
    for text in precision_refusals(implementation, recipe.get("precision", "amp_bf16"), is_sharded):
        yield ("model", "attn_config", "attn_impl"), text
    if "loss_perp_v_len" in section(recipe, "callbacks") and model.get("loss_fn") != "torch_crossentropy":
        text = "loss_perp_v_len reads the logits of training: set model.loss_fn: torch_crossentropy, which keeps them"
        yield ("callbacks", "loss_perp_v_len"), text
    for name in ("alibi", "gated_linear_units"):
        if name in section(recipe, "algorithms"):
            own = {"alibi": "attn_config.alibi: true", "gated_linear_units": "ffn_config.ffn_type: mptglu"}[name]
            text = f"rebuilds models of transformers (GPT-2, BERT), and not {model.get('name')}"
            yield ("algorithms", name), f"{text}, which has model.{own}"


def _callbacks(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    callbacks = section(recipe, "callbacks")
    if "loss_perp_v_len" in callbacks and "mlflow" not in section(recipe, "loggers"):
        yield ("loggers",), "callbacks.loss_perp_v_len logs to MLflow alone: add mlflow"
    if "mono_checkpoint_saver" in callbacks:
        text = "writes checkpoints of FSDP1: save_folder and save_interval keep them here"
        yield ("callbacks", "mono_checkpoint_saver"), text


def _blocks(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    compiled, selective = recipe.get("compile") is True, recipe.get("selective_checkpointing") is True
    for key, on in (("compile", compiled), ("selective_checkpointing", selective)):
        if on and section(recipe, "model").get("name") not in OURS:
            yield (key,), f"works on the blocks of {' and '.join(OURS)}, not on {section(recipe, 'model').get('name')}"
    if compiled and recipe.get("compile_config") is not None:
        yield ("compile_config",), "compile: true compiles the blocks, compile_config the whole model: keep one"
    if compiled and selective:
        yield ("selective_checkpointing",), "cannot see the operations inside compiled blocks: turn off this or compile"
    if selective and section(recipe, "fsdp_config").get("activation_checkpointing"):
        text = "true recomputes whole blocks: set it to false for selective_checkpointing, or leave that out"
        yield ("fsdp_config", "activation_checkpointing"), text


def _preferences(recipe: Mapping[str, Any]) -> Iterator[Finding]:
    has_pairs = any(loader.get("name") == "preferences" for _, loader in loaders(recipe))
    if recipe.get("dpo"):
        model = section(recipe, "model")
        if model.get("name") == RWKV:
            yield ("dpo",), f"compares with the model without its adapters (LoRA), which {RWKV} does not have"
        elif not model.get("peft_config"):
            yield ("model", "peft_config"), "missing; dpo compares with the model without its adapters (LoRA)"
        for name in (("resid_pdrop",), ("emb_pdrop",), ("attn_config", "attn_pdrop")):
            if (section(model, name[0]) if len(name) > 1 else model).get(name[-1]):
                text = "dpo compares two readings of a text, in which dropout would drop different numbers: set it to 0"
                yield ("model", *name), text
        for key, loader in loaders(recipe):
            if loader.get("name") != "preferences":
                yield (*key, "name"), f"got {loader.get('name')}, expected preferences: dpo learns from pairs"
    elif has_pairs:
        yield ("dpo",), "missing; the preferences loader gives pairs, for which it says beta, such as dpo: {beta: 0.1}"


RUN_RULES = (
    _sequence_lengths,
    _batches,
    _data_source,
    _workers,
    _streams,
    _schedule,
    _checkpoints,
    _sharding,
    _kernels,
    _callbacks,
    _blocks,
    _preferences,
)
