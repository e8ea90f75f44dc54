"""A finished output in an object store: copied from where it was made on this machine, the manifest of the main split
last, so that where `URL/train/manifest.json` exists, all that was published with it does too.

Files go up with Streaming's uploader, which tries again and has the settings that training reads with (S3_ENDPOINT_URL,
S3_CANNED_ACL, credentials), to the stores that it and fsspec call by the same URLs; to others with fsspec.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from data_prep.errors import PrepError, refuse_not_utf8
from data_prep.manifest import MANIFEST, Manifest, load_manifest, parse_manifest
from data_prep.plan import Plan, finished
from data_prep.sources import OWN_FILE
from data_prep.storage import filesystem_of, remote_errors
from data_prep.writing import INDEX

STREAMING_SCHEMES = ("s3", "gs", "oci")
MADE_TO_COPY = ".made-to-be-copied"  # in a work folder whose splits no one else wants
UPLOADED = ".uploaded.jsonl"  # what has been copied, in the work folder, so that a run that is cut off goes on


def work_folder(url: str, asked: str | None) -> Path:
    """Where the output of a URL is made: `asked`, or a folder of the user's cache that the URL names."""
    if asked:
        refuse_not_utf8("--work ", asked)
        return Path(os.path.expanduser(asked))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "data_prep" / hashlib.sha256(url.encode()).hexdigest()[:16]


class RemoteOutput:
    """The output folder behind a URL."""

    def __init__(self, url: str):
        scheme, _, place = url.partition("://")
        if not scheme or not place.strip("/"):
            raise PrepError(f"--out {url}: expected SCHEME://BUCKET/FOLDER; it names no place.")
        if scheme == "memory":
            raise PrepError(f"--out {url}: what is written there ends with this process; give another --out.")
        self.url = url.rstrip("/")
        with remote_errors(url):
            self._filesystem, self._root = filesystem_of(self.url)

    def is_finished(self, plan: Plan) -> bool:
        """`finished`, of the store."""
        return finished(self.url, plan, self._manifest, self._problems)

    def refuse_foreign(self, work: Path, splits: list[str]) -> None:
        """Refuse to write where something stands that is not of this main split (the last of `splits`).

        Raises:
            PrepError: a split's folder holds files and no manifest, or the manifest of another run.
        """
        begun = _read_uploaded(work, self.url).begun
        for name in splits:
            manifest = self._manifest(name)
            if manifest is None and name not in begun and self._files(name):
                words = f"was not written by this command (no {MANIFEST} in it)"
            elif manifest is not None and not manifest.stands_at(name, splits[-1]):
                words = f"belongs to {self.url}/{manifest.main_split}, as its split {manifest.split!r}"
            else:
                continue
            raise PrepError(f"{self.url}/{name} {words}; give another --out or another name.")

    def upload(self, work: Path, splits: list[str]) -> int:
        """Copy the splits, the main one last; returns the bytes copied. Files that were copied before are not again."""
        before = _read_uploaded(work, self.url)
        old = self._manifest(splits[-1])
        replaced = sorted({*before.replaced, *(old.splits if old else ())} - {*splits})
        _note(work, {"url": self.url, "begun": splits, "replaced": replaced})
        copied = 0
        with remote_errors(self.url):
            main = f"{self._root}/{splits[-1]}/{MANIFEST}"
            if self._filesystem.exists(main):
                self._filesystem.rm(main)
            for name in replaced:
                manifest = self._manifest(name)
                if manifest is not None and manifest.stands_at(name, splits[-1]):
                    self._remove_others(name, set())
            for name in splits:
                manifest = load_manifest(work / name)
                assert manifest is not None
                wanted = {record.name: record for record in (*manifest.shards, *manifest.files)}
                if "file" in self._filesystem.protocol:  # stores have no folders; to make one may make a bucket
                    self._filesystem.makedirs(f"{self._root}/{name}", exist_ok=True)
                self._remove_others(name, {*wanted, MANIFEST})
                put = self._putter(work / name, name)
                for record in sorted(wanted.values(), key=lambda record: record.name == INDEX):
                    key = f"{name}/{record.name}"
                    if before.files.get(key) == record.sha256 and self._size(key) == record.bytes:
                        continue
                    self._put(put, name, record.name, record.bytes)
                    copied += record.bytes
                    _note(work, {"url": self.url, "key": key, "sha256": record.sha256})
                self._put(put, name, MANIFEST, (work / name / MANIFEST).stat().st_size)
        return copied

    def _putter(self, folder: Path, split: str) -> Callable[[str], None]:
        """What copies a file of `folder` to the split."""
        if self.url.partition("://")[0] not in STREAMING_SCHEMES:
            return lambda name: self._filesystem.put_file(str(folder / name), f"{self._root}/{split}/{name}")
        from streaming.base.storage import CloudUploader  # only here: it imports torch

        logging.getLogger("streaming.base.storage.upload").setLevel(logging.ERROR)  # it warns of files to upload
        uploader = CloudUploader.get((str(folder), f"{self.url}/{split}"), keep_local=True, exist_ok=True)
        return cast("Callable[[str], None]", uploader.upload_file)

    def _put(self, put: Callable[[str], None], split: str, name: str, size: int) -> None:
        put(name)
        found = self._size(f"{split}/{name}")
        if found != size:
            raise OSError(None, f"{found} bytes arrived, expected {size}", f"{self.url}/{split}/{name}")

    def _size(self, key: str) -> int | None:
        self._filesystem.invalidate_cache()
        try:
            return int(self._filesystem.info(f"{self._root}/{key}")["size"])
        except FileNotFoundError:
            return None

    def _files(self, name: str) -> dict[str, str]:
        """Paths in the store of the files of a split's folder, by their names."""
        with remote_errors(self.url):
            self._filesystem.invalidate_cache()
            try:
                entries = self._filesystem.ls(f"{self._root}/{name}", detail=True)
            except FileNotFoundError:
                return {}  # a store without folders
        paths = [str(entry["name"]) for entry in entries if entry["type"] == "file"]
        return {path.rpartition("/")[2]: path for path in paths if not path.endswith("/")}  # what marks a folder

    def _remove_others(self, name: str, wanted: set[str]) -> None:
        """Remove what this command writes into a split's folder, but for the files that are wanted."""
        for file, path in self._files(name).items():
            if file not in wanted and OWN_FILE.fullmatch(file):
                self._filesystem.rm(path)

    def _manifest(self, name: str) -> Manifest | None:
        """The manifest of a split.

        Raises:
            PrepError: there is one that cannot be read.
        """
        path = f"{self._root}/{name}/{MANIFEST}"
        with remote_errors(self.url):
            self._filesystem.invalidate_cache()
            try:
                content = self._filesystem.cat_file(path)
            except FileNotFoundError:
                return None
        try:
            return parse_manifest(content, f"{self.url}/{name}/{MANIFEST}")
        except ValueError as error:
            raise PrepError(f"{error} (Remove that file first, and give --overwrite.)") from error

    def _problems(self, manifest: Manifest) -> list[str]:
        problems = []
        with remote_errors(self.url):
            for record in (*manifest.shards, *manifest.files):
                found = self._size(f"{manifest.split}/{record.name}")
                if found != record.bytes:
                    state = "not there" if found is None else f"{found:,} bytes"
                    problems.append(f"{self.url}/{manifest.split}/{record.name}: {state}, expected {record.bytes:,}")
        return problems


