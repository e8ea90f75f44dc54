"""What a finished split says about itself: `manifest.json` beside its `index.json`.

Standard library only, so that a launcher can ask in milliseconds whether shards are there, whole and of the right kind.
"""

import dataclasses
import errno
import json
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.sources import Source, recorded_path, sha256_of_file

MANIFEST = "manifest.json"
ROLE_MAIN, ROLE_HELD_OUT = "main", "held-out"
VERSION = 1  # of the manifest and of what the same options produce; shards of another version are made anew


@dataclass(frozen=True)
class SourceRecord(Source):
    """One input file that was read; `sha256` is of its bytes as stored."""

    sha256: str


@dataclass(frozen=True)
class FileRecord:
    """One file of the split: size in bytes and SHA-256; `samples` is its sequences, or None where it is no shard."""

    name: str
    bytes: int
    sha256: str
    samples: int | None = None


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer; `sha256`, of its tokenizer.json, is its fingerprint. The path is where it was, no more."""

    path: str
    sha256: str
    vocab_size: int  # largest id + 1, added tokens included
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None


@dataclass(frozen=True)
class Manifest:
    """One split. `tokens` are those in the shards (`sequences` * `seq_len`), separators included."""

    split: str
    splits: list[str]  # all that one run published together, the main one last
    role: str  # ROLE_MAIN or ROLE_HELD_OUT
    seq_len: int  # tokens a sequence
    dtype: str  # of the ids in the shards
    documents: int
    text_bytes: int  # of the documents, in UTF-8
    sequences: int
    tokens: int
    dropped_tokens: int  # at the end, fewer than one sequence
    rejected: int  # rows that were no document, in the whole input
    tokenizer: TokenizerRecord
    separators: dict[str, list[int]]  # ids "before" and "after" each document
    options: dict[str, Any]
    sources: list[SourceRecord]
    shards: list[FileRecord]
    files: list[FileRecord]  # the other files of the folder, index.json among them
    left_out: dict[str, int] = field(default_factory=dict)  # documents that a filter took, by its name
    loss_tokens: int | None = None  # of instruction data: those that the loss is on
    conversations: int | None = None  # of instruction data: samples that a chat template wrote; None: not recorded
    version: int = VERSION

    @property
    def main_split(self) -> str:
        """The split that this one belongs to: itself, unless it is held out."""
        return self.splits[-1]

    def stands_at(self, name: str, main_split: str) -> bool:
        """Whether a folder of this name is the split of that main one that was written there, and no copy of it."""
        return (self.split, self.main_split) == (name, main_split)

    def was_made_with(self, tokenizer: Path) -> bool:
        """Whether a tokenizer.json is the one of these ids, perhaps saved anew by transformers."""
        if sha256_of_file(tokenizer) == self.tokenizer.sha256:
            return True
        original = Path(self.tokenizer.path)
        if not original.is_file() or sha256_of_file(original) != self.tokenizer.sha256:
            return False
        try:
            one, other = (json.loads(file.read_text(encoding="utf-8")) for file in (tokenizer, original))
        except (OSError, ValueError):
            return False
        return all(one.get(name) == other.get(name) for name in ("model", "added_tokens", "normalizer"))

    def to_json(self) -> str:
        value = dataclasses.asdict(self)
        if not self.left_out:
            del value["left_out"]
        for name in ("loss_tokens", "conversations"):
            if value[name] is None:
                del value[name]
        return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def load_manifest(folder: str | Path) -> Manifest | None:
    """The manifest of a split's folder, or None where there is none.

    Raises:
        ValueError: a manifest that cannot be read or is of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, path: str) -> Manifest:
    """The manifest that a file of this content is.

    Raises:
        ValueError: it cannot be read or is of another version.
    """
    try:
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError("expected a JSON object")
        if value.get("version") != VERSION:
            raise ValueError(f"version {value.get('version')}, expected {VERSION}")
        value["tokenizer"] = _record(TokenizerRecord, value["tokenizer"], "tokenizer")
        for name, kind in (("sources", SourceRecord), ("shards", FileRecord), ("files", FileRecord)):
            value[name] = [_record(kind, record, name) for record in _checked(value[name], list[Any], name)]
        manifest: Manifest = _record(Manifest, value, "")
        for name in (record.name for record in (*manifest.shards, *manifest.files)):
            if Path(name).name != name or "\0" in name:
                raise ValueError(f"{name!r} is no name of a file")
        if not manifest.splits or manifest.seq_len < 1 or manifest.separators.keys() != {"before", "after"}:
            raise ValueError("expected splits, a seq_len above 0, and separators before and after")
        return manifest
    except KeyError as error:
        raise ValueError(
            f"{path}: not a manifest this version can read (no {error}); prepare the shards again."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a manifest this version can read ({error}); prepare the shards again."
        ) from error


def _record(kind: Any, value: Any, where: str) -> Any:
    """A dataclass from a JSON object, whose fields must be of the types that the dataclass says."""
    fields = _checked(value, dict[str, Any], where)
    hints = typing.get_type_hints(kind)
    for name, field_value in fields.items():
        if name in hints:
            _checked(field_value, hints[name], f"{where}.{name}".lstrip("."))
    return kind(**fields)


