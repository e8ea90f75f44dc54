"""What is found in a save folder, and what a run makes of it."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.callbacks import CheckpointSaver

from recipes.config.keys import COMMAND_LINE
from recipes.config.load import Recipe, load
from recipes.preflight.resuming import resume_notes, resume_problems
from recipes.preflight.weights import sharded_problems
from recipes.reports.runs import validation_loss
from recipes.reports.summary import is_finished, recipe_digest
from recipes.training import checkpoints
from recipes.training.checkpoints import (
    SHARDED,
    as_composer_lists,
    find_checkpoints,
    keep_rotating,
    newest_in,
    of_the_other_kind,
    resumes,
    set_latest,
    to_go_on_from,
)
from recipes.training.sharded_folder import lacks

NESTED = "ep{epoch}-ba{batch}/rank{rank}.pt"


def write_full(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return path


def write_sharded(path: Path) -> Path:
    """Of two files, with 12 and 5 bytes."""
    path.mkdir(parents=True)
    places = (("__0_0.distcp", 0, 8), ("__0_0.distcp", 8, 4), ("__1_0.distcp", 0, 5))
    stored = {key: SimpleNamespace(relative_path=p, offset=o, length=n) for key, (p, o, n) in enumerate(places)}
    (path / ".metadata").write_bytes(pickle.dumps(SimpleNamespace(storage_data=stored)))
    (path / "__0_0.distcp").write_bytes(bytes(12))
    (path / "__1_0.distcp").write_bytes(bytes(5))
    return path


def test_checkpoints_in_folders_of_their_own(tmp_path: Path) -> None:
    for step in (3, 12, 6):
        write_full(tmp_path / f"ep0-ba{step}" / "rank0.pt")
    torn = tmp_path / "ep0-ba15" / ".partial-rank0.pt"
    torn.parent.mkdir()
    torn.touch()
    found = find_checkpoints(tmp_path, NESTED, sharded=False)
    assert found.newest == tmp_path / "ep0-ba12" / "rank0.pt"
    assert [path.parent.name for path in found.whole] == ["ep0-ba3", "ep0-ba6", "ep0-ba12"]
    set_latest(tmp_path, "latest-rank0.pt", found)
    assert (tmp_path / "latest-rank0.pt").resolve() == found.newest
    assert not torn.exists()


@pytest.mark.parametrize("latest", ["latest-sharded-rank0", "links/latest-rank0"])
def test_a_link_that_a_kill_left_does_not_lead_to_what_is_thrown_away(tmp_path: Path, latest: str) -> None:
    whole = write_sharded(tmp_path / "ep0-ba9")
    (whole / "__0_0.distcp").write_bytes(b"weights 1234")
    link = tmp_path / latest
    link.parent.mkdir(exist_ok=True)
    left = link.with_name(f".partial-{link.name}")
    left.symlink_to("ep0-ba9")
    set_latest(tmp_path, latest, find_checkpoints(tmp_path, "ep{epoch}-ba{batch}", sharded=True))
    assert (whole / "__0_0.distcp").read_bytes() == b"weights 1234"
    assert link.resolve() == whole
    assert not left.is_symlink()


def test_names_with_the_runs_name_and_with_times(tmp_path: Path) -> None:
    for name in ("mine-ba9-1.5-rank0.pt", "mine-ba12-12.25-rank0.pt"):
        write_full(tmp_path / name)
    found = find_checkpoints(tmp_path, "{run_name}-ba{batch}-{total_wct}-rank{rank}.pt", sharded=False)
    assert found.newest == tmp_path / "mine-ba12-12.25-rank0.pt"
    assert len(found.whole) == 2


def test_the_newest_of_a_folder_may_be_full_or_sharded(tmp_path: Path, recipe_file: Callable[[str], Path]) -> None:
    recipe = load(recipe_file("run_name: mine\n"))
    assert newest_in(tmp_path, recipe) is None
    full, sharded = write_full(tmp_path / "ep0-ba3-rank0.pt"), write_sharded(tmp_path / "ep0-ba9")
    assert newest_in(tmp_path, recipe) == sharded
    newer = write_full(tmp_path / "ep0-ba12-rank0.pt")
    assert newest_in(tmp_path, recipe) == newer != full


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "__1_0.distcp").unlink(),
        lambda folder: (folder / "__0_0.distcp").write_bytes(bytes(11)),
        lambda folder: (folder / ".metadata").write_bytes(b"garbage"),
        lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:40]),
        lambda folder: (folder / ".metadata").unlink(),
    ],
)
def test_a_sharded_checkpoint_that_lacks_a_part_is_not_whole(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    older, newer = write_sharded(tmp_path / "ep0-ba3"), write_sharded(tmp_path / "ep0-ba6")
    assert find_checkpoints(tmp_path, SHARDED, sharded=True).newest == newer
    damage(newer)
    found = find_checkpoints(tmp_path, SHARDED, sharded=True)
    assert (found.newest, found.broken) == (older, (newer,))
    had_all = (newer / ".metadata").exists()
    set_latest(tmp_path, "latest", found)
    assert not newer.exists()
    assert (tmp_path / "damaged-ep0-ba6").is_dir() == had_all
    assert find_checkpoints(tmp_path, SHARDED, sharded=True).broken == ()


def test_a_checkpoint_of_torch_is_whole_until_a_byte_is_cut_off(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    dcp.save({"a": torch.arange(1000), "b": {"c": torch.zeros(3, 4)}, "step": 7}, checkpoint_id=tmp_path, no_dist=True)
    assert lacks(tmp_path) is None
    (part,) = tmp_path.glob("*.distcp")
    part.write_bytes(part.read_bytes()[:-1])
    assert lacks(tmp_path) == part.name


@pytest.mark.parametrize("sharded", [True, False])
def test_a_checkpoint_that_somebody_removed_ends_no_run(tmp_path: Path, sharded: bool) -> None:
    write = write_sharded if sharded else write_full
    paths = [write(tmp_path / f"ep0-ba{step}") for step in (1, 2, 3)]
    saver = CheckpointSaver(folder=str(tmp_path), num_checkpoints_to_keep=1)
    keep_rotating(saver)
    saver.saved_checkpoints = [as_composer_lists(path) for path in paths]
    shutil.rmtree(paths[0]) if sharded else paths[0].unlink()
    saver._rotate_checkpoints(sharding_enabled=sharded)
    assert [path.exists() for path in paths] == [False, False, True]


def test_a_sharded_checkpoint_is_listed_by_a_file_in_its_folder(tmp_path: Path) -> None:
    # Composer removes the folder that a listed file lies in
    assert Path(as_composer_lists(write_sharded(tmp_path / "ep0-ba3"))).parent == tmp_path / "ep0-ba3"
    full = write_full(tmp_path / "ep0-ba3-rank0.pt")
    assert as_composer_lists(full) == str(full)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"autoresume": False}, False),
        ({"save_overwrite": True}, False),
        ({"save_overwrite": True, "autoresume": True}, True),
        ({"save_weights_only": True, "autoresume": True}, False),
    ],
)
def test_when_a_run_goes_on(settings: dict[str, bool], expected: bool) -> None:
    assert resumes({"save_folder": "x", **settings}) is expected
    assert not resumes(settings)


def test_checkpoints_that_a_run_would_pass_over_are_told(
    recipe_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "kept"
    text = f"save_folder: {folder}\nrun_name: a\nmodel: {{}}\nfsdp_config: {{state_dict_type: sharded}}\n"
    recipe = load(recipe_file(text))
    sharded = write_sharded(folder / "ep0-ba6")
    assert of_the_other_kind(recipe) == sharded  # one process writes full ones
    write_full(folder / "ep0-ba9-rank0.pt")
    assert of_the_other_kind(recipe) is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert of_the_other_kind(recipe) == folder / "ep0-ba9-rank0.pt"
    ((key, said),) = resume_problems(recipe)
    assert key == ("save_folder",)
    assert f"where pretrained={folder / 'ep0-ba9-rank0.pt'} starts from its weights" in said
    assert "is a full checkpoint" in said
    anew = load(recipe_file(text + "autoresume: false\n"))
    assert to_go_on_from(anew) is None
    ((_, said),) = resume_problems(anew)
    assert "does not go on from it" in said
    assert not list(resume_problems(load(recipe_file(text + "save_overwrite: true\n"))))


GOES_ON = """
run_name: a
save_folder: runs/a/checkpoints
model: {}
optimizer: {name: decoupled_adamw, lr: 1.0e-3, betas: [0.9, 0.95]}
scheduler: {name: cosine_with_warmup, t_warmup: 10ba, alpha_f: 0.1}
max_duration: 60ba
max_seq_len: 32
global_train_batch_size: 8
"""


@pytest.fixture
def goes_on(
    recipe_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Recipe]:
    """A recipe whose run is at step 60, with what the command line says now."""
    monkeypatch.chdir(tmp_path)
    write_full(tmp_path / "runs" / "a" / "checkpoints" / "ep0-ba60-rank0.pt")
    (tmp_path / "runs" / "a" / "recipe.yaml").write_text(GOES_ON)
    return lambda *words: load(recipe_file(GOES_ON), words)


def test_a_longer_run_says_what_becomes_of_its_learning_rate(goes_on: Callable[..., Recipe]) -> None:
    assert not list(resume_notes(goes_on()))
    (note,) = resume_notes(goes_on("max_duration=80ba"))
    assert note.startswith("max_duration 60ba → 80ba at step 60 of this run: the cosine_with_warmup is stretched")
    assert note.endswith("the learning rate goes from 0.0001 to 0.000269")
    assert not list(resume_notes(goes_on("max_duration=80ba", "scheduler.t_max=60ba")))
    assert not list(resume_notes(goes_on("max_duration=15360tok")))  # as many steps


def test_another_batch_is_told(goes_on: Callable[..., Recipe]) -> None:
    (note,) = resume_notes(goes_on("global_train_batch_size=16"))
    assert note.startswith("global_train_batch_size 8 → 16 at step 60 of this run")
    assert "the learning rate does not follow" in note


def test_what_a_checkpoint_would_undo_is_refused_at_its_own_place(goes_on: Callable[..., Recipe]) -> None:
    recipe = goes_on("optimizer.lr=1e-4", "optimizer.betas=[0.9, 0.99]", "max_duration=80ba")
    found = dict(resume_problems(recipe))
    assert set(found) == {("optimizer", "lr"), ("optimizer", "betas", 1)}
    assert {recipe.place(key) for key in found} == {COMMAND_LINE}
    assert "0.001 → 0.0001 would change nothing" in found["optimizer", "lr"]


def test_a_sharded_checkpoint_is_not_for_one_process(
    recipe_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sharded(tmp_path / "ep0-ba6")
    recipe = load(recipe_file(f"load_path: {folder}\nfsdp_config: {{state_dict_type: sharded}}\n"))
    ((key, said),) = sharded_problems(recipe)
    assert key == ("load_path",)
    assert f"`pretrained={folder}` reads its weights" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not list(sharded_problems(recipe))


def test_the_validation_loss_of_several_loaders_is_their_mean() -> None:
    loss = "LanguageCrossEntropy"
    assert validation_loss({f"metrics/eval/{loss}": 2.0, "metrics/eval/LanguagePerplexity": 9.0}) == 2.0
    assert validation_loss({f"metrics/eval/a/{loss}": 2.0, f"metrics/eval/b/{loss}": 4.0}) == 3.0
    assert validation_loss({"loss/train/total": 1.0}) is None


def test_what_is_to_start_anew_is_not_finished_before(tmp_path: Path) -> None:
    for changes, expected in (
        ({}, True),
        ({"save_overwrite": True, "autoresume": True}, True),
        ({"save_overwrite": True}, False),
        ({"autoresume": False}, False),
    ):
        recipe = Recipe(Path("x.yaml"), {"max_duration": "1ba", **changes}, {})
        (tmp_path / "summary.json").write_text(json.dumps({"recipe_sha256": recipe_digest(recipe)}))
        assert is_finished(tmp_path, recipe) == expected, changes


def test_an_export_at_the_start_names_its_checkpoint(
    recipe_file: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is of the weights that the run began with."""
    monkeypatch.chdir(tmp_path)
    text = """
run_name: x
save_folder: checkpoints
model: {name: mpt_causal_lm}
only_hf_checkpoint: true
save_overwrite: true
"""
    ((key, said),) = resume_problems(load(recipe_file(text)))
    assert key == ("only_hf_checkpoint",)
    assert "this start finds no checkpoint: name one with load_path" in said
    assert not list(resume_problems(load(recipe_file(text + "load_path: x.pt\n"))))
    (tmp_path / "checkpoints").mkdir()
    with zipfile.ZipFile(tmp_path / "checkpoints" / "ep0-ba4-rank0.pt", "w") as archive:
        archive.writestr("x/data.pkl", "")
    of_a_run = text.replace("save_overwrite: true", "max_duration: 4ba").replace("only_hf_checkpoint: true\n", "")
    (tmp_path / "recipe.yaml").write_text(of_a_run)
    export = "only_hf_checkpoint: true\ncallbacks: {hf_checkpointer: {save_folder: out}}\nload_path: x.pt\n"
    assert not list(resume_problems(load(recipe_file(of_a_run + export, "export.yaml"))))
    ((key, _),) = resume_problems(load(recipe_file(of_a_run + "autoresume: false\n", "anew.yaml")))
    assert key == ("save_folder",)


def test_a_checkpoint_gets_its_name_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(checkpoints, "flush", lambda path: done.append(f"flush {Path(path).name}"))
    monkeypatch.setattr(checkpoints.os, "replace", lambda *_: done.append("rename"))
    checkpoints._then_rename(lambda _, path: done.append(f"write {Path(path).name}"))({}, str(tmp_path / "a.pt"))
    assert done == ["write .partial-a.pt", "flush .partial-a.pt", "rename", f"flush {tmp_path.name}"]
