"""Fine-tuning: LoRA in and out, preferences, answers; chat and generate as a user calls them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from recipes.build import build as build_run
from recipes.config.check import check
from recipes.config.load import Recipe, load
from recipes.preflight.data import data_problems
from recipes.reports.runs import read_metrics
from recipes.talking.generate import Sampling, Streamer, complete, until
from recipes.talking.loading import Loaded, load_model
from recipes.training.lora import add_lora, reset_lora
from recipes.training.preferences import PreferenceModel, adapters_off, read_pairs
from recipes.weights.export import export

from ..conftest import ROOT, Command, write_jsonl
from ..tiny import LLAMA, MPT, VOCAB, build, composer_model, with_changes, write_run

pytestmark = pytest.mark.filterwarnings("ignore")

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ':' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)
GQA = with_changes(LLAMA, attn_config__attn_type="grouped_query_attention", attn_config__kv_n_heads=2)


@pytest.fixture(scope="module")
def talker(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer with a chat template."""
    import shutil

    folder = tmp_path_factory.mktemp("talker") / "tokenizer"
    shutil.copytree(shards / "tokenizer", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return folder


MATRICES = ("Wqkv", "out_proj", "up_proj", "down_proj")


def tuned(section: dict[str, Any], modules: tuple[str, ...] = MATRICES) -> tuple[Any, dict[str, Any]]:
    """A model with adapters that do something, and its section."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": list(modules)}
    module = build(section)
    add_lora(module, config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return module.eval(), {**section, "peft_config": config}


@pytest.mark.parametrize("section", [MPT, GQA], ids=["mpt", "llama-gqa"])
def test_lora_leaves_merged_and_unmerged(section: dict[str, Any], shards: Path, tmp_path: Path) -> None:
    module, with_lora = tuned(section)
    run = write_run(tmp_path / "run", with_lora, module, shards / "tokenizer", pretrained=str(tmp_path / "base"))
    export(write_run(tmp_path / "base-run", section, build(section), shards / "tokenizer"), tmp_path / "base", "fp32")
    export(run, tmp_path / "merged", "fp32")
    said = export(run, tmp_path / "adapter", "fp32", unmerged=True)
    assert said.endswith("with peft")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'model = AutoModelForCausalLM.from_pretrained("base")' in card
    assert 'model = PeftModel.from_pretrained(model, "adapter")' in card
    assert "library_name: peft" in card
    from_a_run = write_run(
        tmp_path / "2", with_lora, module, shards / "tokenizer", pretrained=str(tmp_path / "base-run")
    )
    said = export(from_a_run, tmp_path / "adapter-of-a-run", "fp32", unmerged=True)
    assert said.endswith(f"once it is exported: python -m recipes export {tmp_path}/base-run FOLDER")
    config = json.loads((tmp_path / "adapter-of-a-run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    ids = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = module(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        plain = base(input_ids=ids).logits
        unmerged = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(input_ids=ids).logits
        loaded = load_model(run).model(input_ids=ids).logits
    assert (ours - plain).abs().max() > 0.01
    for other in (merged, unmerged, loaded):
        assert (ours - other).abs().max() < 1e-5


def test_a_run_without_adapters_has_none_to_export(shards: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer")
    with pytest.raises(ValueError, match="has no adapters"):
        export(run, tmp_path / "out", unmerged=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "modules", "changes", "words"),
    [
        (
            MPT,
            MATRICES,
            ["vocab_size", "norm_eps"],
            "pretrained_changes: vocab_size, norm_eps made another base of exports",
        ),
        (with_changes(MPT, attn_config__fused_qkv=False), ("Wq", "Wv"), [], "attn_config.fused_qkv: false makes "),
    ],
    ids=["changed base", "fused there"],
)
def test_adapters_without_a_base_that_opens_leave_merged_alone(
    section: dict[str, Any], modules: tuple[str, ...], changes: list[str], words: str, shards: Path, tmp_path: Path
) -> None:
    module, with_lora = tuned(section, modules)
    more = {"pretrained": "exports/base", "pretrained_changes": changes}
    run = write_run(tmp_path / "run", with_lora, module, shards / "tokenizer", **more)
    with pytest.raises(ValueError, match=words) as error:
        export(run, tmp_path / "out", "fp32", unmerged=True)
    assert "leave --unmerged out" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert "MptForCausalLM" in export(run, tmp_path / "out", "fp32")


def test_adapters_of_llamas_matrices_apart_stay_apart(shards: Path, tmp_path: Path) -> None:
    module, with_lora = tuned(with_changes(GQA, attn_config__fused_qkv=False), ("Wq", "Wv"))
    run = write_run(tmp_path / "run", with_lora, module, shards / "tokenizer", pretrained=str(tmp_path / "base"))
    assert "q_proj, v_proj" in export(run, tmp_path / "out", "fp32", unmerged=True)


def test_adapters_that_fp16_cannot_hold_are_named(shards: Path, tmp_path: Path) -> None:
    module, with_lora = tuned(MPT)
    name = next(name for name, _ in module.named_parameters() if "lora_B" in name)
    module.get_parameter(name).data[0, 0] = 1e5
    run = write_run(tmp_path / "run", with_lora, module, shards / "tokenizer")
    with pytest.raises(ValueError, match=r"lora_B.*\.weight: a number is beyond the largest of fp16"):
        export(run, tmp_path / "out", "fp16", unmerged=True)
    assert not (tmp_path / "out").exists()


def test_fresh_adapters_change_nothing() -> None:
    module, _ = tuned(MPT)
    ids = torch.arange(8)[None]
    reset_lora(module, seed=1)
    assert torch.equal(module(input_ids=ids).logits, build(MPT)(input_ids=ids).logits)


def test_fresh_adapters_are_drawn_as_peft_draws_them_and_by_the_seed() -> None:
    module, _ = tuned(MPT)
    drawn = []
    for seed in (1, 2):
        reset_lora(module, seed)
        low = [parameter for name, parameter in module.named_parameters() if "lora_A" in name]
        for parameter in low:
            assert 0.9 < float(parameter.abs().max()) * parameter.shape[1] ** 0.5 <= 1
        drawn.append(low[0].detach().clone())
    assert not torch.equal(*drawn)


def test_adapters_of_weights_in_16_bits_are_in_fp32() -> None:
    from recipes import parts

    parts.register_components()
    section = {
        "name": "mpt_causal_lm",
        **MPT,
        "master_weights_dtype": "bf16",
        "peft_config": {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv"]},
    }
    model = parts.build_model(section, None, None, None)
    types = {parameter.requires_grad: parameter.dtype for parameter in model.parameters()}
    assert types == {False: torch.bfloat16, True: torch.float32}


def test_the_hf_checkpointer_writes_folders_that_open(
    shards: Path, tmp_path: Path, recipe_file: Any, run_command: Command
) -> None:
    # as commands: the callback tells transformers of a whole process that MPT is LLM Foundry's
    saver = {"save_folder": str(tmp_path / "hf"), "save_interval": "1dur", "precision": "float32"}
    path = recipe_file(recipe_text(shards, tmp_path, max_duration="2ba", callbacks={"hf_checkpointer": saver}))
    done = run_command("python", "train.py", path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (
        "import sys, torch, transformers",
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()",
        "torch.save(model(torch.arange(16)[None]).logits, sys.argv[2])",
    )
    folder, logits = tmp_path / "hf" / "huggingface" / "ba2", tmp_path / "logits"
    opened = run_command(
        "python", "-c", "\n".join(lines), folder, logits, env={"HF_MODULES_CACHE": str(tmp_path / "m")}
    )
    assert opened.returncode == 0, opened.stderr[-2000:]
    state = torch.load(tmp_path / "run" / "checkpoints" / "ep0-ba2-rank0.pt", weights_only=False)["state"]["model"]
    model = build(MPT).eval()
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(torch.load(logits), model(torch.arange(16)[None]).logits)


def test_trained_adapters_are_loaded(shards: Path, tmp_path: Path, recipe_file: Any) -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv", "up_proj"]}
    model = {"name": "mpt_causal_lm", **MPT, "peft_config": lora}

    def adapters(run: Any) -> dict[str, torch.Tensor]:
        state = run.trainer.state.model.state_dict()
        return {name: value.clone() for name, value in state.items() if "lora_" in name}

    first = build_run(load(recipe_file(recipe_text(shards, tmp_path, model=model, max_duration="4ba"))))
    assert all(not value.any() for name, value in adapters(first).items() if "lora_B" in name)
    first.train(eval_first=False)
    first.trainer.close()
    trained = adapters(first)
    assert any(value.any() for name, value in trained.items() if "lora_B" in name)
    _, path = first.end()
    more = {"load_path": path, "load_weights_only": True, "run_name": "second"}
    text = recipe_text(shards, tmp_path, model=model, save_folder=str(tmp_path / "second"), **more)
    second = build_run(load(recipe_file(text)))
    second.trainer.close()
    for name, value in adapters(second).items():
        assert torch.equal(value, trained[name]), name


def recipe_text(shards: Path, folder: Path, **more: Any) -> str:
    values = {
        "max_seq_len": 32,
        "run_name": "tiny",
        "seed": 1,
        "precision": "fp32",
        "model": {"name": "mpt_causal_lm", **MPT},
        "tokenizer": {"name": str(shards / "tokenizer")},
        "train_loader": {
            "name": "text",
            "dataset": {"local": str(shards), "split": "train"},
            "drop_last": True,
            "num_workers": 0,
        },
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-2},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "1ba"},
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 8,
        "max_duration": "20ba",
        "save_folder": str(folder / "run" / "checkpoints"),
        "save_interval": "10ba",
        **more,
    }
    return yaml.safe_dump(values)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"model": {"peft_config": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}}},
            "no module q_proj in this",
        ),
        ({"model": {"peft_config": {"r": 4, "lora_alpha": 8, "rank": 2, "target_modules": ["Wqkv"]}}}, "unknown key"),
        ({"dpo": {"beta": 0.1}}, "missing; dpo compares with the model without its adapters"),
        (
            {"train_loader": {"name": "preferences", "dataset": {"path": "x"}, "num_workers": 0}},
            "such as dpo: {beta: 0.1}",
        ),
        (
            {
                "model": {"peft_config": {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv"]}},
                "callbacks": {"hf_checkpointer": {"save_folder": "x", "save_interval": "1dur"}},
            },
            "does not know the adapters",
        ),
    ],
    ids=["lora on a missing module", "unknown lora key", "dpo without lora", "pairs without dpo", "hf_checkpointer"],
)
def test_contradictions_are_found_before_anything_is_built(
    more: dict[str, Any], words: str, shards: Path, tmp_path: Path, recipe_file: Any
) -> None:
    values = yaml.safe_load(recipe_text(shards, tmp_path))
    for key, value in more.items():
        values[key] = {**values[key], **value} if key == "model" else value
    problems = check(load(recipe_file(yaml.safe_dump(values))))
    assert any(words in problem.text for problem in problems), problems


def pairs_file(folder: Path) -> Path:
    rows = [{"prompt": f"{i}?", "chosen": "the people" * (1 + i % 3), "rejected": "the war"} for i in range(24)]
    return write_jsonl(folder / "pairs.jsonl", rows)


def test_preferences_are_learned_and_the_base_stays(
    shards: Path,
    talker: Path,
    tmp_path: Path,
    recipe_file: Any,
    run_command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv", "up_proj", "down_proj"]}
    loader = {
        "name": "preferences",
        "dataset": {"path": str(pairs_file(tmp_path)), "shuffle": True},
        "drop_last": False,
        "num_workers": 0,
    }
    base = write_run(tmp_path / "base", MPT, build(MPT), talker)
    text = recipe_text(
        shards,
        tmp_path,
        model={"name": "mpt_causal_lm", "init_device": "meta", **MPT, "peft_config": lora},
        fsdp_config={"sharding_strategy": "FULL_SHARD"},
        tokenizer={"name": str(talker)},
        train_loader=loader,
        eval_loader=loader,
        dpo={"beta": 0.1},
        pretrained=str(base),
        eval_interval="20ba",
        device_eval_batch_size=8,
    )
    path = recipe_file(text)
    recipe = load(path)
    run = build_run(recipe)
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())  # as train.py leaves it
    before = build(MPT).state_dict()
    run.train(eval_first=False)
    run.trainer.close()
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    losses = [r["loss/train/total"] for r in records if "loss/train/total" in r]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: nothing has moved yet
    assert losses[-1] < 0.5
    accuracy = [r["metrics/eval/PairAccuracy"] for r in records if "metrics/eval/PairAccuracy" in r]
    assert accuracy[-1] == 1.0
    model = run.trainer.state.model.model
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")]), name
    export(tmp_path / "run", tmp_path / "out", "fp32")
    card = (tmp_path / "out" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "pairs.jsonl").read_bytes()).hexdigest()
    assert f"- `pairs.jsonl`: 24 pairs of answers; SHA-256 `{digest}`" in card
    ids = torch.arange(16)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    expected, logits = theirs(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    assert (expected - logits).abs().max() < 1e-5 * expected.abs().max()  # 9: float32's steps there are 1e-6
    two = tmp_path / "two"  # processes, sharded
    shorter = [f"save_folder={two}/checkpoints", "max_duration=6ba", "eval_interval=6ba", "save_interval=6ba"]
    done = run_command("launch", "-n", "2", "train.py", path, *shorter, "device_train_microbatch_size=2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    same = [r["loss/train/total"] for r in read_metrics(two / "metrics.jsonl") if "loss/train/total" in r]
    assert same == pytest.approx(losses[:6], rel=5e-3)  # Adam makes steps of the last digits of a gradient near 0
    assert same[:3] == pytest.approx(losses[:3], rel=2e-4)


def test_the_preference_loss_is_the_papers(talker: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(talker)
    composer = composer_model(tokenizer=tokenizer)
    module, _ = tuned(MPT)
    composer.model = module
    model = PreferenceModel(composer, beta=0.3)
    pairs = read_pairs(pairs_file(tmp_path), tokenizer, 32)[:2]
    batch = {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}

    def log_probability(row: int, answer: int) -> torch.Tensor:
        ids, labels = batch["input_ids"][row, answer], batch["labels"][row, answer]
        logs = module(input_ids=ids[None]).logits[0].log_softmax(-1)
        return sum(logs[t - 1, ids[t]] for t in range(len(ids)) if labels[t] != -100)  # type: ignore[return-value]

    with torch.no_grad():
        losses = []
        for row in range(2):
            now = log_probability(row, 0) - log_probability(row, 1)
            with adapters_off(module):
                before = log_probability(row, 0) - log_probability(row, 1)
            losses.append(-torch.nn.functional.logsigmoid(0.3 * (now - before)))
        torch.testing.assert_close(model.loss(model(batch), batch), torch.stack(losses).mean())
    assert model._terms is not None  # so no logits are kept; with them, the same again
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    without = torch.autograd.grad(model.loss(model.eval()(batch), batch), trained)
    model._terms = None
    torch.testing.assert_close(torch.autograd.grad(model.loss(model(batch), batch), trained), without)


def test_the_model_that_it_was_is_read_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    composer, read = composer_model(), []
    composer.model, _ = tuned(MPT)
    model = PreferenceModel(composer, beta=0.1).train()
    monkeypatch.setattr(model, "_answers", lambda _: read.append(model.model.training) or torch.zeros(1, 2))
    model({})
    assert read == [True, False]
    assert model.model.training


def test_before_anything_is_learned_half_the_pairs_are_right(talker: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(talker)
    composer = composer_model(tokenizer=tokenizer)
    composer.model, _ = tuned(MPT)
    model = PreferenceModel(composer, beta=0.1)
    accuracy = model.get_metrics()["PairAccuracy"]
    for outputs, expected in ((torch.zeros(3), 0.5), (torch.tensor([0.0, 1.0, 2.0, -1.0]), 4 / 7)):
        model.update_metric({}, outputs, accuracy)
        assert float(accuracy.compute()) == pytest.approx(expected)


USER, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "Y"), ("assistant", "N"))
)
OTHER_USER = {**USER, "content": "!"}


def test_pairs_of_messages_are_those_of_text(talker: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows: list[dict[str, Any]] = [
        {"prompt": "?", "chosen": "Y", "rejected": "N"},
        {"prompt": [USER], "chosen": "Y", "rejected": "N"},
        {"prompt": "?", "chosen": [YES], "rejected": [NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": "-", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt": [USER, NO, USER], "chosen": "Y", "rejected": "N"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first, *same, longer = read_pairs(path, AutoTokenizer.from_pretrained(talker), 64)
    for pair in same:
        torch.testing.assert_close(pair, first)
    learned = [pair["labels"][pair["labels"] != -100] for pair in (first, longer)]
    torch.testing.assert_close(learned[1], learned[0])  # of the last answer alone
    assert int(longer["attention_mask"].sum()) > int(first["attention_mask"].sum())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"prompt": "a", "chosen": "b"}', "no 'rejected'"),
        ("{", "expected prompt, and chosen and rejected that differ"),
        ('{"prompt": "a", "chosen": 1, "rejected": "b"}', "chosen is int, expected text or messages"),
        (json.dumps({"chosen": [USER, YES], "rejected": [OTHER_USER, NO]}), "different prompts"),
        (json.dumps({"chosen": [YES], "rejected": [NO]}), "no 'prompt'"),
        ('{"prompt": "a", "chosen": "", "rejected": "b"}', "chosen is empty"),
        ('{"prompt": "a", "chosen": "b", "rejected": ""}', "rejected is empty"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "chosen and rejected are the same"),
        (
            '{"prompt": "a", "chosen": ["b"], "rejected": ["c"]}',
            "message 2 is not an object with role and content alone",
        ),
        ("[]", "got list"),
        ('{"prompt": "a", "chosen": "b", "rejected": "%s"}' % ("very " * 60), "tokens, max_seq_len is 32"),
    ],
)
def test_rows_that_are_no_pairs_are_named(row: str, words: str, talker: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2") as error:
        read_pairs(path, AutoTokenizer.from_pretrained(talker), 32)
    assert words in str(error.value)
    loader = {"name": "preferences", "dataset": {"path": str(path)}}
    found = list(data_problems(("train_loader",), loader, Recipe(Path("x.yaml"), {}, {})))
    is_known = "max_seq_len" not in words  # without a tokenizer
    assert found == ([(("train_loader", "dataset", "path"), str(error.value))] if is_known else [])


# --- talking ------------------------------------------------------------------------------------------------------


def positions_read(loaded: Loaded, new_tokens: int) -> int:
    """How many tokens go through the first layer while `new_tokens` are written."""
    seen = []
    embedding = loaded.model.get_input_embeddings()
    hook = embedding.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape[1]) if inputs[0].dim() == 2 else None
    )
    loaded.tokenizer.eos_token = None
    complete(loaded, list(range(2, 8)), Sampling(max_new_tokens=new_tokens, temperature=0))
    hook.remove()
    return sum(length for length in seen if length)


@pytest.mark.parametrize("kind", ["checkpoint", "folder"])
@pytest.mark.parametrize("section", [MPT, LLAMA], ids=["mpt", "llama"])
def test_work_is_linear_in_new_tokens(section: dict[str, Any], kind: str, shards: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", section, build(section), shards / "tokenizer")
    if kind == "folder":
        export(path, tmp_path / "out", "fp32")
        path = tmp_path / "out"
    loaded = load_model(path)
    work = {n: positions_read(loaded, n) for n in (4, 8, 16)}
    assert work == {4: 6 + 3, 8: 6 + 7, 16: 6 + 15}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("names", "lacks transformer.blocks.0.attn.Wqkv.weight and .* more tensors and has no place for module."),
        ("block", "lacks transformer.blocks.1.attn.Wqkv.weight and"),
        ("layers", "has no place for transformer.blocks.1.attn.Wqkv.weight and"),
    ],
)
def test_weights_are_never_made_up_nor_left_out(damage: str, words: str, shards: Path, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer"), tmp_path / "out"
    export(run, out, "fp32")
    file, config = out / "model.safetensors", json.loads((out / "config.json").read_text())
    tensors = load_file(file)
    if damage == "layers":
        (out / "config.json").write_text(json.dumps({**config, "n_layers": 1}))
        recipe = run / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("n_layers: 2", "n_layers: 1"))
        with pytest.raises(ValueError, match=r"has no place for transformer\.blocks\.1"):
            load_model(run)
    elif damage == "block":
        tensors = {name: tensor for name, tensor in tensors.items() if ".blocks.1." not in name}
    else:
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=words):
        load_model(out)


def test_generate_and_chat_as_commands(talker: Path, tmp_path: Path, run_command: Command) -> None:
    run = write_run(tmp_path / "run", MPT, build(MPT), talker)
    made = run_command("python", "-m", "recipes", "export", run, tmp_path / "hf", "--dtype", "fp32")
    assert made.returncode == 0, made.stderr
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the people\n\nof war\n")
    options = ["--prompts", prompts, "--temperature", "0", "--max-new-tokens", "8", "--out", tmp_path / "said.jsonl"]
    told = run_command("python", "-m", "recipes", "generate", run, tmp_path / "hf", *options)
    assert told.returncode == 0, told.stderr
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(row["model"], row["prompt"]) for row in rows] == [
        (name, prompt) for prompt in ("the people", "of war") for name in ("run", "hf")
    ]
    assert rows[0]["text"] == rows[1]["text"]
    assert rows[2]["text"] == rows[3]["text"]
    assert "the people" in told.stdout

    command = [sys.executable, "-m", "recipes", "chat", str(tmp_path / "hf"), "--max-new-tokens", "5", "--seed", "1"]
    talked = subprocess.run(
        command, cwd=ROOT, input="who?\nand then?\n/reset\nwho?\n/quit\n", capture_output=True, text=True, timeout=200
    )
    assert talked.returncode == 0, talked.stderr
    answers = talked.stdout.split("\n> ")[1:]
    assert len(answers) == 5
    assert answers[0] == answers[3]
    assert all(answer.strip() for answer in (answers[0], answers[1]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "nothing"], "does not exist"),
        (["chat", "README.md"], "README.md"),
        (["generate", "nothing", "--prompts", "Makefile", "--top-p", "2"], "--top-p: got 2.0, expected above 0"),
        (["generate", "nothing", "--prompts", "nothing.txt"], "nothing.txt cannot be read"),
        (["export", "nothing", "/tmp/never-made"], "nothing does not exist"),
        (["export", "runs", "/tmp/never-made", "--dtype", "fp8"], "expected one of fp32, bf16, fp16"),
    ],
)
def test_commands_refuse_in_words(arguments: list[str], words: str, run_command: Command) -> None:
    done = run_command("python", "-m", "recipes", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("/tmp/never-made").exists()


def test_a_model_without_a_template_cannot_chat(shards: Path, tmp_path: Path) -> None:
    from recipes.talking.generate import chat_ids

    loaded = load_model(write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer"))
    loaded.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        chat_ids(loaded, [{"role": "user", "content": "?"}])
    with pytest.raises(ValueError, match="the model reads 32: shorten it"):
        complete(loaded, list(range(2, 40)), Sampling())


@pytest.mark.parametrize("stop", ["", "<|end|>"])
def test_text_is_written_as_it_comes_and_never_the_stop(stop: str) -> None:
    class Letters:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    text = "a < b <|e <|end|> c"
    pieces: list[str] = []
    streamer = Streamer(Letters(), pieces.append, stop)
    streamer.put(torch.tensor([[0]]))  # the prompt
    for letter in text:
        streamer.put(torch.tensor([ord(letter)]))
    streamer.end()
    assert "".join(pieces) == (until(text, stop) if stop else text)
    assert pieces[:2] == ["a", " "]
    assert until(text, stop) == ("a < b <|e " if stop else text)
    assert len(pieces) > 5


def test_old_questions_make_room() -> None:
    from recipes.talking.chat import fitting

    class Words:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return "".join(m["content"] for m in messages)

        def __call__(self, text: str, **_: Any) -> Any:
            return {"input_ids": list(text)}

    loaded = Loaded("x", None, Words(), 10)
    said = [{"role": role, "content": "abc"} for role in ("system", "user", "assistant", "user")]
    assert [m["role"] for m in fitting(loaded, said, 1, 2)] == ["system", "user"]
    short = [{**message, "content": "a"} for message in said]
    assert (
        fitting(loaded, short, 1, 100) == short
    )  # an answer as long as the context leaves half of it to what was said


# --- the data that ships with the repository -----------------------------------------------------------------------


def test_questions_are_made_from_the_addresses() -> None:
    from data_prep.sotu import questions

    rows = [json.loads(line) for line in questions.ADDRESSES.read_text(encoding="utf-8").splitlines()]
    made = [json.loads(line)["messages"] for line in questions.QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert [(q["content"], a["content"]) for q, a in made] == list(questions.conversations(rows))
    pairs = [json.loads(line) for line in questions.PREFERENCES.read_text(encoding="utf-8").splitlines()]
    assert pairs == list(questions.preferences(rows))
    assert len({q["content"] for q, _ in made}) == len(made)
    for prompt in questions.QUESTIONS.with_suffix(".txt").read_text().splitlines():
        assert prompt in {q["content"] for q, _ in made}


def test_the_quickstart_from_questions_to_answers(shards: Path, tmp_path: Path, run_command: Command) -> None:
    """The commands of `make finetune`, with a smaller model and three steps."""
    small = with_changes(MPT, max_seq_len=128)
    before = write_run(tmp_path / "before", small, build(small), shards / "tokenizer")
    chat, questions = tmp_path / "chat", ROOT / "data_prep" / "sotu" / "questions.jsonl"
    more = ["--tokenizer", chat / "tokenizer"]
    sizes = ["d_model=32", "n_heads=4", "n_layers=2", f"vocab_size={VOCAB}"]
    changes = [
        *(f"model.{size}" for size in sizes),
        *(f"{loader}.dataset.streams.questions.local={chat}" for loader in ("train_loader", "eval_loader")),
        f"tokenizer.name={chat / 'tokenizer'}",
        f"pretrained={before}",
        f"save_folder={tmp_path / 'after' / 'checkpoints'}",
        "max_duration=3ba",
        "scheduler.t_warmup=1ba",
        "eval_subset_num_batches=1",
        "progress_bar=false",
    ]
    cut = ["--seq-len", "128", "--holdout", "0.05"]
    asked = ["--prompts", questions.with_suffix(".txt"), "--out", tmp_path / "said.jsonl"]
    asked += ["--chat", "--max-new-tokens", "8"]
    commands = (
        ["python", "-m", "data_prep.chat_tokenizer", "--tokenizer", shards / "tokenizer", "--out", chat / "tokenizer"],
        ["python", "-m", "data_prep.finetune", questions, "--out", chat, *more, *cut],
        ["launch", "train.py", "yamls/finetune/mpt-quickstart-chat.yaml", *changes],
        ["python", "-m", "recipes", "generate", before, tmp_path / "after", *more, *asked],
    )
    for command in commands:
        done = run_command(*command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Who gave the State of the Union address in 1963?" in done.stdout
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [row["model"] for row in said] == ["before", "after"] * 3
    makefile = (ROOT / "Makefile").read_text()
    for words in ("data_prep.chat_tokenizer", "mpt-quickstart-chat.yaml", "recipes generate runs/mpt-quickstart"):
        assert words in makefile


# --- sharded over processes ----------------------------------------------------------------------------------------


def test_two_processes_start_from_a_folder_tune_with_lora_and_are_exported(
    shards: Path, tmp_path: Path, recipe_file: Any, run_command: Command
) -> None:
    """FSDP2, built on the meta device: each process fills its own rows, and learns what one alone does."""
    base = write_run(tmp_path / "base-run", GQA, build(GQA), shards / "tokenizer")
    export(base, tmp_path / "base", "fp32")
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["Wqkv", "out_proj", "gate_proj"]}
    curves = []
    for processes in (1, 2):
        text = recipe_text(
            shards,
            tmp_path / str(processes),
            model={"name": "mpt_causal_lm", "init_device": "meta", **GQA, "peft_config": lora},
            pretrained=str(tmp_path / "base"),
            device_train_microbatch_size=4,
            max_duration="4ba",
            save_interval="4ba",
            fsdp_config={"sharding_strategy": "FULL_SHARD", "state_dict_type": "sharded"},
        )
        path = recipe_file(text, f"recipe{processes}.yaml")
        done = run_command("launch", "-n", str(processes), "train.py", path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        records = list(read_metrics(tmp_path / str(processes) / "run" / "metrics.jsonl"))
        curves.append([r["loss/train/total"] for r in records if "loss/train/total" in r])
        assert len(curves[-1]) == 4
    assert curves[0] == pytest.approx(curves[1], rel=2e-5)
    run = tmp_path / "2" / "run"
    assert (run / "checkpoints" / "ep0-ba4" / ".metadata").is_file()
    export(run, tmp_path / "out", "fp32")
    ids = torch.arange(16)[None]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(before.model.norm.weight, after.model.norm.weight)
    assert torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert not torch.equal(
        before.model.layers[0].self_attn.q_proj.weight, after.model.layers[0].self_attn.q_proj.weight
    )
    with torch.no_grad():
        ours = load_model(run).model(input_ids=ids).logits
        assert (ours - after(input_ids=ids).logits).abs().max() < 1e-5
        assert (ours - before(input_ids=ids).logits).abs().max() > 1e-3
