"""What the inputs on the command line stand for."""

from pathlib import Path

import fsspec
import pytest

from data_prep.errors import PrepError
from data_prep.sources import find_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz", "d.jsonl.zst", "notes.md", ".hidden.jsonl", "deep/e.jsonl"):
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
        (["{}/*.json"], "matches no .jsonl/.jsonl.gz/.jsonl.zst/.parquet/.txt file"),
        (["{}/*.md"], "matches no .jsonl/.jsonl.gz/.jsonl.zst/.parquet/.txt file; 1 files match but have other names"),
        (["{}/notes.md"], "notes.md: expected a .jsonl/.jsonl.gz/.jsonl.zst/.parquet/.txt file"),
        (["{}/a.jsonl", "{}/*.jsonl"], "a.jsonl is given twice"),
        (["/dev"], "a folder with no .jsonl"),
    ],
)
def test_refused(folder: Path, inputs: list[str], said: str) -> None:
    with pytest.raises(PrepError) as caught:
        find_sources([given.format(folder) for given in inputs])
    assert said in str(caught.value)


def test_a_file_whose_server_says_no_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/sizes/a.jsonl", b"{}\n")
    monkeypatch.setattr(type(store), "info", lambda self, path: {"name": path, "size": None, "type": "file"})
    with pytest.raises(PrepError, match=r"memory://sizes/a\.jsonl: its server does not say how large it is"):
        find_sources(["memory://sizes/a.jsonl"])


def test_text_files_beside_others_are_refused(folder: Path) -> None:
    (folder / "licence.txt").write_text("x")
    with pytest.raises(PrepError, match=r"1 \.txt files beside 4 others; say which are documents, as with"):
        find_sources([str(folder)])
    assert names([f"{folder}/*.txt"], folder) == ["licence.txt"]


def test_urls(folder: Path) -> None:
    (folder / "deep" / "f.txt").write_text("x")
    found = find_sources([f"file://{folder}", f"file://{folder}/deep/*.jsonl", f"file://{folder}/deep/f.txt"])
    assert [source.path for source in found] == [
        *(f"file://{folder}/{name}" for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz", "d.jsonl.zst")),
        f"file://{folder}/deep/e.jsonl",
        f"file://{folder}/deep/f.txt",
    ]
    assert all(source.bytes == (1 if source.path.endswith("txt") else 3) and source.mtime_ns > 0 for source in found)
    for url, said in (
        (f"file://{folder}/none", "none: no .jsonl"),
        ("nothing://a/b.jsonl", "unknown scheme nothing://; expected s3, gs, hf or another"),
    ):
        with pytest.raises(PrepError) as caught:
            find_sources([url])
        assert said in str(caught.value)
