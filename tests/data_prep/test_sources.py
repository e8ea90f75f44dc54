"""What the inputs on the command line stand for."""

from pathlib import Path

import pytest

from data_prep.errors import PrepError
from data_prep.sources import find_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz", "d.jsonl.zst", "notes.txt", ".hidden.jsonl", "deep/e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def names(inputs: list[str], folder: Path) -> list[str]:
    return [str(Path(source.path).relative_to(folder)) for source in find_sources(inputs)]


def test_folder_glob_and_order(folder: Path) -> None:
    assert names([str(folder)], folder) == ["a.jsonl", "b.jsonl", "c.jsonl.gz", "d.jsonl.zst"]
    assert names([f"{folder}/*.jsonl"], folder) == ["a.jsonl", "b.jsonl"]
    assert names([f"{folder}/**/*.jsonl"], folder) == ["a.jsonl", "b.jsonl", "deep/e.jsonl"]
    assert names([f"{folder}/b.jsonl", f"{folder}/a.jsonl"], folder) == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["{}/none.jsonl"], "none.jsonl: no such file or folder"),
        (["{}/*.json"], "matches no .jsonl/.jsonl.gz/.jsonl.zst file"),
        (["{}/*.txt"], "matches no .jsonl/.jsonl.gz/.jsonl.zst file; 1 files match but have other names"),
        (["{}/notes.txt"], "notes.txt: expected a .jsonl/.jsonl.gz/.jsonl.zst file"),
        (["{}/a.jsonl", "{}/*.jsonl"], "a.jsonl is given twice"),
        (["/dev"], "a folder with no .jsonl"),
    ],
)
def test_refused(folder: Path, inputs: list[str], said: str) -> None:
    with pytest.raises(PrepError) as caught:
        find_sources([given.format(folder) for given in inputs])
    assert said in str(caught.value)
