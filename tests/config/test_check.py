"""Every mistake in a recipe is found, at every depth, at once, quickly, and in words."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.models import spell_out_models
from recipes.config.check import check, load_checked
from recipes.config.contradictions import contradictions
from recipes.config.evaluation_rules import evaluation_notes
from recipes.config.keys import RecipeError, dotted
from recipes.config.load import load
from recipes.preflight.training import preflight
from recipes.screen import print_plan
from recipes.training.batches import plan_batches

from ..conftest import ROOT, Command

RECIPES = sorted((ROOT / "yamls" / "pretrain").glob("*.yaml"))
QUICKSTART = ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml"
Write = Callable[..., Path]


def found(*overrides: str, recipe: Path = QUICKSTART) -> dict[str, str]:
    """Problems by dotted key."""
    return {".".join(map(str, p.key)): p.text for p in check(load(recipe, overrides))}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_sound(path: Path) -> None:
    assert check(load(path)) == []


def test_the_evaluation_recipe_is_sound_once_its_run_is_there(recipe_file: Write, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe_file(load(QUICKSTART, [f"save_folder={run}/checkpoints"]).to_yaml(), "run/recipe.yaml")
    recipe = load(ROOT / "yamls" / "eval" / "quickstart.yaml", [f"models=[{{run: {run}}}]"])
    with pytest.raises(RecipeError, match="has no whole checkpoint yet"):
        spell_out_models(recipe)
    (run / "checkpoints").mkdir()
    with zipfile.ZipFile(run / "checkpoints" / "ep0-ba5-rank0.pt", "w") as archive:
        archive.writestr("ep0-ba5-rank0/data.pkl", "")
    spelled = spell_out_models(recipe)
    assert check(spelled, "eval") == []
    assert spelled["models"][0]["load_path"] == str(run / "checkpoints" / "ep0-ba5-rank0.pt")
    assert spelled["models"][0]["model"]["d_model"] == 192


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("max_sq_len=8", "max_sq_len", "unknown key; did you mean max_seq_len?"),
        ("inclde=base/pretrain.yaml", "inclde", "unknown key; did you mean include?"),
        ("include=base/pretrain.yaml", "include", "stands at the top of a recipe only"),
        ("model.d_modell=8", "model.d_modell", "did you mean d_model?"),
        ("model.attn_config.alibii=true", "model.attn_config.alibii", "did you mean alibi?"),
        ("model.attn_config.rope_hf_config.kind=x", "model.attn_config.rope_hf_config.kind", "Allowed: factor"),
        ("optimizer.lrr=1", "optimizer.lrr", "did you mean lr?"),
        ("callbacks.speed_monitor.window=1", "callbacks.speed_monitor.window", "did you mean window_size?"),
        ("callbacks.speedmonitor={}", "callbacks.speedmonitor", "did you mean speed_monitor?"),
        ("callbacks.cost_monitor.gpuu=1", "callbacks.cost_monitor.gpuu", "did you mean gpu?"),
        (
            "algorithms.gradient_clipping.clipping_type=norn",
            "algorithms.gradient_clipping.clipping_type",
            "did you mean norm?",
        ),
        ("train_loader.dataset.spilt=x", "train_loader.dataset.spilt", "did you mean split?"),
        ("fsdp_config.device_mesh=[1,2]", "fsdp_config.device_mesh", "data_parallel_shard_degree"),
        ("loggers.wandb.projct=x", "loggers.wandb.projct", "did you mean project?"),
        ("cost.usd_per_device_hour=-1", "cost.usd_per_device_hour", "at least 0"),
        ("optimizer.lr=fast", "optimizer.lr", "expected a number"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay", "expected at least 0"),
        ("seed=99999999999", "seed", "expected at most 4294967295"),
        ("device_train_microbatch_size=0.5", "device_train_microbatch_size", "expected whole sequences"),
        (
            "model.attn_config.seq_parallel_world_size=2",
            "model.attn_config.seq_parallel_world_size",
            "cannot share a sequence among devices",
        ),
        ("dist_timeout=0", "dist_timeout", "expected more than 0"),
        ("eval_subset_num_batches=0", "eval_subset_num_batches", "expected -1 (all) or at least 1"),
        ("save_num_checkpoints_to_keep=-2", "save_num_checkpoints_to_keep", "expected at least -1"),
        ("console_log_interval=0ba", "console_log_interval", "in steps or epochs"),
        ("console_log_interval=10tok", "console_log_interval", "in steps or epochs"),
        ("scheduler={name: cosine_with_warmup, t_warmup: 5ba, t_max: 0ba}", "scheduler.t_max", "more than nothing"),
        ("train_loader.num_workers=-1", "train_loader.num_workers", "expected at least 0"),
        ("train_loader.prefetch_factor=0", "train_loader.prefetch_factor", "expected at least 1"),
        ("train_loader.dataset.cache_limit=1xb", "train_loader.dataset.cache_limit", "such as 500mb"),
        ("train_loader.dataset.epoch_size=many", "train_loader.dataset.epoch_size", "such as 5000"),
        ("compile_config={mode: fast}", "compile_config.mode", "expected one of null, default"),
        ("model.fc_type=linear", "model.fc_type", "expected one of te, torch"),
        ("model.logit_scale=half", "model.logit_scale", "inv_sqrt_d_model"),
        ("model.attn_config.softmax_scale=0", "model.attn_config.softmax_scale", "more than 0"),
        ("save_folder=~/runs", "save_folder", "write the whole path"),
        ("save_folder=ftp://host/runs", "save_folder", "or one of s3://"),
        ("load_path=s3:/bucket/x.pt", "load_path", "or one of s3://"),
        (f"run_name={'x' * 300}", "run_name", "255 are possible"),
        (f"train_loader.dataset.local=/{'x/' * 3000}", "train_loader.dataset.local", "in a path of 6,001"),
        (f"tokenizer.name=./{'é' * 130}", "tokenizer.name", "260 bytes"),
        ("run_name=../other", "run_name", "leave the folder of the runs"),
        ("optimizer.name=adam", "optimizer.name", "expected one of adalr_lion"),
        ("scheduler.t_warmup=null", "scheduler.t_warmup", "missing"),
        ("max_duration=500 batches", "max_duration", "such as 100ba"),
        ("max_duration=1.5ba", "max_duration", "such as 100ba"),
        ("precision=bf16", "precision", "did you mean amp_bf16?"),
        ("model.attn_config.attn_impl=triton", "model.attn_config.attn_impl", "the Triton kernel was removed"),
        ("model.name=mpt", "model.name", "did you mean mpt_causal_lm?"),
        ("model.no_bias=maybe", "model.no_bias", "expected true or false"),
        ("tokenizer=3", "tokenizer", "expected a section of keys"),
        ("device_train_microbatch_size=nope", "device_train_microbatch_size", "expected auto or a number"),
        ("global_train_batch_size=0", "global_train_batch_size", "at least 1"),
        ("icl_tasks=[{label: a}]", "icl_tasks.0.icl_task_type", "missing"),
        # contradictions
        ("model.n_heads=5", "model.n_heads", "d_model 192 must be a multiple of n_heads"),
        ("model.attn_config.rope=true", "model.attn_config.rope", "alibi and rope are both on"),
        ("model.attn_config.kv_dim=192", "model.attn_config.kv_dim", "fused_qkv: false"),
        ("model.embedding_fraction=2", "model.embedding_fraction", "at most 1"),
        ("model.attn_config.kv_n_heads=2", "model.attn_config.kv_n_heads", "set attn_type: grouped_query_attention"),
        ("model.attn_config.attn_type=grouped_query_attention", "model.attn_config.kv_n_heads", "missing"),
        (
            "model.attn_config={rope: true, rope_impl: hf, rope_hf_config: {type: llama3, factor: 8}}",
            "model.attn_config.rope_hf_config",
            "llama3 needs low_freq_factor, high_freq_factor, original_max_position_embeddings too",
        ),
        ("model.max_seq_len=64", "model.max_seq_len", "reads 64 tokens at most"),
        ("train_loader.dataset.max_seq_len=512", "train_loader.dataset.max_seq_len", "do not fit"),
        ("scheduler.t_warmup=2000tok", "scheduler.t_warmup", "expected it in ba, in which the run of"),
        ("max_duration=2e6tok", "scheduler.t_warmup", "expected it in tok, in which the run of 2e6tok"),
        ("scheduler.t_max=1000sp", "scheduler.t_warmup", "expected it in sp, in which the t_max of 1000sp"),
        ("model.n_layers=.inf", "model.n_layers", "a finite number"),
        ("model.vocab_size=1" + "0" * 300, "model.vocab_size", "expected one that has room in 64"),
        ("optimizer.lr=0", "optimizer.lr", "more than 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas", "two numbers"),
        ("model.attn_config.attn_uses_sequence_id=true", "train_loader.dataset.eos_token_id", "missing"),
        ("train_loader.dataset.local=null", "train_loader.dataset.local", "where the shards are"),
        ("max_duration=60sec", "max_duration", "such as 100ba"),
        ("model.head_dim=32", "model.head_dim", "fused_qkv: false"),
        ("model.emb_pdrop=1.5", "model.emb_pdrop", "between 0 and 1"),
        ("model.init_device=mixed", "model.init_device", ""),
        ("eval_gauntlet=x.yaml", "eval_gauntlet", "icl_tasks"),
        ("save_num_checkpoints_to_keep=0", "save_num_checkpoints_to_keep", "at least 1"),
        ("precision=amp_fp8", "precision", "Transformer Engine"),
        ("task_interval=5ba", "task_interval", "no icl_tasks and no harness_tasks"),
        (
            "callbacks.mono_checkpoint_saver={save_folder: x, batch_interval: 1}",
            "callbacks.mono_checkpoint_saver",
            "of FSDP1",
        ),
        ("algorithms={alibi: {max_sequence_length: 8}}", "algorithms.alibi", "model.attn_config.alibi: true"),
        (
            "callbacks={early_stopper: {monitor: LanguageCrossEntropy, dataloader_label: mc/0-shot, patience: 1ep}}",
            "callbacks.early_stopper.dataloader_label",
            "got mc/0-shot, expected train or a validation loader: eval; scores of tasks, which are no loaders here,",
        ),
        ("eval_gauntlet={weighting: X}", "eval_gauntlet", "there are none"),
        ("max_duration=0", "max_duration", "at least 1"),
        ("max_duration=0e9tok", "max_duration", "such as 100ba"),
        ("max_duration=1.25e1ba", "max_duration", "a whole number of ba"),
        ("save_filename={batch:06d}.pt", "save_filename", "without a format"),
        ("save_filename={run_name}-{batch}.pt", "save_filename", "{run_name} is no placeholder"),
        ("save_folder=x/r{rank}/checkpoints", "save_folder", "{rank} is no placeholder; {run_name} is"),
        ("save_latest_filename=latest-{batch}.pt", "save_latest_filename", "{batch} is no placeholder"),
        ("eval_interval=0dur", "eval_interval", "a part of the run"),
        ("max_duration=0ba", "max_duration", "more than nothing"),
        ("max_duration=0.5dur", "max_duration", "such as 100ba, 1ep, 2000000tok or 2e9tok"),
        ("max_duration=_ba", "max_duration", "such as 100ba"),
        ("seed=-1", "seed", "at least 0"),
        ("seed=1e2", "seed", "a whole number"),
        ("optimizer.lr=.nan", "optimizer.lr", "a finite number"),
        ("model.n_layers=2000000000", "model.n_layers", "no machine holds"),
        ("model.expansion_ratio=2.6666666", "model", "cannot be built"),
        ("cost.gpu=foo", "cost.gpu", "foo"),
        ("save_filename={nope}.pt", "save_filename", "{nope} is no placeholder"),
        ("save_folder={batch/x", "save_folder", "got '{batch/x'"),
    ],
)
def test_one_mistake_is_found_and_explained(override: str, key: str, words: str) -> None:
    overrides = [override, "fsdp_config=null"] if "mixed" in override else [override]
    problems = found(*overrides)
    assert key in problems, problems
    assert words in problems[key]
    assert len(problems) <= 2, problems  # a mistake is not reported under many names


@pytest.mark.parametrize(
    ("streams", "key", "words"),
    [
        ("{a: {local: x, proportion: 0.5}, b: {local: y}}", "b.proportion", "missing; all streams have one or none"),
        ("{a: {local: x, proportion: 0.5}, b: {local: y, repeat: 2}}", "b.proportion", "and a has one"),
        ("{a: {local: x, proportion: 0.5, repeat: 2}}", "a.repeat", "proportion and repeat are both set"),
        ("{a: {local: x, repeat: 2, choose: 5}, b: {local: y}}", "a.choose", "repeat and choose are both set"),
        ("{a: {local: x, repeat: 2}, b: {local: y, choose: 5}, c: {local: z}}", "", ""),
    ],
)
def test_streams_say_how_much_of_each_in_one_way(streams: str, key: str, words: str) -> None:
    problems = found("train_loader.dataset.local=null", f"train_loader.dataset.streams={streams}")
    assert list(problems) == ([f"train_loader.dataset.streams.{key}"] if key else [])
    assert all(words in text for text in problems.values())


def test_all_mistakes_are_reported_at_once_with_file_and_line(recipe_file: Write) -> None:
    text = QUICKSTART.read_text().replace("../", f"{ROOT}/yamls/").replace("lr: 4.0e-3", "lr: fast\n  bettas: 1")
    path = recipe_file(text.replace("max_seq_len: 128", "max_seq_lenn: 128"))
    with pytest.raises(RecipeError) as error:
        load_checked(path, ["max_seq_len=128", "model.attn_config.x=1", "callbacks.speed_monitor.y=2"])
    lines = [str(p) for p in error.value.problems]
    assert len(lines) == 5
    line_of = {key: number for number, key in enumerate(path.read_text().splitlines(), 1)}
    assert any(line.startswith(f"{path}:{line_of['  lr: fast']}: optimizer.lr: got text 'fast'") for line in lines)
    assert any(line.startswith(f"{path}:{line_of['  bettas: 1']}: optimizer.bettas: unknown key") for line in lines)
    assert any(line.startswith("command line: model.attn_config.x: unknown key") for line in lines)


def test_missing_sections_are_all_named(recipe_file: Write) -> None:
    problems = {".".join(p.key): p.text for p in check(load(recipe_file("run_name: x\n")))}
    assert set(problems) == {
        "model",
        "tokenizer",
        "optimizer",
        "scheduler",
        "train_loader",
        "max_duration",
        "max_seq_len",
        "global_train_batch_size",
    }


def test_the_batch_must_be_shared_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "6 or 9 can" in found()["global_train_batch_size"]


@pytest.mark.parametrize("size", ["abc", "0", "1.5", "-1"])
def test_a_launcher_that_sets_nonsense_is_said_so(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(RecipeError, match="environment: WORLD_SIZE: got"):
        load_checked(QUICKSTART)


@pytest.mark.parametrize(
    "overrides",
    [
        ["python_log_level=INFO"],
        ["eval_interval=0ba", "save_interval=0ba"],  # never
        ["save_folder=dbfs:/Volumes/main/runs", "train_loader.dataset.cache_limit=2tb"],
        ["model.fc_type={name: torch}", "model.logit_scale=inv_sqrt_d_model", "compile_config={}"],
        ["train_loader.dataset.epoch_size=2.5m", "train_loader.prefetch_factor=null"],
        ["run_name=007"],
        ["fsdp_config.mixed_precision=pure"],
        ["tokenizer.kwargs=null"],
        ["model.ffn_config={ffn_type: torch_dmoe, moe_num_experts: 4}"],
        ["model.norm_type=mynorm", "code_paths=[mine.py]"],
        ["scheduler.t_warmup=2000ba"],  # longer than the run: said in the plan
        ["model.learned_pos_emb=true"],
        ["eval_interval=1e5tok", "save_interval=5.0ba", "max_duration=1EP"],
        ["model={name: contrastive_lm, d_model: 64, n_heads: 2, n_layers: 2, contrastive_config: {temperature: 1}}"],
        ["save_folder=dbfs:/x/{mlflow_experiment_id}/{mlflow_run_id}/checkpoints", "loggers.mlflow={}"],
        ["profiler={schedule: {wait: 1}}", "metadata={a: 1}"],
        ["callbacks.hf_checkpointer={save_folder: x, save_interval: 1ba}", "only_hf_checkpoint=true"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_llm_foundry_takes_is_taken(overrides: list[str]) -> None:
    assert found(*overrides) == {}


def test_a_number_for_automatic_packing_is_taken() -> None:
    tuning = ROOT / "yamls" / "finetune" / "mpt-quickstart-chat.yaml"
    said = check(load(tuning, ["train_loader.dataset.auto_packing_replication=1"]))
    assert not [problem for problem in said if "auto_packing_replication" in problem.key]


def test_a_recipe_of_the_other_kind_is_said_to_be_one() -> None:
    evaluation = ROOT / "yamls" / "eval" / "quickstart.yaml"
    with pytest.raises(
        RecipeError, match=r"quickstart\.yaml: this is an evaluation recipe, which eval/evaluate\.py takes"
    ):
        load_checked(evaluation)
    for recipe in (load(QUICKSTART), spell_out_models(load(QUICKSTART))):
        (problem,) = check(recipe, "eval")
        assert "this is a training recipe, which train.py takes" in str(problem)


@pytest.mark.parametrize("name", ["pretrain/mpt-7b", "mpt-7b.yaml", "mpt-7b"])
def test_a_name_that_the_list_prints_leads_to_its_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(RecipeError, match=r"no such recipe; did you mean yamls/.*pretrain/mpt-7b\.yaml"):
        load(name)


def test_a_run_folder_is_told_by_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RecipeError, match=r"it is a run folder; its recipe is .*/recipe\.yaml"):
        load(tmp_path)


def test_a_warm_up_longer_than_the_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    import train

    for warmup, said in (("2000ba", True), ("20ba", False)):
        train.main([str(QUICKSTART), f"scheduler.t_warmup={warmup}", "dry_run=true"])
        assert ("the learning rate stays below optimizer.lr" in capsys.readouterr().out) == said


def test_variables_at_the_top_are_kept_where_the_recipe_is_saved(recipe_file: Callable[[str], Path]) -> None:
    old = QUICKSTART.read_text().replace("../", f"{QUICKSTART.parent.parent}/")
    old += "\nglobal_seed: 17\nseed: ${global_seed}\n"
    recipe = load_checked(recipe_file(old))
    assert recipe["seed"] == recipe["variables"]["global_seed"] == 17
    again = load_checked(recipe_file(recipe.to_yaml()))
    assert again.values == recipe.values


def test_names_that_code_paths_may_register_are_let_through() -> None:
    assert "callbacks.mine" in found("callbacks.mine={}")
    assert found("callbacks.mine={}", "optimizer.name=mine", "code_paths=[mine.py]") == {}


# A fine-tuning file as LLM Foundry writes them: variables, an anchor that only holds keys, merge keys.
FOUNDRY = """
variables:
  global_seed: 17
  max_seq_len: 2048
