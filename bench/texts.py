"""The texts that are prepared: source code, and prose."""

import gzip
import hashlib
import itertools
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".py", ".md", ".rst", ".txt")
PROSE_SUFFIXES = (".txt", ".txt.gz", ".dz")
PROSE_CHARACTERS = 16_384  # of a document of prose


def installed_texts() -> Iterator[str]:
    """Text files of the installed packages, in an order that their paths' hashes give."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    for path in sorted(files, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest()):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip() and len(text) < 4_000_000:
            yield text


def prose_texts(roots: list[Path]) -> Iterator[str]:
    """Text files, which may be gzipped, or folders of them, cut between paragraphs, whose lines are joined."""
    files = (sorted(root.rglob("*")) if root.is_dir() else [root] for root in roots)
    seen = set()
    for path in itertools.chain(*files):
        content = path.read_bytes() if path.name.endswith(PROSE_SUFFIXES) else b""
        digest = hashlib.sha256(content).digest()
        if not content or digest in seen:
            continue
        seen.add(digest)
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8", errors="replace")
        waiting: list[str] = []
        length = 0
        for paragraph in paragraphs(text):
            waiting.append(paragraph)
            length += len(waiting[-1])
            if length >= PROSE_CHARACTERS:
                yield "\n\n".join(waiting)
                waiting, length = [], 0
        if waiting:
            yield "\n\n".join(waiting)


def paragraphs(text: str) -> Iterator[str]:
    """Lines joined up to a blank one, or to the first behind indented ones that is not: so dictionaries write."""
    words: list[str] = []
    indented = False
    for line in text.split("\n"):
        if words and (not line.strip() or (indented and not line[0].isspace())):
            yield " ".join(words)
            words = []
        words += line.split()
        indented = line[:1].isspace()
    if words:
        yield " ".join(words)


class Text(NamedTuple):
    """The same documents as JSONL and as a folder of .txt files, and what tells this text from another."""

    jsonl: Path
    folder: Path
    facts: dict[str, Any]


def write_texts(texts: Iterator[str], folder: Path, size: int) -> Text:
    """The first `size` bytes of texts, in whole documents."""
    as_text = folder / "texts"
    as_text.mkdir(parents=True)
    path = folder / "corpus.jsonl"
    number = written = 0
    with open(path, "w", encoding="utf-8") as file:
        for number, text in enumerate(texts, 1):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            (as_text / f"{number:06}.txt").write_text(text, encoding="utf-8")
            written += len(text.encode())
            if written >= size:
                break
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Text(path, as_text, {"bytes": written, "documents": number, "sha256": digest})
