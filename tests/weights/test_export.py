"""Export: what transformers alone opens computes what the model here computes, token by token; whole or not there."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.talking.loading import build_for_generation, load_model
from recipes.weights.atomic_folder import atomic_folder
from recipes.weights.checkpoint_tensors import checkpoint_file
from recipes.weights.export import export
from recipes.weights.hf_architecture import folder_config
from recipes.weights.hf_refusals import refusals
from recipes.weights.merged import scaling
from recipes.weights.number_types import SIZES, convert, torch_type
from recipes.weights.tensor_files import safetensors_folder
from recipes.weights.trained import find_trained

from ..conftest import ROOT, Command
from ..tiny import LLAMA, MPT, RWKV, VOCAB, build, with_changes, write_run

pytestmark = pytest.mark.filterwarnings("ignore")

MODELS: dict[str, dict[str, Any]] = {
    "mpt": MPT,
    "mpt-untied": with_changes(MPT, tie_word_embeddings=False),
    "mpt-12-heads": with_changes(MPT, d_model=48, n_heads=12),
    "mpt-clipped": with_changes(MPT, attn_config__clip_qkv=0.5, attn_config__softmax_scale=0.2, norm_eps=1e-3),
    "mpt-split-qkv": with_changes(MPT, attn_config__fused_qkv=False),
    "llama": LLAMA,
    "llama-gqa": with_changes(LLAMA, attn_config__attn_type="grouped_query_attention", attn_config__kv_n_heads=2),
    "llama-mqa": with_changes(LLAMA, attn_config__attn_type="multiquery_attention", attn_config__rope_theta=500000),
    "llama-biases": with_changes(LLAMA, no_bias=False),
    "llama-tied": with_changes(LLAMA, tie_word_embeddings=True, attn_config__rope_impl="dail"),
    "llama-linear-rope": with_changes(LLAMA, attn_config__rope_hf_config={"type": "linear", "factor": 2.0}),
    "llama-linear-rope-1": with_changes(LLAMA, attn_config__rope_hf_config={"type": "linear"}),
    "rwkv": RWKV,
    "rwkv-wide": {**RWKV, "expansion_ratio": 3, "norm_eps": 1e-3},
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_alone_computes_the_same(name: str, shards: Path, tmp_path: Path) -> None:
    model = MODELS[name]
    module = build(model)
    run = write_run(tmp_path / "run", model, module, shards / "tokenizer")
    said = export(run, tmp_path / "out", "fp32")
    count = sum(p.numel() for p in module.parameters())
    assert f"{count:,} parameters in fp32" in said
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__module__.startswith("transformers.models.")
    ids = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, exported = module(input_ids=ids).logits, theirs(input_ids=ids).logits
    assert ours.std() > 0.1
    assert (ours - exported).abs().max() < 1e-5
    more = {
        "max_new_tokens": 8,
        "do_sample": False,
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
        "pad_token_id": 1,
    }
    prompt = ids[:1, :6]
    assert module.generate(prompt, **more).tolist() == theirs.generate(prompt, **more).tolist()
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert set(words("the Congress")) == {"input_ids", "attention_mask"}  # what generate() takes
    assert (
        words("the Congress")["input_ids"]
        == AutoTokenizer.from_pretrained(shards / "tokenizer")("the Congress")["input_ids"]
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attn_config__attn_type": "grouped_query_attention", "attn_config__kv_n_heads": 2}, "attn_config.kv_n_heads"),
        ({"attn_config__attn_type": "multiquery_attention"}, "attn_config.attn_type"),
        ({"attn_config": {"rope": True}}, "norm_type"),
        ({"attn_config": {}}, "attn_config.alibi"),
        ({"no_bias": False}, "no_bias"),
        ({"attn_config__alibi_bias_max": 16}, "attn_config.alibi_bias_max"),
        ({"expansion_ratio": 3}, "expansion_ratio"),
        ({"attn_config__qk_ln": True}, "attn_config.qk_ln"),
        ({"attn_config__sliding_window_size": 8}, "attn_config.sliding_window_size"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"ffn_config": {"ffn_act_fn": {"name": "relu"}}}, "ffn_config.ffn_act_fn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_said_is_refused_naming_the_key(changes: dict[str, Any], key: str) -> None:
    assert f"model.{key}" in [name for name, _ in refusals(with_changes(MPT, **changes))]


def test_numbers_of_the_config_are_of_the_types_that_transformers_5_takes() -> None:
    changes = {"attn_config__clip_qkv": 6, "attn_config__softmax_scale": 1, "attn_config__attn_pdrop": 0.1}
    attention = folder_config(with_changes(MPT, **changes))["attn_config"]
    assert {key: type(attention[key]) for key in ("attn_pdrop", "clip_qkv", "softmax_scale")} == {
        "attn_pdrop": int,
        "clip_qkv": float,
        "softmax_scale": float,
    }


def test_llama_with_what_it_lacks_is_refused() -> None:
    assert not refusals(LLAMA)
    own = refusals(with_changes(LLAMA, norm_type="my_rms"))  # that code_paths registers
    assert [key for key, _ in own] == ["model.norm_type"]
    keys = [k for k, _ in refusals(with_changes(LLAMA, attention_bias=True, attn_config__clip_qkv=6))]
    assert keys == ["model.attention_bias", "model.attn_config.clip_qkv"]


def test_shards_dtype_card_and_command(shards: Path, tmp_path: Path, run_command: Command) -> None:
    module = build(LLAMA)
    run = write_run(tmp_path / "run", LLAMA, module, shards / "tokenizer", pretrained="exports/base")
    out = tmp_path / "deep" / "model"
    made = run_command("python", "-m", "recipes", "export", run, out, "--dtype", "bf16", "--shard-gb", "0.00005")
    assert made.returncode == 0, made.stderr
    assert "LlamaForCausalLM" in made.stdout
    files = sorted(p.name for p in out.iterdir())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len([f for f in files if f.endswith(".safetensors")]) == len(set(index["weight_map"].values())) > 2
    for file in ("config.json", "generation_config.json", "tokenizer.json", "README.md"):
        assert file in files
    card = (out / "README.md").read_text()
    assert "started from the weights in `exports/base`" in card
    assert f'AutoModelForCausalLM.from_pretrained("{out.name}")' in card  # which is for those who get the folder
    assert str(tmp_path) not in card
    assert str(shards) not in card
    assert "This model was not evaluated." in card
    assert "max_duration: 1ba" in card
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert theirs.dtype == torch.bfloat16
    assert torch.equal(theirs.lm_head.weight, module.lm_head.weight.to(torch.bfloat16))
    again = run_command("python", "-m", "recipes", "export", run, out)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    with pytest.raises(ValueError, match="--overwrite would delete what is in it"):
        export(run, run, overwrite=True)
    (out / "src").mkdir()
    (out / "src" / "thesis.txt").write_text("years of work")
    (out / "notes.txt").touch()
    refused = run_command("python", "-m", "recipes", "export", run, out, "--overwrite")
    assert refused.returncode == 1
    assert "holds notes.txt, src, which no export writes: --overwrite would delete it" in refused.stderr
    assert (out / "src" / "thesis.txt").is_file()
    shutil.rmtree(out / "src")
    (out / "notes.txt").unlink()
    (out.parent / ".model.partial" / "left").mkdir(parents=True)  # by one that was killed
    assert "LlamaForCausalLM" in export(run, out, overwrite=True)
    assert sorted(p.name for p in out.iterdir() if "safetensors" in p.name) == ["model.safetensors"]
    gone = [p for p in out.parent.iterdir() if p != out]
    assert gone == []


def test_bad_input_is_said_in_words_and_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer")
    checkpoint = run / "checkpoints" / "ep0-ba1-rank0.pt"
    whole = checkpoint.read_bytes()
    out = tmp_path / "out"
    checkpoint.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        export(checkpoint, out)
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        export(run, out)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        export(checkpoint, out)
    checkpoint.write_bytes(whole)
    with checkpoint_file(checkpoint) as files:
        entry = files.entries["transformer.norm_f.weight"]
    flipped = bytearray(whole)
    flipped[entry.offset] ^= 1
    checkpoint.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"is damaged: the bytes of transformer\.norm_f\.weight"):
        export(run, out)
    checkpoint.write_bytes(whole)
    other = write_run(tmp_path / "other", with_changes(MPT, n_layers=3), build(MPT), shards / "tokenizer")
    with pytest.raises(ValueError, match=r"is not a checkpoint of .*blocks\.2.*got nothing"):
        export(other, out)
    small = with_changes(MPT, vocab_size=256)
    with pytest.raises(ValueError, match="has 512 tokens, the model 256 embeddings"):
        export(write_run(tmp_path / "small", small, build(small), shards / "tokenizer"), out)
    lost = build(MPT)
    torch.nn.init.constant_(lost.transformer.norm_f.weight, float("nan"))
    with pytest.raises(ValueError, match="is not finite: the run has diverged"):
        export(write_run(tmp_path / "lost", MPT, lost, shards / "tokenizer"), out)
    with pytest.raises(ValueError, match="--tokenizer FOLDER"):
        export(write_run(tmp_path / "mute", MPT, build(MPT), tmp_path / "nowhere"), out)
    with pytest.raises(ValueError, match="does not exist"):
        export(tmp_path / "nothing", out)
    huge = build(MPT)
    huge.transformer.wte.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"wte\.weight: a number is beyond the largest of fp16"):
        export(write_run(tmp_path / "huge", MPT, huge, shards / "tokenizer"), out, "fp16")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a disk that is full in the middle
    try:
        with pytest.raises(ValueError, match=r"out cannot be written: .*File too large"):
            export(run, out, "fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(ValueError, match="another export is writing"), atomic_folder(out):
        export(run, out)
    assert not out.exists()
    lonely = tmp_path / "lonely" / "somewhere" / "a.pt"
    lonely.parent.mkdir(parents=True)
    shutil.copy(checkpoint, lonely)
    with pytest.raises(ValueError, match="--recipe FILE"):
        export(lonely, out)
    assert "MptForCausalLM" in export(lonely, out, recipe=run / "recipe.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "huge",
        "lonely",
        "lost",
        "mute",
        "other",
        "out",
        "run",
        "small",
    ]


def test_what_a_kill_between_the_renames_hid_is_put_back(tmp_path: Path) -> None:
    hidden = tmp_path / ".out.old"
    hidden.mkdir()
    (hidden / "config.json").touch()
    with pytest.raises(ValueError, match="nothing came of it"), atomic_folder(tmp_path / "out"):
        raise ValueError("nothing came of it")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").exists()


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there")
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / name).touch()
        assert (tmp_path / "out").is_symlink()
        assert [p.name for p in (tmp_path / "there").iterdir()] == [name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "there"]


def test_an_export_is_not_lost_for_a_damaged_file_beside_it(shards: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer")
    (run / "results.json").write_text(json.dumps({"models": [{"checkpoint": "ep0-ba1-rank0.pt", "tasks": [3]}]}))
    (run / "summary.json").write_text('{"tokens": "many", "steps": 1}')
    export(run, tmp_path / "out", "fp32")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Not known: summary.json of the run cannot be read." in card


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "is a Hugging Face folder already"),
        ("adapter_config.json", "holds an adapter alone: give the run"),
        ("", "holds nothing of a run: no recipe.yaml, no checkpoint"),
    ],
)
def test_a_folder_that_is_no_run_is_said_to_be_what_it_is(file: str, words: str, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=words):
        find_trained(tmp_path)


@pytest.mark.parametrize("other", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_numbers_of_one_type_become_those_of_another_as_in_torch(dtype: str, other: str) -> None:
    """Every bit pattern of 16 bits, as itself or as the upper half of 32 with ties and their neighbours below."""
    halves = torch.arange(-(2**15), 2**15).to(torch.int16)
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000 - 2**16, 0x8001 - 2**16, -1]).to(torch.int16)
    numbers = torch.stack([lower.repeat(2**16), halves.repeat_interleave(6)], 1).view(torch.float32).flatten()
    numbers = halves.view(torch_type(dtype)) if SIZES[dtype] == 2 else numbers.to(torch_type(dtype))
    expected = numbers.to(torch_type(other))
    if other == "F16":
        numbers, expected = (tensor[expected.isinf() == numbers.isinf()] for tensor in (numbers, expected))
    made = torch.empty_like(expected)
    convert(numbers.view(torch.uint8).numpy(), dtype, other, made.view(torch.uint8).numpy())
    bits = {2: torch.int16, 4: torch.int32}[SIZES[other]]
    assert (expected.isnan() == made.isnan()).all()
    assert torch.equal(*(tensor[~expected.isnan()].view(bits) for tensor in (made, expected)))


def test_reading_a_checkpoint_runs_no_code_from_it(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    content = {"state": {"model": {"model.x": torch.arange(6.0).view(2, 3)}, "trap": Trap()}}
    torch.save(content, tmp_path / "c.pt")
    with checkpoint_file(tmp_path / "c.pt") as files:
        assert files.rows("x", 1, 1).tolist() == [[3.0, 4.0, 5.0]]
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_loads_for_generation_as_it_was(shards: Path, tmp_path: Path) -> None:
    module = build(LLAMA)
    run = write_run(tmp_path / "run", LLAMA, module, shards / "tokenizer")
    loaded = build_for_generation(find_trained(run)).eval()
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(input_ids=ids).logits, module(input_ids=ids).logits)
    assert load_model(run).max_seq_len == 32


def write_sharded(folder: Path, module: Any) -> None:
    import torch.distributed.checkpoint as dcp

    state = {f"model.{key}": tensor for key, tensor in module.state_dict().items()}
    dcp.save({"state": {"model": state}}, storage_writer=dcp.FileSystemWriter(str(folder)), no_dist=True)


@pytest.mark.parametrize("name", ["mpt", "llama-gqa"])
def test_sharded_checkpoints_are_the_same_model(name: str, shards: Path, tmp_path: Path) -> None:
    """A sharded checkpoint as FSDP2 leaves it, written by torch's own writer under Composer's names."""
    module = build(MODELS[name])
    run = write_run(tmp_path / "run", MODELS[name], module, shards / "tokenizer")
    (run / "checkpoints" / "ep0-ba1-rank0.pt").unlink()
    sharded = run / "checkpoints" / "ep0-ba1"
    write_sharded(sharded, module)
    export(run, tmp_path / "out", "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(20)[None]
    assert (theirs(input_ids=ids).logits - module(input_ids=ids).logits).abs().max() < 1e-5
    (sharded / ".metadata").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is no whole sharded checkpoint"):
        export(sharded, tmp_path / "other")


PEAK = """
import re, sys
from pathlib import Path
from recipes.weights.export import plan
from recipes.weights.shards import write_shards
from recipes.weights.trained import find_trained
def peak():  # MiB of this process alone: getrusage's begins with that of the process which started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
trained = find_trained(Path(sys.argv[1]))
out = Path(sys.argv[2])
(out / "warm").mkdir(parents=True)
with trained.tensors() as files:
    targets = plan(trained, files)
    write_shards(files, targets[:2], out / "warm", "BF16", 160 * 2**20)  # brings the libraries into memory
    before = peak()
    write_shards(files, targets, out, "BF16", 160 * 2**20)
