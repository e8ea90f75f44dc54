"""Whole training runs as a user starts them: one process, several, killed and started again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes.config.keys import RecipeError
from recipes.config.load import Recipe, load
from recipes.cost.parameters import count_parameters
from recipes.preflight.machine import disk_problems
from recipes.run_files import SHARDS_READ
from recipes.training import data_record

from ..conftest import ROOT, STEPS, Command, can_unshare, losses, recipe_arguments, summary, write_jsonl


def test_a_run_learns_and_says_what_it_came_to(whole: Path) -> None:
    output = (whole / "output.txt").read_text()
    curve = losses(whole)
    assert list(curve) == list(range(STEPS))
    assert curve[STEPS - 1] < curve[0] - 0.3
    for words in (
        "validation loss",
        "validation perplexity",
        "tokens/s",
        "MFU",
        "wall time",
        "$",
        "0.1026 USD",
        "checkpoint",
    ):
        assert words in output
    came_to = summary(whole)
    assert came_to["steps"] == STEPS
    assert came_to["tokens"] == STEPS * 8 * 32
    assert came_to["eval_loss_end"] < came_to["eval_loss_start"]
    assert came_to["usd"] == pytest.approx(came_to["wall_s"] / 3600 * 0.1026, rel=1e-3)
    assert Path(str(came_to["checkpoint"])).is_file()
    assert "autoresume: no checkpoint yet" in output


def test_only_the_last_checkpoints_are_kept_and_the_resolved_recipe_beside_them(whole: Path) -> None:
    kept = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert kept == ["ep0-ba21-rank0.pt", "ep0-ba24-rank0.pt", "latest-rank0.pt"]
    assert "max_seq_len: 32" in (whole / "recipe.yaml").read_text()


def test_finished_work_is_not_done_again(whole: Path, shards: Path, run_command: Command) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    result = run_command("python", "-X", "importtime", "train.py", *recipe_arguments(shards, whole))
    assert result.returncode == 0
    assert "finished before, nothing to do" in result.stdout
    assert "validation perplexity" in result.stdout
    assert " torch\n" not in result.stderr
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_killed_runs_go_on_to_the_same_losses_bit_for_bit(whole: Path, shards: Path, tmp_path: Path) -> None:
    chance = random.Random(time.time_ns())
    command = [sys.executable, "train.py", *recipe_arguments(shards, tmp_path, "save_interval=1ba")]
    for kill in range(2):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        goal = len(losses(tmp_path)) + chance.randint(2, 6)
        deadline = time.monotonic() + 200
        while len(losses(tmp_path)) < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))  # between a batch and its checkpoint, or in the middle of writing one
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "summary.json").exists(), f"killed too late, at kill {kill}"
    last = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert "autoresume: going on from" in last.stdout
    assert losses(tmp_path) == losses(whole)
    assert summary(tmp_path)["eval_loss_end"] == summary(whole)["eval_loss_end"]
    assert summary(tmp_path)["starts"] == 3


def test_a_run_that_is_broken_off_says_what_the_same_command_does(
    shards: Path, tmp_path: Path, warm_python: Path
) -> None:
    command = [warm_python, "train.py", *recipe_arguments(shards, tmp_path, "max_duration=100000ba")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:
        while len(losses(tmp_path)) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.splitlines()[-1]) == (
        130,
        "stopped; the same command goes on from the newest whole checkpoint, where the recipe has a save_folder",
    )
    assert json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[-1])["event"] == "end"


def test_a_longer_run_goes_on_from_the_last_checkpoint_that_is_whole(
    whole: Path, shards: Path, tmp_path: Path, run_command: Command
) -> None:
    first = run_command(
        "python", "train.py", *recipe_arguments(shards, tmp_path, "max_duration=6ba", "scheduler.t_max=24ba")
    )
    assert first.returncode == 0, first.stderr
    assert "not what this run began with" not in first.stdout
    seen = json.loads((tmp_path / "data.json").read_text())
    assert list(seen) == [str(shards / "train")]
    (tmp_path / "data.json").write_text(json.dumps(dict.fromkeys(seen, "other")))  # as if it had been other data
    newest = tmp_path / "checkpoints" / "ep0-ba6-rank0.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    again = run_command("python", "train.py", *recipe_arguments(shards, tmp_path, "scheduler.t_max=24ba"))
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stdout
    assert "ep0-ba3-rank0.pt; ignored ep0-ba6-rank0.pt: not whole" in again.stdout
    assert f"note: data or code is not what this run began with; samples are counted on: {shards}/train" in (
        again.stdout
    )
    assert losses(tmp_path) == losses(whole)


@pytest.mark.parametrize(
    ("launcher", "devices", "more", "resumed"),
    [
        ("composer", 2, ["fsdp_config=null"], False),
        ("launch", 2, ["fsdp_config.state_dict_type=sharded"], True),
        (
            "launch",
            4,
            ["fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_shard_degree: 2}"],
            False,
        ),
    ],
    ids=["ddp", "fsdp2-sharded-and-resumed", "fsdp2-replicated"],
)
def test_several_processes_learn_what_one_does(
    whole: Path,
    shards: Path,
    tmp_path: Path,
    run_command: Command,
    launcher: str,
    devices: int,
    more: list[str],
    resumed: bool,
) -> None:
    for steps in (6, 13) if resumed else (6,):
        length = [f"max_duration={steps}ba", f"scheduler.t_max={STEPS}ba"]
        result = run_command(launcher, "-n", devices, "train.py", *recipe_arguments(shards, tmp_path, *more, *length))
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{devices} devices × 1 micro-batches × {8 // devices}" in result.stdout
        assert ("sharding: 2 copies, each over 2 devices" in result.stderr) == (devices == 4)
        assert ("autoresume: going on from" in result.stdout) == (steps == 13)
        assert "attention: flash → sdpa (cpu)" in result.stderr
    if resumed:  # the older ones went, and nothing else
        kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir() and not p.is_symlink())
        assert kept == ["ep0-ba12", "ep0-ba13"]
        alone_now = run_command("python", "train.py", *recipe_arguments(shards, tmp_path, *more))
        assert alone_now.returncode == 1
        assert "ep0-ba13 is a sharded checkpoint" in alone_now.stderr
    alone = losses(whole)
    assert losses(tmp_path) == pytest.approx({step: alone[step] for step in range(steps)}, rel=2e-5)
    assert summary(tmp_path)["devices"] == devices


def test_a_batch_that_two_processes_cannot_share_is_said_once(
    shards: Path, tmp_path: Path, run_command: Command
) -> None:
    result = run_command(
        "launch", "-n", "2", "train.py", *recipe_arguments(shards, tmp_path, "global_train_batch_size=9")
    )
    assert result.returncode != 0
    assert result.stderr.count("9 sequences cannot be shared by 2 devices; 8 or 10 can") == 1


def test_tasks_that_are_never_due_are_not_built() -> None:
    from recipes.training.watching import tasks_in_the_loop

    words = ["icl_tasks=[{label: mine}]", "eval_interval=0ba", "eval_first=false"]
    recipe, nothing = load(ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml", words), SimpleNamespace()
    assert tasks_in_the_loop(recipe, recipe.values, nothing, Path(), nothing, nothing) == []  # type: ignore[arg-type]


def test_what_was_not_done_behind_the_last_checkpoint_is_made_up_for(
    shards: Path, tmp_path: Path, run_command: Command
) -> None:
    rows = [{"query": "My fellow", "choices": ["citizens", "banana"], "gold": n % 2} for n in range(4)]
    write_jsonl(tmp_path / "task.jsonl", rows)
    task = f"label: mc, dataset_uri: {tmp_path}/task.jsonl, num_fewshot: [0], icl_task_type: multiple_choice"
    run, exports = tmp_path / "run", tmp_path / "exports"
    saver = f"callbacks.hf_checkpointer={{save_folder: {exports}, save_interval: 1dur}}"
    # tasks alone are evaluated first too
    words = ["max_duration=4ba", f"icl_tasks=[{{{task}}}]", "eval_first=true", "eval_loader=null", "eval_interval=2ba"]
    words += ["eval_subset_num_batches=2", "device_eval_batch_size=2"]  # of two choices: one example a batch
    command = ["python", "train.py", *recipe_arguments(shards, run, *words, saver)]
    first = run_command(*command)
    assert first.returncode == 0, first.stderr
    records = [json.loads(line) for line in (run / "tasks.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 2, 4]
    assert records[0]["tasks"][0]["examples"] == 2
    exported = exports / "huggingface" / "ba4"
    assert (exported / "config.json").is_file()

    lines = (run / "tasks.jsonl").read_text().splitlines(keepends=True)
    (run / "tasks.jsonl").write_text("".join(lines[:-1]))
    (run / "summary.json").unlink()
    shutil.rmtree(exported)
    again = run_command(*command)
    assert again.returncode == 0, again.stderr
    made_up = [json.loads(line) for line in (run / "tasks.jsonl").read_text().splitlines()]
    assert [record["step"] for record in made_up] == [0, 2, 4]
    assert made_up[-1]["tasks"][0]["score"] == json.loads(lines[-1])["tasks"][0]["score"]
    assert (exported / "config.json").is_file()


def test_what_a_callback_has_ended_early_is_ended(shards: Path, tmp_path: Path, run_command: Command) -> None:
    stopper = "{monitor: LanguageCrossEntropy, dataloader_label: eval, patience: 1ba, min_delta: 100}"
    words = [f"callbacks.early_stopper={stopper}", "eval_interval=2ba", "max_duration=12ba"]
    command = ["python", "train.py", *recipe_arguments(shards, tmp_path, *words)]
    ended = run_command(*command)
    assert ended.returncode == 0, ended.stderr
    assert "by one of its callbacks" in ended.stdout
    came_to = json.loads((tmp_path / "summary.json").read_text())
    assert came_to["steps"] < 12
    assert (came_to["ended_early"], came_to["stopped"]) == ("by one of its callbacks", None)
    assert "finished before, nothing to do" in run_command(*command).stdout
    saved = run_command(*command, "only_composer_checkpoint=true")
    assert saved.returncode == 0, saved.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["ended_early"] == "by one of its callbacks"


def test_checkpoints_of_another_model_are_not_gone_on_from(whole: Path, shards: Path, run_command: Command) -> None:
    result = run_command(
        "python", "train.py", *recipe_arguments(shards, whole, "model.d_model=64", "max_duration=30ba")
    )
    assert result.returncode == 1
    assert "are of another model (d_model 32 → 64): choose another run_name or save_folder" in result.stderr
    result = run_command(
        "python", "train.py", *recipe_arguments(shards, whole, "optimizer.lr=0.5", "max_duration=30ba")
    )
    assert result.returncode == 1
    assert "→ 0.5 would change nothing: put it back, or choose another run_name" in result.stderr
    for seed in ("seed", "train_loader.dataset.shuffle_seed"):
        result = run_command("python", "train.py", *recipe_arguments(shards, whole, f"{seed}=99", "max_duration=30ba"))
        assert result.returncode == 1
        assert "train_loader.dataset.shuffle_seed 17 → 99 would change nothing: put it back" in result.stderr


def test_a_finished_run_is_not_renamed_to_another_recipe(whole: Path, shards: Path, run_command: Command) -> None:
    before = (whole / "recipe.yaml").read_bytes()
    for override in ("seed=99", "max_duration=6ba"):
        result = run_command("python", "train.py", *recipe_arguments(shards, whole, override))
        assert result.returncode == 1
        assert f"is at step {STEPS}, and this recipe has" in result.stderr
        assert f"it would train nothing ({override.split('=')[0]} " in result.stderr
    assert (whole / "recipe.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_seq_len=64", "hold 32 tokens a sequence, the recipe wants 64"),
        ("model.vocab_size=256", "set model.vocab_size to at least 512"),
        ("load_path=nothing.pt", "no checkpoint: nothing.pt does not exist"),
        ("loggers.wandb={}", "pip install wandb"),
        ("precision=amp_fp16", "Composer trains in amp_fp16 on one alone"),
        ("save_folder=README.md/checkpoints", "is not a writable folder"),
    ],
)
def test_preflight_finds_what_would_stop_a_run(
    shards: Path, tmp_path: Path, run_command: Command, override: str, words: str
) -> None:
    result = run_command("python", "train.py", *recipe_arguments(shards, tmp_path, override))
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_cut_from_longer_shards_is_said(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import train

    monkeypatch.chdir(ROOT)
    for length, said in ((16, True), (32, False)):
        assert train.main([*recipe_arguments(shards, tmp_path, f"max_seq_len={length}", "dry_run=true")]) == 0
        printed = capsys.readouterr().out
        assert ("of each the first 16 tokens; the other 16 are never read" in printed) == said


def test_damaged_shards_and_another_tokenizer_are_found_before_the_run(
    shards: Path, tmp_path: Path, run_command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    shard = next((copy / "train").glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:-1])
    tokenizer = copy / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("\u0120the", "\u0120thé", 1))
    arguments = recipe_arguments(copy, tmp_path / "run")
    result = run_command("python", "train.py", *arguments)
    assert result.returncode == 1
    assert f"missing or truncated shard {shard}" in result.stderr
    assert "were made with another tokenizer" in result.stderr


def test_a_flipped_bit_in_a_training_shard_is_found_before_the_run(
    shards: Path, tmp_path: Path, run_command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    shard = next((copy / "train").glob("*.mds"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 64
    shard.write_bytes(content)
    result = run_command("python", "train.py", *recipe_arguments(copy, tmp_path / "run"))
    assert result.returncode == 1
    assert f"corrupt shard {shard}" in result.stderr
    assert "Traceback" not in result.stderr


def test_shards_that_were_read_are_not_read_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, run = tmp_path / "copy", tmp_path / "run"
    shutil.copytree(shards, copy)
    file, *arguments = recipe_arguments(copy, run)
    recipe = load(file, arguments)
    read: list[str] = []
    monkeypatch.setattr(data_record, "digest_problems", lambda split, _: read.append(str(split)) or [])
    for _ in range(2):
        data_record.refuse_damage(run, recipe)
    assert read == [str(copy / "train")]
    next((copy / "train").glob("*.mds")).touch()
    data_record.refuse_damage(run, recipe)
    assert len(read) == 2
    monkeypatch.setattr(data_record, "READ_BYTES", 10)
    (run / SHARDS_READ).unlink()
    data_record.refuse_damage(run, recipe)
    assert len(read) == 2


def test_traces_lie_in_the_run_folder(shards: Path, tmp_path: Path, run_command: Command) -> None:
    schedule = "schedule: {wait: 0, warmup: 1, active: 1, repeat: 1}"
    profiler = f"profiler={{{schedule}, json_trace_handler: {{merged_trace_filename: all.json}}}}"
    arguments = recipe_arguments(shards, tmp_path, profiler, "run_name=traced", "max_duration=6ba")
    result = run_command("python", "train.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "traces" / "all.json").is_file()
    assert [*(tmp_path / "torch_traces").iterdir()]
    assert not (ROOT / "traced").exists()


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["save_num_checkpoints_to_keep=2"], 3),
        (["save_num_checkpoints_to_keep=-1"], 8),
        (["save_num_checkpoints_to_keep=-1", "save_interval=0.5dur"], 2),
        (["save_num_checkpoints_to_keep=2", "save_interval=1000ba"], 1),
    ],
)
def test_room_is_asked_for_all_checkpoints_that_are_there_at_once(
    shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], count: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    file, *arguments = recipe_arguments(shards, tmp_path, *overrides)
    ((_, text),) = disk_problems(load(file, arguments))
    each = 12 * count_parameters(load(file, arguments)["model"]).total
    assert text.startswith(f"{count} checkpoints at once take" if count > 1 else "one checkpoint takes")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=count * each))
    assert not [*disk_problems(load(file, arguments))]
    file, *arguments = recipe_arguments(shards, whole, *overrides[:1], "max_duration=30ba")  # two are there, of step 24
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=each * (2 if "-1" in overrides[0] else 1)))
    assert not [*disk_problems(load(file, arguments))]


# A file system with room for the files of a run and two of its checkpoints and a half.
SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2"
shift 2
exec "$@"
"""


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a mount namespace")
@pytest.mark.parametrize("launch", [[], ["-m", "recipes.launch", "-n", "2"]], ids=["full", "sharded"])
def test_a_disk_that_fills_up_is_said_in_words(shards: Path, whole: Path, tmp_path: Path, launch: list[str]) -> None:
    size = (whole / "checkpoints" / "ep0-ba24-rank0.pt").stat().st_size
    arguments = recipe_arguments(shards, tmp_path / "run", "train_loader.num_workers=0", "save_interval=1ba")
    (tmp_path / "run").mkdir()
    lie = tmp_path / "lie"  # so that preflight does not foresee it
    lie.mkdir()
    (lie / "sitecustomize.py").write_text("import shutil\nshutil.disk_usage = lambda _: type('', (), {'free': 1e15})\n")
    shell = ["unshare", "--mount", "sh", "-ec", SMALL_DISK, "sh", str(int(2.5 * size)), str(tmp_path / "run")]
    result = subprocess.run(
        [*shell, sys.executable, *launch, "train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{lie}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert f"save_folder: {tmp_path / 'run'}" in result.stderr
    assert launch or "/run/checkpoints/ep0-ba" in result.stderr
    assert "has no room on its disk (No space left on device): make some; the same command goes on" in result.stderr
    assert launch or (result.returncode == 1 and "Traceback" not in result.stderr)


def test_a_run_of_other_code_or_data_is_not_as_recorded(tmp_path: Path) -> None:
    rows, code = tmp_path / "rows", tmp_path / "own.py"
    rows.mkdir()
    (rows / "train.jsonl").write_text("{}")
    code.write_text("A = 1")
    loader = {"name": "finetuning", "dataset": {"hf_name": str(rows)}}
    recipe = Recipe(Path("x.yaml"), {"code_paths": [str(code)], "train_loader": loader}, {})
    assert data_record.is_as_recorded(tmp_path, recipe)  # a run that wrote nothing down
    assert data_record.record_data(tmp_path, recipe) == ""
    assert data_record.is_as_recorded(tmp_path, recipe)
    for file in (code, rows / "train.jsonl"):
        file.write_text("other")
        assert not data_record.is_as_recorded(tmp_path, recipe)
        assert data_record.record_data(tmp_path, recipe) == str(file)


def test_files_that_came_or_went_are_other_data(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text("{}")
    loader = {"name": "finetuning", "dataset": {"hf_name": str(tmp_path / "rows")}}
    recipe = Recipe(Path("x.yaml"), {"train_loader": loader}, {})
    data_record.record_data(tmp_path, recipe)
    more = tmp_path / "rows" / "more.jsonl"
    more.write_text("{}")
    assert data_record.record_data(tmp_path, recipe) == str(more)
    more.unlink()
    assert not data_record.is_as_recorded(tmp_path, recipe)


def test_damaged_shards_are_refused_at_every_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_record, "shard_folders", lambda _: [tmp_path])
    monkeypatch.setattr(data_record, "load_manifest", lambda _: SimpleNamespace(shards=[], files=[]))
    monkeypatch.setattr(data_record, "digest_problems", lambda *_: ["a shard is damaged"])
    for _ in range(2):
        with pytest.raises(RecipeError, match="prepare the shards again"):
            data_record.refuse_damage(tmp_path, Recipe(Path("x.yaml"), {}, {}))


def test_data_and_code_are_looked_for_where_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("pairs.jsonl", "rows.json", "deep/in/part.parquet", "mine/__init__.py")
    pairs, rows, part, code = (tmp_path / name for name in names)
    for file in (pairs, rows, part, code):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    for dataset, files in (
        ({"path": str(pairs)}, [pairs]),
        ({"hf_name": "json", "hf_kwargs": {"data_files": {"train": str(rows)}}}, [rows]),
        ({"hf_name": str(tmp_path / "deep"), "preprocessing_fn": "mine:prepare"}, [part, code]),
        ({"hf_name": "json", "preprocessing_fn": "no.such.module:prepare"}, []),
    ):
        recipe = Recipe(Path("x.yaml"), {"train_loader": {"name": "finetuning", "dataset": dataset}}, {})
        assert sorted(data_record._digests(recipe)) == sorted(str(file) for file in files)
