"""Evaluation as a user starts it, on a run that the tests trained."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import catalogue
import pytest
import torch

from eval import compare, digests, evaluate, harness, results
from eval.models import runs_judged, spell_out_models
from eval.results import examples_path
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe, load
from recipes.parts import import_code
from recipes.preflight.data import local_data_files
from recipes.preflight.evaluation import preflight_evaluation
from recipes.reports.summary import print_summary
from recipes.talking.loading import load_model, model_of_folder
from recipes.weights.checkpoint_tensors import checkpoint_file
from recipes.weights.export import export

from ..conftest import ROOT, Command, summary, write_jsonl
from ..tiny import LLAMA, build, write_run

RECIPE = ROOT / "yamls" / "eval" / "quickstart.yaml"
TASKS = ("cloze", "dates")  # the third needs a longer context than the 32 tokens of the tests' model


@pytest.fixture(scope="module")
def task(suite: Path) -> Path:
    return suite


def arguments(shards: Path, run: Path, task: Path, *more: str) -> list[str]:
    data = [f"eval_loader.dataset.local={shards}", "max_seq_len=32", f"contamination.shards={shards}/train"]
    kind = "icl_task_type: multiple_choice, num_fewshot: [0]"
    entries = ", ".join(f"{{label: {name}, dataset_uri: {task}/{name}.jsonl, {kind}}}" for name in TASKS)
    return [str(RECIPE), f"models.0.run={run}", *data, f"icl_tasks=[{entries}]", "samples.max_new_tokens=5", *more]


@pytest.fixture(scope="module")
def evaluated(shards: Path, whole: Path, task: Path, run_command: Command) -> str:
    result = run_command("python", "eval/evaluate.py", *arguments(shards, whole, task))
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_run_is_judged_by_loss_task_and_sample(evaluated: str, whole: Path) -> None:
    (model,) = json.loads((whole / "results.json").read_text())["models"]
    assert model["checkpoint"].endswith("ep0-ba24-rank0.pt")
    assert model["perplexity"] == pytest.approx(math.exp(model["loss"]))
    cloze, dates = model["tasks"]
    assert [t["label"] for t in model["tasks"]] == [f"{name}/0-shot" for name in TASKS]
    assert cloze["examples"] == 40
    assert 0 < dates["examples"] <= 40
    for result in model["tasks"]:
        assert result["chance"] == 0.25
        assert 0 <= result["low"] <= result["score"] <= result["high"] <= 1
        n, p = result["examples"], result["score"]
        assert result["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
        assert len(result["digest"]) == 64
    assert cloze["truncated"] == 40  # 32 tokens are few
    assert len(model["digest"]) == 64
    assert [found["label"] for found in model["contamination"]] == [f"{name}/0-shot" for name in TASKS]
    lines = (whole / "results.examples.jsonl").read_text().splitlines()
    assert len(lines) == sum(t["examples"] for t in model["tasks"])
    assert sum(json.loads(line)["correct"] for line in lines[:40]) == pytest.approx(40 * cloze["score"])
    assert [s["prompt"] for s in model["samples"]] == ["My fellow citizens, the state of our", "The Congress should"]
    assert all(sample["text"] for sample in model["samples"])
    for words in ("validation perplexity", "cloze/0-shot", "25.0%", "95 %", "lost their", "results:"):
        assert words in evaluated


def test_the_loss_is_the_one_that_training_measured(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    # training looked at two batches of eight; so does this
    more = [f"results={tmp_path}/r.json", "eval_subset_num_batches=2", "device_eval_batch_size=8", "icl_tasks=null"]
    result = run_command("launch", "eval/evaluate.py", *arguments(shards, whole, task, *more, "samples=null"))
    assert result.returncode == 0, result.stdout + result.stderr
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert model["loss"] == pytest.approx(summary(whole)["eval_loss_end"], rel=1e-6)


def test_the_same_evaluation_is_not_done_twice(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command
) -> None:
    result = run_command("python", "-X", "importtime", "eval/evaluate.py", *arguments(shards, whole, task))
    assert result.returncode == 0
    assert "evaluated before" in result.stdout
    assert "cloze/0-shot" in result.stdout
    assert " torch\n" not in result.stderr


def test_data_is_known_by_more_than_its_index(shards: Path, whole: Path, task: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "val", tmp_path / "val")
    shutil.copytree(shards / "train", tmp_path / "train")
    data = [f"eval_loader.dataset.local={tmp_path}", f"contamination.shards={tmp_path}/train"]
    recipe = load(arguments(shards, whole, task)[0], [*arguments(shards, whole, task)[1:], *data])
    seen = {results.digest(recipe, [], digests.files_of(recipe))}
    for name in ("val/manifest.json", "train/manifest.json"):  # as of shards in another order
        (tmp_path / name).write_text("{}")
        seen.add(results.digest(recipe, [], digests.files_of(recipe)))
    for folder in ("val", "train"):
        (tmp_path / folder / "manifest.json").unlink()
        seen.add(results.digest(recipe, [], digests.files_of(recipe)))
        next((tmp_path / folder).glob("*.mds")).write_bytes(b"other")
        seen.add(results.digest(recipe, [], digests.files_of(recipe)))
    assert len(seen) == 7


def test_two_processes_score_the_same(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    result = run_command(
        "launch", "-n", "2", "eval/evaluate.py", *arguments(shards, whole, task, f"results={tmp_path}/r.json")
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (two,) = json.loads((tmp_path / "r.json").read_text())["models"]
    (one,) = json.loads((whole / "results.json").read_text())["models"]
    assert [strip(t) for t in two["tasks"]] == [strip(t) for t in one["tasks"]]
    assert two["loss"] == one["loss"]
    assert two["samples"] == one["samples"]
    theirs, ours = (
        (p.with_name(f"{p.stem}.examples.jsonl")).read_text() for p in (tmp_path / "r.json", whole / "results.json")
    )
    assert theirs == ours


def strip(result: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in result.items() if key != "seconds"}


def test_a_hugging_face_folder_scores_as_its_checkpoint(
    evaluated: str, shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    exported = run_command("python", "-m", "recipes", "export", whole, tmp_path / "folder", "--dtype", "fp32")
    assert exported.returncode == 0, exported.stderr
    models = f"models=[{{folder: {tmp_path}/folder}}, {{run: {whole}}}]"
    more = [models, f"results={tmp_path}/r.json", "samples=null"]
    result = run_command(
        "python", "eval/evaluate.py", *[a for a in arguments(shards, whole, task) if "models.0" not in a], *more
    )
    assert result.returncode == 0, result.stdout + result.stderr
    folder, run = json.loads((tmp_path / "r.json").read_text())["models"]
    assert folder["loss"] == pytest.approx(run["loss"], abs=1e-5)
    assert [t["score"] for t in folder["tasks"]] == [t["score"] for t in run["tasks"]]
    compared = run_command(
        "python", "-m", "eval.compare", f"{tmp_path}/r.json:folder", f"{tmp_path}/r.json:{whole.name}"
    )
    assert compared.returncode == 0, compared.stderr
    assert "+0.0%" in compared.stdout
    asked = tmp_path / "dates.yaml"
    shipped = ROOT / "yamls" / "eval" / "harness" / "sotu_dates.yaml"
    asked.write_text(shipped.read_text().replace("shards/sotu/tasks", str(task)))
    by_model = []
    for number, model in enumerate((tmp_path / "folder", whole)):
        out = tmp_path / f"h{number}.json"
        assert harness.main([str(model), "--tasks", str(asked), "--out", str(out)]) == 0
        by_model.append([json.loads(line)["logprobs"] for line in examples_path(out).read_text().splitlines()])
    assert len(by_model[0]) > 0
    for ours, theirs in zip(*by_model, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_prompts_are_shown_and_nothing_is_evaluated(
    shards: Path, whole: Path, task: Path, run_command: Command
) -> None:
    shown = run_command("python", "eval/evaluate.py", *arguments(shards, whole, task), "--show-prompts")
    assert shown.returncode == 0, shown.stderr
    first = json.loads((task / "cloze.jsonl").read_text().splitlines()[0])
    assert f"{first['query']}⏎" in shown.stdout
    assert len(re.findall(r"^  \d: ' ?\w.*'$", shown.stdout, re.M)) == 2 * 3
    assert f"  {first['gold']}: ' {first['choices'][first['gold']].strip()}'  ← right" in shown.stdout
    assert "cloze/0-shot, example 1 of 40" in shown.stdout
    assert "results:" not in shown.stdout


def test_a_task_with_a_bad_row_is_refused(
    shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "a", "choices": ["b", "c"], "gold": 7}\n')
    asked = [a.replace(f"{task}/cloze.jsonl", str(bad)) for a in arguments(shards, whole, task)]
    result = run_command("python", "eval/evaluate.py", *asked, f"results={tmp_path}/r.json")
    assert result.returncode == 1
    assert f"{bad}:1: 'gold': got 7, expected an index from 0 to 1" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("models.0.run=runs/nothing", "runs/nothing is not a run folder"),
        ("models.0.folder=runs/nothing", "run and folder are both given"),
        ("results=recipes", "results cannot be written to recipes"),
        ("icl_tasks.0.dataset_uri=nothing.jsonl", "there is no file nothing.jsonl"),
        ("icl_tasks.0.num_fewshots=[0]", "did you mean num_fewshot?"),
        ("samples.prompts=[]", "expected at least one"),
        ("precision=bf16", "did you mean amp_bf16?"),
    ],
)
def test_bad_evaluations_are_refused_in_words(
    shards: Path, whole: Path, task: Path, run_command: Command, override: str, words: str
) -> None:
    result = run_command("python", "eval/evaluate.py", *arguments(shards, whole, task), override)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


GAUNTLET = "eval_gauntlet={{categories: [{{name: all, benchmarks: [{}]}}], averages: {{core: [{}]}}}}"
MPT = "{name: mpt_causal_lm, d_model: 64, n_heads: 4, n_layers: 2, vocab_size: 512, max_seq_len: 32}"
DATES = "{name: dates, num_fewshot: 0, random_baseline: 0.25}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("models=[{run: RUN}, {run: RUN, load_path: x.pt}]", "which is the name of models.0: give one of them another"),
        ("icl_tasks.0.num_fewshot=[0, 0]", "cloze/0-shot is asked for here and in icl_tasks.0"),
        ("icl_tasks.1.label=cloze", "cloze/0-shot is asked for here and in icl_tasks.0"),
        ("icl_tasks.0.num_fewshot=[-1]", "got [-1], expected one or several numbers of examples"),
        ("icl_tasks.0.num_fewshot=[]", "got [], expected one or several numbers of examples"),
        (GAUNTLET.format(DATES.replace("dates", "nope"), "all"), "no accuracy of nope/0-shot, only of cloze/0-shot"),
        (GAUNTLET.format(DATES.replace("shot: 0", "shot: 3"), "all"), "scores no accuracy of dates/3-shot"),
        (GAUNTLET.format(DATES.replace("0.25", "1"), "all"), "random_baseline: got 1, expected a share"),
        (GAUNTLET.format(DATES, "core"), "averages.core: got ['core'], expected a list of categories, of all"),
        (GAUNTLET.format("", "all"), "benchmarks: got [], expected a list of sections"),
        ("eval_gauntlet={categories: []}", "categories: got [], expected a list of sections"),
        ("eval_gauntlet={weighting: NOPE}", "got 'NOPE', expected one of EQUAL"),
        ("icl_tasks=FILE", "tasks.yaml:3: icl_tasks.0.num_fewshot: got 5, expected a list"),
        ("eval_gauntlet=FILE", "tasks.yaml must have a section under this key"),
        (
            "eval_gauntlet={categories: [{name: a/b, benchmarks: [" + DATES + "]}]}",
            "got a/b, expected a name without /",
        ),
        ("eval_loader.dataset.max_seq_len=64", "its sequences have 64 tokens, and whole"),
        ("eval_loader.dataset.epoch_size=16", "eval_loader.dataset.epoch_size: chooses among samples"),
        ("callbacks={speed_monitor: {}}", "an evaluation has no callbacks"),
        ("callbacks={eval_output_logging: {}}", "every answer to a task is in results.examples.jsonl"),
        (
            "models=[{model_name: m, model: MPT, tokenizer: {name: x/y}}]",
            "models.0.load_path: is missing, and without a checkpoint",
        ),
        (
            "models=[{model: {name: openai_chat}, tokenizer: {name: x}}]",
            "models.0.model.name: openai_chat is asked over",
        ),
        ("contamination.shards=nothing", "nothing holds no shards"),
        ("contamination.shards=[nothing]", "nothing holds no shards"),
        ("contamination.shards=[]", "contamination.shards: got an empty list, expected at least one"),
        ("results=/proc/nothing/r.json", "results cannot be written to"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_loaded(
    override: str,
    words: str,
    shards: Path,
    whole: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("icl_tasks:\n- label: a\n  num_fewshot: 5\n  dataset_uri: a\n  icl_task_type: schema\n")
    asked = override.replace("RUN", str(whole)).replace("FILE", str(file)).replace("MPT", MPT)
    assert evaluate.main([*arguments(shards, whole, task), asked]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words"), [("[]", "got list, expected a JSON object"), ('{"max_seq_len": "x"}', "max_seq_len: got 'x'")]
)
def test_a_damaged_config_is_named(config: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(RecipeError, match=words):
        spell_out_models(load(RECIPE, [f"models=[{{folder: {tmp_path}}}]"]))


def test_nothing_to_evaluate_and_prompts_that_do_not_fit(
    shards: Path, whole: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*arguments(shards, whole, task), f"results={tmp_path}/r.json", "contamination=null"]
    assert evaluate.main([*asked, "icl_tasks=[]", "eval_loader=null", "samples=null"]) == 1
    assert "there is nothing to evaluate" in capsys.readouterr().err
    assert evaluate.main([*asked, "samples={prompts: ['', the people], max_new_tokens: 32}"]) == 1
    said = capsys.readouterr().err
    assert "samples.prompts.0: got '', which has no tokens" in said
    assert f"32 new ones do not fit {whole.name}, which reads 32" in said


def test_a_damaged_newest_checkpoint_is_named(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    (run / "checkpoints" / "ep0-ba99-rank0.pt").write_bytes(b"cut off")
    spell_out_models(load(RECIPE, [f"models.0.run={run}"]))
    assert "ep0-ba24-rank0.pt; ignored ep0-ba99-rank0.pt: not whole" in capsys.readouterr().err


def test_a_flipped_bit_in_weights_or_data_is_named(
    shards: Path, whole: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    shutil.copytree(shards / "val", tmp_path / "val")
    checkpoint = tmp_path / "run" / "checkpoints" / "ep0-ba24-rank0.pt"
    with checkpoint_file(checkpoint) as files:
        places = {name: entry.offset for name, entry in files.entries.items()}
    _flip(checkpoint, places["transformer.norm_f.weight"] + 2)
    _flip(tmp_path / "val" / "shard.00000.mds", -100)
    asked = [*arguments(shards, whole, task), f"results={tmp_path}/r.json", "contamination=null"]
    assert evaluate.main([*asked, f"eval_loader.dataset.local={tmp_path}"]) == 1
    assert f"corrupt shard {tmp_path}/val/shard.00000.mds" in capsys.readouterr().err
    assert evaluate.main([*asked, f"models.0.run={tmp_path}/run"]) == 1
    said = capsys.readouterr().err
    assert "ep0-ba24-rank0.pt is damaged: the bytes of transformer.norm_f.weight are not those that were saved" in said
    with pytest.raises(ValueError, match=r"is damaged: the bytes of transformer\.norm_f\.weight"):
        load_model(tmp_path / "run")


def _flip(path: Path, at: int) -> None:
    """Flip a bit of a byte, counted from the end where `at` is negative."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_of_a_full_checkpoint_the_models_tensors_alone_are_read(
    shards: Path, whole: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process of a machine reads it: the optimizer's state is twice as large as the model."""
    from eval.loading import LoadedModel

    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("all of the checkpoint is read"))
    recipe = spell_out_models(load(RECIPE, arguments(shards, whole, task)[1:]))
    entry = recipe["models"][0]
    settings = evaluate._settings(recipe, entry)
    tokenizer = evaluate._tokenizer(recipe, entry)
    loaded = LoadedModel(recipe, settings, entry, tokenizer)
    loaded.close()
    with checkpoint_file(Path(entry["load_path"])) as files:
        found = {name.removeprefix("model."): tensor for name, tensor in loaded.model.state_dict().items()}
        assert found.keys() == files.shapes().keys()
        assert all(torch.equal(tensor, files.rows(name)) for name, tensor in found.items())
    entry["model"]["n_layers"] = 3
    with pytest.raises(RecipeError, match=r"ep0-ba24-rank0\.pt is of another model: transformer\.blocks\.2"):
        LoadedModel(recipe, settings, entry, tokenizer)


