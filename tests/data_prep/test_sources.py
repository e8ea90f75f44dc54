"""What the inputs on the command line stand for."""

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pytest

from data_prep import storage
from data_prep.errors import PrepError
from data_prep.manifest import MadeFrom, SourceRecord, differences
from data_prep.readers import open_reader
from data_prep.reading import SourceReader
from data_prep.sources import find_sources
from data_prep.storage import state_of


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


def test_names_of_json_lines_elsewhere(folder: Path) -> None:
    for name in ("c4-train.00000.json.gz", "d.json.zst", "dataset_infos.json"):
        (folder / "deep" / name).write_text("{}\n")
    deep = [f"deep/{name}" for name in ("c4-train.00000.json.gz", "d.json.zst")]
    assert names([f"{folder}/deep"], folder) == [*deep, "deep/e.jsonl"]
    assert names([f"{folder}/deep/*.json*"], folder) == [*deep, "deep/e.jsonl"]
    for given in (f"{folder}/deep/*.json", f"{folder}/deep/dataset_infos.json"):
        assert names([given], folder) == ["deep/dataset_infos.json"]


def test_files_with_other_names_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (".x", "index.json", "manifest.json", "shard.00000.mds"):
        (folder / name).touch()
    find_sources([str(folder), f"{folder}/deep/*.jsonl"])
    told = "of other names, not read"
    assert capsys.readouterr().err == f"note: {folder}: 1 file {told}: notes.md\n"
    for name in ("B.JSONL", "c.json", "d.csv", "e.zst"):
        (folder / name).touch()
    for given in (f"{folder}/*", f"file://{folder}"):
        find_sources([given])
        assert capsys.readouterr().err == f"note: {given}: 5 files {told}: B.JSONL, c.json, d.csv, e.zst, …\n"


def test_files_in_subfolders_are_told_unless_they_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "deep" / "er").mkdir()
    for name in ("deep/f.parquet", "deep/x.md", "deep/er/g.txt", "deep/.h.jsonl"):
        (folder / name).touch()
    names([str(folder)], folder)
    told = f"note: {folder}: 3 files in 2 subfolders, not read (they are with '{folder}/**/*')"
    assert told in capsys.readouterr().err
    names([f"{folder}/", f"{folder}/deep/*.*", f"{folder}/deep/er/g.txt"], folder)
    assert "in 1 subfolder" not in capsys.readouterr().err


def test_what_a_run_wrote_is_no_input_of_the_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    val = folder / "shards" / "val"
    val.mkdir(parents=True)
    for name in ("documents.jsonl", "rejected.jsonl", "mine.jsonl"):
        (val / name).write_text("{}\n")
    theirs = ["a.jsonl", "b.jsonl", "deep/e.jsonl", "shards/val/mine.jsonl"]
    for content, ours in (("[]", True), ("{}", True), ('{"splits": ["train"]}', False)):
        (val / "manifest.json").write_text(content)
        found = names([f"{folder}/**/*.jsonl"], folder)
        assert found == sorted([*theirs, *(f"shards/val/{n}.jsonl" for n in ("documents", "rejected") if ours)])
    told = "2 files of an earlier run's output, not read (give them by their names): documents.jsonl, rejected"
    assert told in capsys.readouterr().err
    url = f"file://{folder}"
    assert [source.path for source in find_sources([f"{url}/**/*.jsonl"])] == [f"{url}/{name}" for name in theirs]
    for given in (f"{url}/shards/val/documents.jsonl", f"{val}/documents.jsonl"):
        assert [source.path for source in find_sources([given])] == [given]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (["{}/none.jsonl"], "none.jsonl: no such file or folder"),
        (["{}/*.json"], "matches no .jsonl/.jsonl.gz/.jsonl.zst/.json.gz/.json.zst/.parquet/.txt file"),
        (["{}/*.md"], "matches no .jsonl/.jsonl.gz/.jsonl.zst/.json.gz/.json.zst/.parquet/.txt file to read."),
        (["{}/notes.md"], "notes.md: expected a .jsonl/.jsonl.gz/.jsonl.zst/.json.gz/.json.zst/.parquet/.txt file"),
        (["{}/a.jsonl", "{}/*.jsonl"], "a.jsonl is given twice"),
        (["/dev"], "a folder with no .jsonl"),
    ],
)
def test_refused(folder: Path, inputs: list[str], said: str) -> None:
    with pytest.raises(PrepError) as caught:
        find_sources([given.format(folder) for given in inputs])
    assert said in str(caught.value)


def test_a_table_is_refused_with_how_to_convert_it(tmp_path: Path) -> None:
    table = tmp_path / "a table.csv"
    table.write_text('text,id\n"one\ntwo ä",1\n')
    with pytest.raises(PrepError, match=r"expected a \.jsonl/") as caught:
        find_sources([str(table)])
    subprocess.run(["bash", "-c", str(caught.value).partition("with: ")[2]], check=True)
    assert json.loads((tmp_path / "a table.jsonl").read_text()) == {"text": "one\ntwo ä", "id": "1"}


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


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server of the folder, which knows no range requests and refuses what begins with an underscore."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/_"):
                self.send_error(503)
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_a_server_that_does_not_answer_is_not_taken_for_a_missing_file(server: str) -> None:
    assert [source.bytes for source in find_sources([f"{server}/a.jsonl"])] == [3]
    with pytest.raises(PrepError, match=r"none\.jsonl: no \.jsonl/.* file to read there"):
        find_sources([f"{server}/none.jsonl"])
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{server}/none.jsonl'"):
        state_of(f"{server}/none.jsonl")
    nobody = "http://127.0.0.1:9"
    for url, said in (
        (f"{server}/_a.jsonl", "ClientResponseError: 503, message='Service Unavailable'"),
        (f"{nobody}/a.jsonl", "ClientConnectorError: Cannot connect to host 127.0.0.1:9"),
        (f"{nobody}/*.jsonl", "Connect call failed"),
    ):
        with pytest.raises(OSError, match=said) as caught:
            find_sources([url])
        assert caught.value.filename == url


def test_a_format_is_that_of_a_url_without_its_query(server: str) -> None:
    (source,) = find_sources([f"{server}/a.jsonl?signature=abc/d.txt"])
    assert source.can_be_cut
    assert isinstance(open_reader(source, "text"), SourceReader)
    with pytest.raises(PrepError, match="file to read there"):
        find_sources([f"{server}/notes.md?signature=abc.jsonl"])


def test_what_is_kept_of_a_url_has_no_signature_and_is_known_again() -> None:
    def made(query: str) -> MadeFrom:
        source = SourceRecord(f"https://me:secret@a.org/b.jsonl{query}", 3, 7, "")
        return MadeFrom({}, "", {"before": [], "after": []}, [source])

    kept = made("?signature=abc").to_json()
    assert kept["sources"][0]["path"] == "https://a.org/b.jsonl"
    assert differences(MadeFrom.from_json(kept), made("?signature=other")) == []


def test_a_server_of_whole_files_is_words(server: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "long.jsonl").write_bytes(b'{"text": "a"}\n' * 100_000)
    monkeypatch.setattr(storage, "_BLOCK_BYTES", 1000)
    url = f"{server}/long.jsonl"
    with pytest.raises(
        PrepError, match=f"{url}: its server does not serve parts of files; fetch it, and give the file"
    ):
        list(SourceReader(find_sources([url])[0], "text").rows())
