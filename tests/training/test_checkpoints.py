"""What is found in a save folder, and what a run makes of it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.config.load import load
from recipes.preflight.training import resume_problems
from recipes.reports.runs import validation_loss
from recipes.training.checkpoints import (
    as_composer_lists,
    find_checkpoints,
    of_the_other_kind,
    resumes,
    set_latest,
    to_go_on_from,
)

NESTED = "ep{epoch}-ba{batch}/rank{rank}.pt"


def write_full(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return path


def write_sharded(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / ".metadata").touch()
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
    assert "is a full checkpoint" in said
    anew = load(recipe_file(text + "autoresume: false\n"))
    assert to_go_on_from(anew) is None
    ((_, said),) = resume_problems(anew)
    assert "does not go on from it" in said
    assert not list(resume_problems(load(recipe_file(text + "save_overwrite: true\n"))))


def test_the_validation_loss_of_several_loaders_is_their_mean() -> None:
    loss = "LanguageCrossEntropy"
    assert validation_loss({f"metrics/eval/{loss}": 2.0, "metrics/eval/LanguagePerplexity": 9.0}) == 2.0
    assert validation_loss({f"metrics/eval/a/{loss}": 2.0, f"metrics/eval/b/{loss}": 4.0}) == 3.0
    assert validation_loss({"loss/train/total": 1.0}) is None
