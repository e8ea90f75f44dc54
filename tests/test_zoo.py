"""Every YAML file in the tree: sound, counted to the last parameter, and a shrunken copy of each recipe trains."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from llmfoundry.models.mpt import MPTConfig, MPTForCausalLM

from recipes.build import build
from recipes.config.check import check
from recipes.config.load import Recipe, load
from recipes.config.model_rules import target_problems
from recipes.cost.architecture import RWKV
from recipes.cost.parameters import count_parameters
from recipes.models.rwkv import RwkvConfig, RwkvForCausalLM
from recipes.planning import listing
from recipes.reports.runs import read_metrics
from recipes.weights.hf_refusals import refusals

from .conftest import ROOT, Command, write_jsonl
from .tiny import VOCAB, write_run
from .tiny import build as build_tiny

pytestmark = pytest.mark.filterwarnings("ignore")

YAMLS = ROOT / "yamls"
RECIPES = sorted(p for kind in listing.KINDS for p in (YAMLS / kind).glob("*.yaml"))
IDS = [f"{p.parent.name}/{p.stem}" for p in RECIPES]

# Sources: LLM Foundry, scripts/train/benchmarking/README.md (its own sizes); the papers' released weights (LLaMA: the
# totals of their safetensors indexes on the Hugging Face hub); MPT-30B's card says 29.95B, MPT-7B's 6.7B.
PUBLISHED = {
    "mpt-125m": 125_311_488,
    "mpt-350m": 355_985_408,
    "mpt-760m": 760_470_528,
    "mpt-1b": 1_315_950_592,
    "mpt-3b": 2_651_837_440,
    "mpt-7b": 6_649_286_656,
    "mpt-7b-1t": 6_649_286_656,
    "mpt-7b-8k": 6_649_286_656,
    "mpt-7b-storywriter-65k": 6_649_286_656,
    "mpt-13b": 12_853_954_560,
    "mpt-30b": 29_957_200_896,
    "mpt-30b-8k": 29_957_200_896,
    "mpt-70b": 64_862_437_376,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "mpt-1b-gqa": 1_160_218_624,
    "mpt-1b-mqa": 1_122_469_888,
    # arXiv 2305.13048, table 1: 1.693e8, 4.304e8, 1.515e9, 2.985e9, 7.393e9 by its formula, with 27 words less
    "rwkv-169m": 169_342_464 + 2 * 27 * 768,
    "rwkv-430m": 430_397_440 + 2 * 27 * 1024,
    "rwkv-1b5": 1_515_106_304 + 2 * 27 * 2048,
    "rwkv-3b": 2_984_627_200 + 2 * 27 * 2560,
    "rwkv-7b": 7_392_649_216 + 2 * 27 * 4096,
    "rwkv-7b-8k": 7_392_649_216 + 2 * 27 * 4096,
}


def test_every_file_is_reached() -> None:
    """A fragment that no recipe includes would be checked by nothing."""
    included = {
        (path.parent / name).resolve()
        for path in RECIPES
        for name in (yaml.safe_load(path.read_text()) or {}).get("include", [])
    }
    fragments = {p.resolve() for kind in ("base", "models", "data") for p in (YAMLS / kind).glob("*.yaml")}
    assert fragments - included == set()
    assert {p.stem for p in RECIPES} >= set(PUBLISHED)


@pytest.mark.parametrize("path", sorted((YAMLS / "eval").glob("*.yaml")), ids=lambda p: p.stem)
def test_evaluations_are_read(path: Path) -> None:
    assert load(path).get("models") or load(path).get("icl_tasks") or load(path).get("eval_loader")


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_recipes_are_sound_and_fit_a_screen(path: Path) -> None:
    recipe = load(path)
    assert check(recipe) == []
    text = path.read_text()
    assert len(text.splitlines()) <= 66
    assert f"train.py yamls/{path.parent.name}/{path.name}" in text.splitlines()[0] + text.splitlines()[1]
    said = re.search(r"max_duration: (\d+)ba # ([\d.]+) (M|B|T) tokens", text)
    if said:
        tokens = int(said[1]) * recipe["global_train_batch_size"] * recipe["max_seq_len"]
        assert tokens == pytest.approx(float(said[2]) * {"M": 1e6, "B": 1e9, "T": 1e12}[said[3]], rel=0.01)
    step = re.search(r"× [\d,]+ = ([\d,]+) tokens a step", text)
    if step:
        assert int(step[1].replace(",", "")) == recipe["global_train_batch_size"] * recipe["max_seq_len"]


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_a_dry_run_passes(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import train

    monkeypatch.chdir(ROOT)
    assert train.main([str(path.relative_to(ROOT)), "dry_run=true"]) == 0
    assert "The recipe is sound" in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_parameters_are_the_published_ones_to_the_last(path: Path) -> None:
    recipe = load(path)
    model = json.loads(json.dumps({k: v for k, v in recipe["model"].items() if k not in ("name", "peft_config")}))
    if recipe["model"]["name"] == RWKV:
        module: Any = RwkvForCausalLM(RwkvConfig(**{**model, "init_device": "meta"}))
    else:
        model["attn_config"]["attn_impl"] = "torch"
        module = MPTForCausalLM(MPTConfig(**{**model, "init_device": "meta"}))
    count = sum(p.numel() for p in module.parameters())
    assert count == count_parameters(recipe["model"]).total
    if path.stem in PUBLISHED:
        assert count == PUBLISHED[path.stem]
    fragments = "".join((path.parent / name).read_text() for name in yaml.safe_load(path.read_text())["include"])
    assert f"{count:,} parameters" in fragments.replace("\n# ", " ")


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_recipes_of_other_families_have_a_way_out(path: Path) -> None:
    found = refusals(load(path)["model"])
    if path.stem.startswith(("llama", "rwkv")) or path.stem in ("mpt-7b", "mpt-7b-8k", "mpt-30b", "mpt-30b-8k"):
        assert found == []


# --- shrunken copies ----------------------------------------------------------------------------------------------


def shrunken(recipe: Recipe, shards: Path, chats: Path, folder: Path) -> dict[str, Any]:
    """The same keys with sizes of a second: the model, the batch, the length, and data that is here."""
    values = json.loads(json.dumps(dict(recipe.values)))
    model = values["model"]
    model.update(d_model=32, n_layers=2, vocab_size=VOCAB, max_seq_len=32)
    if "n_heads" in model:
        model["n_heads"] = 4
    if "kv_n_heads" in model.get("attn_config", {}):
        model["attn_config"]["kv_n_heads"] = 2
    if "ffn_hidden_size" in model.get("ffn_config", {}):
        model["ffn_config"]["ffn_hidden_size"] = 64
    values.update(
        max_seq_len=32,
        global_train_batch_size=4,
        device_train_microbatch_size=2,
        device_eval_batch_size=2,
        max_duration="3ba",
        eval_interval="3ba",
        save_interval="3ba",
        eval_first=False,
        eval_subset_num_batches=1,
        precision="fp32",
        progress_bar=False,
        run_name=recipe.path.stem,
        save_folder=str(folder / "run" / "checkpoints"),
    )
    values["scheduler"]["t_warmup"] = "0ba"  # so that three steps are three changes
    values["optimizer"]["lr"] = 1e-2  # three steps of a tuning's rate move no digit
    values["tokenizer"] = {"name": str(shards / "tokenizer"), "kwargs": {"model_max_length": 32}}
    for key in ("train_loader", "eval_loader"):
        loader = values.get(key)
        if loader is None:
            continue
        loader["num_workers"] = 0
        dataset = loader["dataset"]
        dataset["max_seq_len"] = 32
        if loader["name"] == "preferences":
            dataset["path"] = str(chats / "pairs.jsonl")
        source = chats / "shards" if loader["name"] == "finetuning" else shards
        for name, stream in (dataset.get("streams") or {"": dataset}).items():
            if "local" in stream:
                stream["local"] = str(source)
                stream["split"] = "train"
            if len(dataset.get("streams") or ()) > 1:  # streaming refuses a folder that two streams have in common
                stream["local"] = str(folder / "streams" / name)
                shutil.copytree(source / "train", folder / "streams" / name / "train", dirs_exist_ok=True)
        if dataset.get("packing_ratio"):
            dataset["packing_ratio"] = 1.5
        if "epoch_size" in dataset:
            dataset["epoch_size"] = 12
    if values.get("pretrained"):
        base = {
            k: v
            for k, v in json.loads(json.dumps(model)).items()
            if k not in ("name", "peft_config", "use_train_metrics", "init_device")
        }
        base["attn_config"].pop("attn_uses_sequence_id", None)
        started = write_run(folder / "base", base, build_tiny(base), shards / "tokenizer")
        values["pretrained"] = str(started)
    return values


@pytest.fixture(scope="module")
def chats(shards: Path, tmp_path_factory: pytest.TempPathFactory, run_command: Command) -> Path:
    """Instruction shards and preference pairs of a few tokens."""
    folder = tmp_path_factory.mktemp("chats")
    rows = [{"prompt": f"year {i}?", "response": f"it is {i}"} for i in range(1913, 1945)]
    write_jsonl(folder / "rows.jsonl", rows)
    options = ["--out", folder / "shards", "--tokenizer", shards / "tokenizer", "--seq-len", "32"]
    made = run_command("python", "-m", "data_prep.finetune", folder / "rows.jsonl", *options)
    assert made.returncode == 0, made.stderr
    template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    config = shards / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(12)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=IDS)
def test_a_shrunken_copy_trains(
    path: Path, shards: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / f"{path.stem}.yaml"
    copy.write_text(yaml.safe_dump(shrunken(load(path), shards, chats, tmp_path)))
    recipe = load(copy)
    assert check(recipe) == []
    run = build(recipe)
    if recipe.get("model.peft_config"):
        names = {n for n, p in run.trainer.state.model.named_parameters() if p.requires_grad}
        assert names
        assert all("lora_" in name for name in names)
        assert target_problems(recipe["model"]) == []
    run.train(eval_first=False)
    run.trainer.close()
    losses = [
        r["loss/train/total"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss/train/total" in r
    ]
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)
    assert len(set(losses)) == 3


# --- the tables ---------------------------------------------------------------------------------------------------


def test_the_table_is_the_one_the_recipes_make() -> None:
    assert listing.TABLE.read_text(encoding="utf-8") == listing.table_text()


def test_recipes_are_listed_and_filtered(run_command: Command) -> None:
    everything = run_command("python", "-m", "recipes", "list")
    assert everything.returncode == 0
    assert all(f"{name}" in everything.stdout for name in IDS)
    assert "30 recipes" in everything.stdout or f"{len(RECIPES)} recipes" in everything.stdout
    some = run_command("python", "-m", "recipes", "list", "gqa", "rope", "--json")
    assert [row["recipe"].split("/")[-1] for row in json.loads(some.stdout)] == [
        "llama-3-8b.yaml",
        "llama-2-70b.yaml",
        "llama-3-8b-chat-lora.yaml",
    ]
    nothing = run_command("python", "-m", "recipes", "list", "gqaa")
    assert nothing.returncode == 1
    assert "no recipe has gqaa" in nothing.stderr


def test_the_mixture_is_whole() -> None:
    dataset = load(YAMLS / "pretrain" / "mpt-7b-1t.yaml")["train_loader"]["dataset"]
    assert sum(stream["proportion"] for stream in dataset["streams"].values()) == pytest.approx(1)
    assert len(dataset["streams"]) == 10
