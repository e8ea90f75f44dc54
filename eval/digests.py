"""What was judged, as a SHA-256: a model by its weights, configuration and tokenizer. Pure Python, no torch."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.models import is_folder

PIECE = 2**24  # bytes read at once


def digest_of(entry: Mapping[str, Any], precision: str | None) -> str:
    """The digest of a spelled-out entry of `models`, at a precision."""
    path = entry.get("load_path") or (entry["model"].get("pretrained_model_name_or_path") if is_folder(entry) else None)
    local = None if path is None or "://" in str(path) else Path(str(path))
    tokenizer = Path(str(entry["tokenizer"]["name"]))
    model = {k: v for k, v in entry["model"].items() if k != "pretrained_model_name_or_path"}
    configuration = {"model": model, "tokenizer": entry["tokenizer"], "precision": precision, "path": None}
    if local is None or not local.exists():
        configuration["path"] = path  # weights elsewhere are known by their name alone
    return model_digest(local, configuration, tokenizer if tokenizer.is_dir() else None)


def model_digest(weights: Path | None, configuration: Mapping[str, Any], tokenizer: Path | None) -> str:
    """weights: a checkpoint file, a sharded checkpoint's folder or a Hugging Face folder; None for none.

    configuration: whatever else decides what the model answers: its section of the recipe, the precision.
    tokenizer: its folder, where it is a local one.
    """
    whole = hashlib.sha256(json.dumps(configuration, sort_keys=True, default=str).encode())
    for path in (weights, tokenizer):
        for file in _files(path):
            whole.update(file.name.encode())
            whole.update(file_digest(file).encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; of a zip's, which torch's checkpoints are, by the checksums in its directory.

    The directory has the CRC-32 and the size of each tensor, so that 80 GB are told apart in a moment.
    """
    if path.suffix == ".pt" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = sorted((i.filename.partition("/")[2], i.file_size, i.CRC) for i in archive.infolist())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _files(path: Path | None) -> list[Path]:
    if path is None or not path.exists():
        return []
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith((".git", "README")))