@contextlib.contextmanager
def marked_to_copy(work: Path, splits: list[str]) -> Iterator[None]:
    """What is made in the work folder meanwhile is to be copied and then removed; so nothing else may stand there.

    Raises:
        PrepError: a split of these names does.
    """
    mark = work / MADE_TO_COPY
    taken = [] if mark.exists() else [name for name in splits if (work / name).exists()]
    if taken:
        raise PrepError(f"{work / taken[0]} is there and was not made to be copied; give another --work.")
    mark.touch()
    try:
        yield
    except BaseException:
        if not any((work / name).exists() for name in splits):
            mark.unlink()  # so that what somebody makes there by hand is not taken for it
        raise


def remove_work(work: Path, splits: list[str]) -> None:
    """Remove the copy on this machine; the main split first, so that half of it is never taken for the whole.

    Splits that stood there before they were to be copied stay.
    """
    if (work / MADE_TO_COPY).exists():
        for name in reversed(splits):
            (work / name / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(work / name, ignore_errors=True)
        (work / MADE_TO_COPY).unlink()
    (work / UPLOADED).unlink(missing_ok=True)


@dataclass
class _Uploaded:
    """What uploads of a work folder to a URL have noted."""

    begun: set[str] = field(default_factory=set)  # splits, which may stand there without their manifest
    replaced: set[str] = field(default_factory=set)  # splits of the output that was there before, to be removed
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of what has been copied, by split/name


def _read_uploaded(work: Path, url: str) -> _Uploaded:
    found = _Uploaded()
    try:
        lines = (work / UPLOADED).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            entry: Any = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if entry["url"] != url:
            continue
        if "begun" in entry:
            found.begun.update(entry["begun"])
            found.replaced.update(entry["replaced"])
        else:
            found.files[entry["key"]] = entry["sha256"]
    return found


def _note(work: Path, entry: dict[str, Any]) -> None:
    with open(work / UPLOADED, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())