def test_an_adapter_is_loaded_onto_the_folder_that_it_changes(shards: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from eval.loading import LoadedModel

    run = write_run(tmp_path / "run", LLAMA, build(LLAMA), shards / "tokenizer")
    export(run, tmp_path / "base", "fp32")
    torch.manual_seed(1)
    adapted = get_peft_model(
        model_of_folder(tmp_path / "base"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    models = f"models=[{{folder: {tmp_path}/base, model: {{pretrained_lora_id_or_path: {tmp_path}/adapter}}}}]"
    kind = "icl_task_type: multiple_choice, num_fewshot: [0]"
    task = f"icl_tasks=[{{label: a, dataset_uri: {tmp_path}/a.jsonl, {kind}}}]"
    write_jsonl(tmp_path / "a.jsonl", [{"query": "a", "choices": ["b", "c"], "gold": 0}])
    alone = ["eval_loader=null", "contamination=null", "max_seq_len=32", "precision=fp32", task]
    recipe = spell_out_models(load(RECIPE, [models, *alone]))
    assert preflight_evaluation(recipe) == []
    entry = recipe["models"][0]
    loaded = LoadedModel(recipe, evaluate._settings(recipe, entry), entry, evaluate._tokenizer(recipe, entry))
    loaded.close()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        found = loaded.backbone.run(lambda: loaded.backbone.logits(loaded.backbone.hidden(ids, None)[0][0]))
    torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=0)
    for more, words in (("peft_config: {r: 2}", "is given beside peft_config"), ("name: hf_causal_lm", "no whole")):
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink(missing_ok=True)
        both = spell_out_models(load(RECIPE, [models.replace("}}]", f", {more}}}}}]"), *alone]))
        assert any(words in str(problem) for problem in preflight_evaluation(both))


def test_without_a_gpu_an_evaluation_is_in_fp32(shards: Path, whole: Path, task: Path) -> None:
    recipe = spell_out_models(load(RECIPE, arguments(shards, whole, task)[1:]))
    without = dataclasses.replace(recipe, values={k: v for k, v in recipe.values.items() if k != "precision"})
    assert preflight_evaluation(without) == []
    assert evaluate._settings(without, without["models"][0])["precision"] == "fp32"
    bf16 = dataclasses.replace(recipe, values={**recipe.values, "precision": "amp_bf16"})
    assert "precision: no GPU here, and amp_bf16 needs one: use fp32" in str(preflight_evaluation(bf16)[0])


def test_the_summary_of_a_run_has_its_evaluation(evaluated: str, whole: Path, run_command: Command) -> None:
    result = run_command("python", "-m", "recipes", "summary", whole)
    assert result.returncode == 0
    for words in ("validation loss", "cloze/0-shot", "sample", "checkpoint", "unigram entropy"):
        assert words in result.stdout


def test_a_folder_without_a_run_is_said_to_be_one(run_command: Command, tmp_path: Path) -> None:
    result = run_command("python", "-m", "recipes", "summary", tmp_path)
    assert result.returncode == 1
    assert "no run has ended in" in result.stderr
    with pytest.raises(FileNotFoundError):
        print_summary(tmp_path)


def test_task_and_gauntlet_files_of_llm_foundry(
    shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    (tmp_path / "tasks.yaml").write_text(
        "icl_tasks:\n"
        "-\n"
        "  label: cloze\n"
        f"  dataset_uri: {task}/cloze.jsonl # ADD YOUR OWN DATASET URI\n"
        "  num_fewshot: [0, 1]\n"
        "  icl_task_type: multiple_choice\n"
        '  continuation_delimiter: "\\nAnswer: "\n'
        '  question_prelimiter: ""\n'
    )
    (tmp_path / "gauntlet.yaml").write_text(
        "eval_gauntlet:\n"
        "  weighting: EQUAL\n"
        "  subtract_random_baseline: true\n"
        "  rescale_accuracy: true\n"
        "  averages:\n"
        "    core_average: [language_understanding, world_knowledge]\n"
        "    world_average: [world_knowledge]\n"
        "  categories:\n"
        "  - name: language_understanding\n"
        "    benchmarks:\n"
        "    - name: cloze\n"
        "      num_fewshot: 1\n"
        "      random_baseline: 0.25\n"
        "  - name: world_knowledge\n"
        "    benchmarks:\n"
        "    - {name: cloze, num_fewshot: 1, random_baseline: 0.25}\n"
        "    - {name: arc_easy, num_fewshot: 3, random_baseline: 0.25}\n"
    )
    files = [f"icl_tasks={tmp_path}/tasks.yaml", f"eval_gauntlet={tmp_path}/gauntlet.yaml"]
    more = [f"results={tmp_path}/r.json", "samples=null", "contamination=null", "eval_loader=null"]
    asked = [str(RECIPE), f"models.0.run={whole}", "max_seq_len=32", *files, *more]
    result = run_command("python", "eval/evaluate.py", *asked)
    assert result.returncode == 0, result.stdout + result.stderr
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    none, one = model["tasks"]
    assert (none["label"], one["label"]) == ("cloze/0-shot", "cloze/1-shot")
    expected = (one["score"] - 0.25) / 0.75
    assert model["gauntlet"] == pytest.approx({"language_understanding": expected, "core_average": expected})
    assert "gauntlet: core_average" in result.stdout
    left_out = "the category world_knowledge is left out, and of every average: icl_tasks scores no accuracy of arc"
    assert left_out in result.stdout


def test_files_of_hugging_faces_loaders_count(tmp_path: Path) -> None:
    """An evaluation over them is another one when they change."""
    for name in ("a.jsonl", "b.jsonl", "folder/c.jsonl", "folder/deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    files = {"validation": [f"{tmp_path}/a.jsonl", f"{tmp_path}/no.jsonl"], "test": f"{tmp_path}/b*"}
    found = local_data_files({"hf_name": "json", "hf_kwargs": {"data_files": files, "data_dir": f"{tmp_path}/folder"}})
    assert [path.name for path in found] == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert local_data_files({"hf_name": str(tmp_path / "folder")}) == found[2:]
    assert local_data_files({"hf_name": "someone/words", "split": "test"}) == []


def test_results_are_not_taken_from_before_where_a_task_may_have_changed(shards: Path, tmp_path: Path) -> None:
    def recipe_with(uri: str, more: str = "") -> Recipe:
        entry = f"{{label: a, dataset_uri: '{uri}', icl_task_type: schema, num_fewshot: [0]{more}}}"
        return load(RECIPE, [f"icl_tasks=[{entry}]", "contamination=null", "eval_loader=null"])

    (tmp_path / "a.jsonl").write_text("{}")
    for uri in ("s3://bucket/a.jsonl", "hf://someone/words"):
        assert digests.is_elsewhere(recipe_with(uri))
    assert not digests.is_elsewhere(recipe_with(f"{tmp_path}/a.jsonl"))
    local = recipe_with("hf://json", f", hf_loading_vars: {{data_files: {tmp_path}/a.jsonl, split: train}}")
    assert not digests.is_elsewhere(local)
    assert digests.files_of(local) == [tmp_path / "a.jsonl"]


def test_a_folder_on_the_command_line_takes_the_place_of_the_recipes_run() -> None:
    with pytest.raises(RecipeError, match="nowhere is no Hugging Face folder"):
        spell_out_models(load(RECIPE, ["models.0.folder=nowhere"]))


def test_results_of_a_folder_are_not_those_of_the_run_that_the_recipe_names() -> None:
    for override, path in (
        ("run_name=x", "runs/mpt-quickstart/results.json"),
        ("models.0.run=runs/other", "runs/other/results.json"),
        ("models.0.folder=exports/mine", "runs/eval-quickstart/results.json"),
    ):
        recipe = load(RECIPE, [override])
        assert [str(found) for found in results.by_path(recipe, runs_judged(recipe))] == [path]


def test_each_runs_part_of_an_evaluation_is_in_its_own_folder(
    shards: Path, whole: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [shutil.copytree(whole, tmp_path / name, symlinks=True) for name in ("a", "b")]
    for run in runs:
        (run / "results.json").unlink(missing_ok=True)
    asked = [*arguments(shards, whole, task)[:1], *arguments(shards, whole, task)[2:]]  # without models.0.run
    asked += ["contamination=null", "samples=null", "eval_loader=null"]
    both = f"models=[{{run: {runs[0]}}}, {{run: {runs[1]}}}]"
    assert evaluate.main([*asked, both]) == 0
    for run in runs:
        (model,) = json.loads((run / "results.json").read_text())["models"]
        assert model["name"] == run.name
        capsys.readouterr()
        print_summary(run)
        assert "dates/0-shot" in capsys.readouterr().out
        assert "cloze/0-shot" in (run / "report.html").read_text()
    assert compare.main([str(run) for run in runs]) == 0
    (runs[1] / "results.json").unlink()
    assert evaluate.main([*asked, both]) == 0
    assert capsys.readouterr().out.count("evaluated before") == 1
    assert evaluate.main([*asked, both, f"results={tmp_path}/r.json"]) == 0
    assert [model["name"] for model in json.loads((tmp_path / "r.json").read_text())["models"]] == ["a", "b"]


def test_code_of_ones_own_is_imported(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open('{tmp_path}/imported', 'w').close()\n")
    recipe = load(RECIPE, [f"code_paths=[{tmp_path}/own.py]"])
    import_code(recipe)
    assert (tmp_path / "imported").exists()
    assert tmp_path / "own.py" in digests.files_of(recipe)
    (tmp_path / "own.py").write_text("raise ValueError('nothing here')")
    with pytest.raises(RecipeError, match="Error executing"):
        import_code(recipe)


def test_code_that_would_change_a_checked_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from llmfoundry import registry\nregistry.config_transforms.register('shorter', func=lambda config: config)\n"
    )
    try:
        with pytest.raises(RecipeError, match="registers the config transform shorter"):
            import_code(load(RECIPE, [f"code_paths=[{tmp_path}/own.py]"]))
    finally:
        catalogue.REGISTRY.pop(("llmfoundry", "config_transforms", "shorter"))


def test_shards_of_another_tokenizer_cost_only_their_own_line(
    shards: Path, whole: Path, task: Path, run_command: Command, tmp_path: Path
) -> None:
    shutil.copytree(shards / "train", tmp_path / "train")
    manifest = json.loads((tmp_path / "train" / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(manifest))
    more = [f"contamination.shards={tmp_path}/train", f"results={tmp_path}/r.json", "samples=null", "eval_loader=null"]
    result = run_command("python", "eval/evaluate.py", *arguments(shards, whole, task, *more))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "contamination is left out" in result.stdout
    (model,) = json.loads((tmp_path / "r.json").read_text())["models"]
    assert len(model["tasks"]) == 2
    assert "contamination" not in model


def test_generation_kwargs_are_judged_in_a_process_that_has_imported_nothing(
    shards: Path, whole: Path, task: Path, tmp_path: Path, run_command: Command
) -> None:
    rows = [{"context": "My fellow", "answer": "citizens"}, {"context": "The state of the", "answer": "Union"}]
    write_jsonl(tmp_path / "g.jsonl", rows)
    asked = f"label: g, dataset_uri: {tmp_path}/g.jsonl, num_fewshot: [0], icl_task_type: generation_task_with_answers"
    kwargs = "generation_kwargs: {do_sample: true, top_k: 0, temperature: null, max_new_tokens: 3}"
    words = [*arguments(shards, whole, task), f"icl_tasks=[{{{asked}, {kwargs}}}]", f"results={tmp_path}/r.json"]
    done = run_command("python", "-X", "utf8", "eval/evaluate.py", *words)  # a start of its own
    assert done.returncode == 0, done.stderr
    assert "g/0-shot" in done.stdout
    refused = run_command("python", "eval/evaluate.py", *words[:-2], words[-2].replace("top_k: 0", "top_k: -1"))
    assert refused.returncode == 1
    assert "top_k: got -1, expected a whole number of at least 0" in refused.stderr