max_seq_len: ${variables.max_seq_len}
run_name:
model:
  name: mpt_causal_lm
  init_device: meta
  d_model: 64
  n_heads: 2
  n_layers: 2
  max_seq_len: ${variables.max_seq_len}
  vocab_size: 50368
  attn_config:
    attn_impl: flash
    attn_uses_sequence_id: false
tokenizer:
  name: EleutherAI/gpt-neox-20b
  kwargs:
    model_max_length: ${variables.max_seq_len}
dataset: &shared
  hf_name: json
  hf_kwargs:
    data_dir: /no/such/folder
train_loader: &loader
  name: finetuning
  dataset:
    <<: *shared
    split: train
    max_seq_len: ${variables.max_seq_len}
    decoder_only_format: true
    shuffle: true
  drop_last: true
  num_workers: 8
eval_loader:
  <<: *loader
  dataset:
    <<: *shared
    split: validation
scheduler: {name: linear_decay_with_warmup, t_warmup: 0ba, alpha_f: 0}
optimizer: {name: decoupled_adamw, lr: 1.0e-5, betas: [0.9, 0.999], eps: 1.0e-8, weight_decay: 0}
algorithms:
  gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}
max_duration: 1ep
eval_interval: 50ba
global_train_batch_size: 128
seed: ${variables.global_seed}
device_eval_batch_size: 4
device_train_microbatch_size: 4
precision: amp_bf16
fsdp_config:
  sharding_strategy: FULL_SHARD
  mixed_precision: PURE
  activation_checkpointing: false
  activation_checkpointing_reentrant: false
  activation_cpu_offload: false
  limit_all_gathers: true