def _checked(value: Any, hint: Any, where: str) -> Any:
    """`value`, if it is of a type such as int, int | None, list[str] or dict[str, int].

    Raises:
        ValueError: otherwise.
    """
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin is list and isinstance(value, list):
        for item in value:
            _checked(item, of[0], where)
    elif origin is dict and isinstance(value, dict):
        for item in value.values():
            _checked(item, of[1], where)
    elif hint is not Any:
        kinds = of if origin is types.UnionType else (origin or hint,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("null" if kind is types.NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: got {json.dumps(value, default=repr)[:40]}, expected {expected}")
    return value


def shard_problems(folder: str | Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files, by their sizes alone: a `stat` a file, nothing is read."""
    problems = []
    for record in (*manifest.shards, *manifest.files):
        path = Path(folder) / record.name
        kind = "file" if record.samples is None else "shard"
        try:
            size = path.stat().st_size
        except OSError:
            problems.append(f"missing or truncated {kind} {path}: not there, expected {record.bytes:,} bytes")
            continue
        if size != record.bytes:
            problems.append(f"missing or truncated {kind} {path}: {size:,} bytes, expected {record.bytes:,}")
    return problems


def digest_problems(folder: str | Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files by their SHA-256: every byte is read."""
    problems = shard_problems(folder, manifest)
    wrong_size = {problem.split(": ")[0] for problem in problems}
    for record in (*manifest.shards, *manifest.files):
        path = Path(folder) / record.name
        kind = "file" if record.samples is None else "shard"
        if f"missing or truncated {kind} {path}" in wrong_size:
            continue
        if sha256_of_file(path) != record.sha256:
            problems.append(f"corrupt {kind} {path}: its {record.bytes:,} bytes are not the ones that were written")
    return problems


@dataclass(frozen=True)
class MadeFrom:
    """All that decides a run's output. A source's sha256 is "" while nobody has read it."""

    options: dict[str, Any]
    tokenizer_sha256: str
    separators: dict[str, list[int]]
    sources: list[SourceRecord]

    def to_json(self) -> dict[str, Any]:
        """With absolute paths, as the next run may be started elsewhere."""
        sources = [dataclasses.replace(source, path=_absolute(source.path)) for source in self.sources]
        return dataclasses.asdict(dataclasses.replace(self, sources=sources))

    @staticmethod
    def from_json(value: dict[str, Any]) -> "MadeFrom":
        return MadeFrom(**{**value, "sources": [SourceRecord(**record) for record in value["sources"]]})

    @staticmethod
    def of(manifest: Manifest) -> "MadeFrom":
        return MadeFrom(manifest.options, manifest.tokenizer.sha256, manifest.separators, manifest.sources)


def differences(old: MadeFrom, new: MadeFrom) -> list[str]:
    """What a run from `new` would do differently; empty: it would write the same bytes.

    A source is the same where its path, size and time of change are; else its SHA-256 decides. Of
    --filter the function and its file's SHA-256 count, not where the file lies.
    """
    changes = []
    if new.tokenizer_sha256 != old.tokenizer_sha256:
        changes.append(f"--tokenizer: fingerprint {old.tokenizer_sha256[:12]} -> {new.tokenizer_sha256[:12]}")
    elif new.separators != old.separators:
        was, now = (f"{made.separators['before']} before, {made.separators['after']} behind" for made in (old, new))
        changes.append(f"ids around each document: {was} -> {now}")
    for name in sorted({*old.options, *new.options}):
        if name == "tokenizer_settings":
            before, after = old.options.get(name) or {}, new.options.get(name) or {}
            files = sorted(file for file in {*before, *after} if before.get(file) != after.get(file))
            changes += [f"--tokenizer: {', '.join(files)} beside it changed, or was not noted"] if files else []
        elif name == "near_dedup_words" and new.options.get("near_dedup") == old.options.get("near_dedup"):
            same = old.options.get(name) == new.options.get(name)
            changes += [] if same else ["--near-dedup: another version of it compared other words"]
        elif name != "near_dedup_words" and _comparable(old.options, name) != _comparable(new.options, name):
            flag = name.replace("_", "-")
            changes.append(f"--{flag}: {_change(old.options.get(name), new.options.get(name))}")
    if len(new.sources) != len(old.sources):
        changes.append(f"input: {len(old.sources)} files -> {len(new.sources)} files")
        return changes
    for source, record in zip(new.sources, old.sources, strict=True):
        if not _same_source(source, record):
            unknown = ", changed at another time, and what it held is not known"
            other = "" if source.bytes != record.bytes else ", other content" if record.sha256 else unknown
            changes.append(
                f"input: {record.path} ({record.bytes:,} bytes) -> {source.path} ({source.bytes:,} bytes){other}"
            )
    return changes


def _change(old: Any, new: Any) -> str:
    """From one value of an option to another, in words."""
    if isinstance(old, bool) or isinstance(new, bool):
        return f"{'on' if old else 'off'} -> {'on' if new else 'off'}"
    return " -> ".join("not given" if value is None else repr(value) for value in (old, new))


def _comparable(options: dict[str, Any], name: str) -> Any:
    """What of an option decides the output: of --filter FILE.py:FUNCTION the function; filter_sha256 has the file."""
    value = options.get(name)
    return value.rpartition(":")[2] if name == "filter" and value else value


def _same_source(source: SourceRecord, record: SourceRecord) -> bool:
    if source.bytes != record.bytes:
        return False
    if source.mtime_ns == record.mtime_ns != 0 and _absolute(source.path) == _absolute(record.path):
        return True
    return record.sha256 != "" and sha256_of_file(source.path) == record.sha256


def _absolute(path: str) -> str:
    return recorded_path(path) if "://" in path else os.path.abspath(path)