print(peak() - before)
"""


def test_a_full_checkpoint_is_exported_without_torch(shards: Path, tmp_path: Path, run_command: Command) -> None:
    run = write_run(tmp_path / "run", MPT, build(MPT), shards / "tokenizer")
    done = run_command("python", "-X", "importtime", "-m", "recipes", "export", run, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-500:]
    assert " torch\n" not in done.stderr


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_memory_is_bounded_by_a_shard(kind: str, shards: Path, tmp_path: Path) -> None:
    """A checkpoint of 400 MB and its export in shards of 160 MB: how much the rest takes after the first tensors."""
    model = with_changes(MPT, d_model=1024, n_heads=8, n_layers=8, vocab_size=1024)
    torch.manual_seed(0)
    from recipes.models.mpt import MPTConfig, MPTForCausalLM

    config = MPTConfig(**with_changes(model), init_device="meta")
    module = MPTForCausalLM(config).to_empty(device="cpu")
    run = write_run(tmp_path / "run", model, module, shards / "tokenizer")
    checkpoint = run / "checkpoints" / "ep0-ba1-rank0.pt"
    assert checkpoint.stat().st_size > 380 * 2**20
    if kind == "sharded":
        checkpoint.unlink()
        write_sharded(run / "checkpoints" / "ep0-ba1", module)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(run), str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200  # MiB: about a shard, half of this model
    with safetensors_folder(tmp_path / "out") as files:
        assert sum(entry.bytes for entry in files.entries.values()) == 2 * sum(p.numel() for p in module.parameters())


def test_a_part_of_a_storage_is_read_where_it_lies_and_a_transposed_one_refused(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"state": {"model": {"model.part": whole[1:]}}}, tmp_path / "part.pt")
    assert torch.equal(checkpoint_file(tmp_path / "part.pt").rows("part"), whole[1:])
    torch.save({"state": {"model": {"model.turned": whole.t()}}}, tmp_path / "turned.pt")
    with pytest.raises(ValueError, match="turned is not stored row by row"):
        checkpoint_file(tmp_path / "turned.pt")


def test_adapters_count_as_peft_scales_them() -> None:
    assert scaling({"r": 16, "lora_alpha": 32}) == 2
    assert scaling({"r": 16, "lora_alpha": 32, "use_rslora": True}) == 8
    defaults = LoraConfig()
    assert scaling({}) == defaults.lora_alpha / defaults.r


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, flushed = tmp_path / "out", []
    monkeypatch.setattr(
        "recipes.weights.atomic_folder.flush", lambda path: flushed.append((Path(path).name, out.exists()))
    )
    with atomic_folder(out) as folder:
        (folder / "a").touch()
    assert flushed == [("a", False), (".out.partial", False), (tmp_path.name, True)]