console_log_interval: 1ba
callbacks: {speed_monitor: {window_size: 10}, lr_monitor: {}, memory_monitor: {}, runtime_estimator: {}}
load_path: oci://bucket/folder/checkpoint.pt
load_weights_only: true
"""


def test_llm_foundry_format_is_sound_as_it_is(recipe_file: Write) -> None:
    recipe = load_checked(recipe_file(FOUNDRY))
    assert recipe.get("eval_loader.dataset.hf_name") == "json"
    assert recipe.get("eval_loader.dataset.split") == "validation"
    assert recipe.get("eval_loader.num_workers") == 8


def test_older_variables_at_the_top_are_let_through_only_where_they_are_used(recipe_file: Write) -> None:
    text = FOUNDRY.replace("variables:\n", "").replace("variables.", "").replace("  global_seed", "global_seed")
    text = text.replace("  max_seq_len: 2048\nmax_seq_len: ${max_seq_len}\n", "max_seq_len: 2048\n")
    assert load_checked(recipe_file(text))["seed"] == 17
    with pytest.raises(RecipeError, match=r"global_sed: unknown key"):
        load_checked(recipe_file(text + "global_sed: 3\n"))


def test_the_schema_is_what_the_installed_packages_say(run_command: Command) -> None:
    result = run_command("python", "-m", "recipes.config.schema", "--check")
    assert result.returncode == 0, result.stderr


def test_a_bad_recipe_is_refused_within_two_seconds_and_without_torch(run_command: Command) -> None:
    start = time.perf_counter()
    result = run_command("python", "-X", "importtime", "train.py", QUICKSTART, "max_sq_len=1", "model.nheads=4")
    seconds = time.perf_counter() - start
    assert result.returncode == 1
    assert "error: this recipe cannot be trained: 2 problems" in result.stderr
    assert "Traceback" not in result.stderr
    assert " torch\n" not in result.stderr
    assert seconds < 2


def test_a_dry_run_judges_the_recipe_and_lists_what_is_missing_here(run_command: Command, tmp_path: Path) -> None:
    recipe = ROOT / "yamls" / "pretrain" / "mpt-7b-8k.yaml"
    environment = {"HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    result = run_command("python", ROOT / "train.py", recipe, "dry_run=true", cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert "6,649,286,656 parameters" in result.stdout
    assert "238,419 steps = 500,000,882,688 tokens" in result.stdout
    assert "256 sequences = 1 device × 256 micro-batches × 1" in result.stdout
    assert "no data: my-copy-c4/train does not exist; make it with `python -m data_prep.pretrain" in result.stdout
    assert "tokenizer EleutherAI/gpt-neox-20b is not on this machine" in result.stdout
    assert "no GPU here, and 6,649,286,656 parameters need about 99 GiB" in result.stdout
    assert not (tmp_path / "runs").exists()
    # the resolved recipe stands above the plan
    resolved: dict[str, Any] = yaml.safe_load(result.stdout.partition("\n     run  ")[0])
    assert resolved["optimizer"] == {
        "name": "fused_adamw",
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "lr": 1.2e-4,
    }


def test_a_dry_run_counts_pairs_and_padded_tokens_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ROOT / "data_prep" / "sotu" / "preferences.jsonl"
    path = ROOT / "yamls" / "finetune" / "mpt-quickstart-dpo.yaml"
    recipe = load_checked(path, [f"train_loader.dataset.path={pairs}"])
    print_plan(recipe, plan_batches(recipe, 1), [])
    said = capsys.readouterr().out
    assert "8 pairs × up to 256 = up to 2,048 tokens a step" in said
    assert "50 steps = up to 102,400 tokens" in said
    assert "216 pairs, so 1.85 epochs" in said


def test_what_is_missing_stops_a_run(run_command: Command, tmp_path: Path) -> None:
    result = run_command("python", ROOT / "train.py", QUICKSTART, cwd=tmp_path)
    assert result.returncode == 1
    assert "error: this machine lacks what the recipe needs: 3 problems" in result.stderr
    assert "train one with `python -m data_prep.tokenizer" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_usage(run_command: Command, arguments: list[str]) -> None:
    result = run_command("python", "train.py", *arguments)
    assert result.returncode == (0 if arguments else 2)
    assert "composer train.py yamls/pretrain/mpt-quickstart.yaml" in result.stdout + result.stderr


def test_the_check_command_says_the_same(run_command: Command) -> None:
    result = run_command("python", "-m", "recipes", "check", QUICKSTART, "optimizer.lr=fast")
    assert result.returncode == 1
    assert "optimizer.lr: got text 'fast', expected a number" in result.stderr
    assert run_command("python", "-m", "recipes", "check", QUICKSTART, "--seed=3").returncode == 0


@pytest.mark.parametrize(
    ("override", "package"),
    [("model.fc_type=te", "transformer-engine"), ("model.ffn_config={ffn_type: mb_dmoe}", "megablocks")],
)
def test_a_layer_of_a_package_that_is_not_here_names_it(override: str, package: str) -> None:
    recipe = load_checked(QUICKSTART, [override])
    said = [p.text for p in preflight(recipe)]
    assert any(t.startswith(f"needs the package {package}: ") and t.endswith(f"pip install {package}") for t in said)


def test_tasks_in_a_file_are_judged_like_the_recipes_own(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.yaml"
    entry = "{label: a, dataset_uri: a.jsonl, num_fewshot: [0], icl_task_type: multiple_choice"
    tasks.write_text(f"icl_tasks:\n- {entry}, metric_names: 3}}\n- {entry.replace('a,', 'b,')}, batch_size: many}}\n")
    with pytest.raises(RecipeError) as raised:
        load_checked(QUICKSTART, [f"icl_tasks={tasks}"])
    said = [str(problem) for problem in raised.value.problems]
    assert [line.partition(": got")[0] for line in said] == [
        f"{tasks}:2: icl_tasks.0.metric_names",
        f"{tasks}:3: icl_tasks.1.batch_size",
    ]
    tasks.write_text(f"icl_tasks:\n- {entry}}}\n")
    assert load_checked(QUICKSTART, [f"icl_tasks={tasks}"])["icl_tasks"][0]["label"] == "a"


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["task_interval=0ba", "eval_first=false"], "task_interval", "got 0ba; expected a part of the run"),
        (["harness_tasks={tasks: [mine]}"], "icl_tasks.0.label", "is the name of one of harness_tasks too"),
        (["harness_tasks={tasks: [a], fewshot_as_multiturn: true}"], "harness_tasks.fewshot_as_multiturn", "turns in"),
        (
            ["eval_loader=null", "eval_first=false", "callbacks.budget_guard.max_usd_per_hundredth_loss=1"],
            "callbacks.budget_guard.max_usd_per_hundredth_loss",
            "needs an eval_loader",
        ),
    ],
)
def test_tasks_that_would_never_be_evaluated(overrides: list[str], key: str, words: str) -> None:
    task = "icl_tasks=[{label: mine, dataset_uri: x.jsonl, num_fewshot: [0], icl_task_type: multiple_choice}]"
    with pytest.raises(RecipeError) as raised:
        load_checked(QUICKSTART, [task, *overrides])
    assert [(dotted(p.key), words in p.text) for p in raised.value.problems] == [(key, True)]


def test_what_is_asked_of_tasks_and_not_done_is_noted() -> None:
    task = "icl_tasks=[{label: mine, dataset_uri: x.jsonl, num_fewshot: [0], icl_task_type: multiple_choice}]"
    never = load_checked(QUICKSTART, [task, "eval_interval=0ba", "eval_first=false"])
    assert [note.partition(":")[0] for note in evaluation_notes(never.values)] == ["tasks are never evaluated"]
    logged = load_checked(QUICKSTART, [task, "callbacks.eval_output_logging={}"])
    (note,) = evaluation_notes(logged.values)
    assert "logs nothing of icl_tasks: their scores are in tasks.jsonl, every answer" in note
    assert not list(evaluation_notes(load_checked(QUICKSTART, [task]).values))


def test_models_of_an_api_are_not_trained() -> None:
    ((_, text),) = (f for f in contradictions({"model": {"name": "fmapi_chat"}}) if f[0] == ("model", "name"))
    assert "fmapi_chat is asked over the network" in text


def test_validation_loaders_have_the_names_that_llm_foundry_gives_them() -> None:
    loader = "{name: text, dataset: {local: x, split: val}, drop_last: false, num_workers: 0, label: a}"
    stopper = "callbacks={{early_stopper: {{monitor: LanguageCrossEntropy, dataloader_label: {}, patience: 1ep}}}}"
    for loaders, right, wrong in ((f"[{loader}]", "eval/a", "a"), (loader, "eval", "a")):
        load_checked(QUICKSTART, [f"eval_loader={loaders}", stopper.format(right)])
        with pytest.raises(RecipeError, match=f"got {wrong}, expected train or a validation loader: {right}"):
            load_checked(QUICKSTART, [f"eval_loader={loaders}", stopper.format(wrong)])


def test_a_file_of_tasks_that_is_not_there_hides_nothing_else() -> None:
    with pytest.raises(RecipeError, match="decoder-only models, not hf_t5"):
        load_checked(QUICKSTART, ["icl_tasks=nowhere.yaml", "model={name: hf_t5}"])
