"""What a run would stop at, wait for or leave out without a word, is said of the recipe."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.config.check import check, load_checked
from recipes.config.keys import RecipeError
from recipes.config.load import load

from ..conftest import ROOT

QUICKSTART = ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml"


def found(*overrides: str, recipe: Any = QUICKSTART) -> dict[str, str]:
    """Problems by dotted key."""
    return {".".join(map(str, p.key)): p.text for p in check(load(recipe, overrides))}


@pytest.mark.parametrize("key", ["max_duration", "save_interval", "eval_interval", "scheduler.t_warmup"])
def test_nothing_is_counted_in_iterations(key: str) -> None:
    assert "would never come: use ba" in found(f"{key}=10iter")[key]


def test_a_loader_does_not_cut_what_the_plan_counts() -> None:
    key = "train_loader.dataset.max_seq_len"
    assert "got 64, and max_seq_len is 128" in found(f"{key}=64")[key]
    assert found(f"{key}=128") == found("eval_loader.dataset.max_seq_len=64") == {}


@pytest.mark.parametrize("name", ["save_folder", "load_path"])
@pytest.mark.parametrize("scheme", ["wandb", "mlflow"])
def test_checkpoints_lie_where_composer_has_a_store(name: str, scheme: str) -> None:
    assert "or one of s3://, gs://, oci://, azure://, dbfs://" in found(f"{name}={scheme}://team/run")[name]
    assert found(f"{name}=dbfs:/databricks/mlflow-tracking/1/2/artifacts/x") == {}


@pytest.mark.parametrize(
    ("label", "monitor", "model", "words"),
    [
        ("eval", "LanguageCrossEntropyy", "true", "did you mean LanguageCrossEntropy?"),
        ("eval", "loss/train/total", "false", "expected one of LanguageCrossEntropy, "),
        ("train", "LanguageCrossEntropy", "false", "needs model.use_train_metrics: true"),
        ("train", "LanguageCrossEntropy", "true", None),
        ("eval", "TokenAccuracy", "false", None),
    ],
)
def test_a_stopper_waits_for_a_metric_that_comes(label: str, monitor: str, model: str, words: str | None) -> None:
    stopper = f"callbacks.early_stopper={{monitor: {monitor}, dataloader_label: {label}, patience: 1ep}}"
    said = found(stopper, f"model.use_train_metrics={model}")
    assert list(said) == (["callbacks.early_stopper.monitor"] if words else [])
    assert words is None or words in said["callbacks.early_stopper.monitor"]


def test_every_way_to_shuffle_is_one_of_streaming() -> None:
    key = "train_loader.dataset.shuffle_algo"
    assert "did you mean py1br?" in found(f"{key}=py1b")[key]
    assert found(f"{key}=py1br") == {}


@pytest.mark.parametrize("variable", ["RUN_NAME", "COMPOSER_RUN_NAME"])
def test_a_name_from_the_environment_stays_among_the_runs(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "../../elsewhere")
    with pytest.raises(RecipeError, match=f"environment: {variable}: got .* would leave the folder of the runs"):
        load_checked(QUICKSTART, ["run_name=null"])
    load_checked(QUICKSTART)
    assert "leave the folder" in found("run_name=/elsewhere")["run_name"]


def test_own_code_registers_names_and_no_other_choices() -> None:
    own = "code_paths=[mine.py]"
    misspelt = {
        "precision": "amp_bf61",
        "model.attn_config.attn_impl": "falsh",
        "algorithms.gradient_clipping.clipping_type": "norn",
    }
    assert set(found(own, *(f"{key}={value}" for key, value in misspelt.items()))) == set(misspelt)
    names = ("model.norm_type", "model.fc_type", "model.attn_config.attn_type", "model.init_config.name")
    assert found(own, *(f"{key}=mine" for key in (*names, "model.ffn_config.ffn_type"))) == {}


def test_a_model_of_ones_own_has_layers_that_are_not_known_here() -> None:
    own = ["code_paths=[mine.py]", "model={name: hf_causal_lm_te, pretrained_model_name_or_path: x}"]
    assert found(*own, "precision=amp_fp8") == {}


def test_of_a_model_behind_an_api_one_thing_is_said() -> None:
    (said,) = found("model={name: openai_chat, version: x}").items()
    assert said[0] == "model.name"
    assert "is asked over the network" in said[1]


def test_shards_of_instructions_in_a_folder_are_a_stream() -> None:
    tuning = ROOT / "yamls" / "finetune" / "mpt-quickstart-chat.yaml"
    local = "train_loader={name: finetuning, dataset: {local: mine, split: train, streams: null}}"
    assert "streams: {mine: {local: mine, split: train}}" in found(local, recipe=tuning)["train_loader.dataset.hf_name"]


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["only_composer_checkpoint=true", "save_folder=null"], "only_composer_checkpoint", "needs save_folder"),
        (["device_eval_batch_size=0.5"], "device_eval_batch_size", "a whole number"),
        (["train_loader.label=a"], "train_loader.label", "leave it out"),
        (["callbacks.scheduled_gc={batch_interval: 0}"], "callbacks.scheduled_gc.batch_interval", "at least 1"),
        (["callbacks.optimizer_monitor.batch_log_interval=0"], "callbacks.optimizer_monitor.batch_log_interval", "1"),
        (
            ["callbacks.generate_callback={prompts: [], interval: 1ba}"],
            "callbacks.generate_callback.prompts",
            "got an empty list",
        ),
        (
            ["callbacks.hf_checkpointer={save_folder: x, save_interval: 1ba, precision: bf17}"],
            "callbacks.hf_checkpointer.precision",
            "expected one of float32",
        ),
        (["optimizer.param_groups=[{foo: 1}]"], "optimizer.param_groups.0.param_str_match", "missing"),
        (["profiler={foo: 1, schedule: {}}"], "profiler.foo", "unknown key"),
        (["train_loader.timeout=5", "train_loader.num_workers=0"], "train_loader.timeout", "without workers"),
        (["scheduler.t_max=10ba"], "scheduler.t_max", "expected 1000ba (max_duration) at least"),
    ],
)
def test_what_a_run_would_only_come_to_later_is_said_of_the_recipe(overrides: list[str], key: str, words: str) -> None:
    said = found(*overrides)
    assert list(said) == [key]
    assert words in said[key]
