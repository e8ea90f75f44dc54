"""A build backend (PEP 517) that makes a package's own wheel, less its requirements.

pip refuses LLM Foundry, Composer and Streaming beside the releases of uv.lock: their metadata ask for torch of 2025 and
for cloud clients that nothing here imports, and pip, unlike uv, has no overrides. So requirements.txt takes these three
from the archives beside this file. Each holds this backend and the SHA-256 of the wheel as published, which is fetched
from the index pip is set up with; only the `Requires-Dist` lines of its METADATA are left out, because requirements.txt
names and pins every package by itself.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def build_wheel(wheel_directory: str, config_settings: object = None, metadata_directory: str | None = None) -> str:
    """Write the wheel into `wheel_directory`; its file name. SystemExit where the index lacks it."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            *options,
            "--dest",
            folder,
            "--requirement",
            "published.txt",
        ]
        if subprocess.run(command).returncode:
            published = Path("published.txt").read_text().strip()
            sys.exit(f"error: pip could not fetch the wheel {published}: is the package index within reach?")
        (wheel,) = Path(folder).glob("*.whl")
        without_requirements(wheel, Path(wheel_directory) / wheel.name)
        return wheel.name


def without_requirements(wheel: Path, target: Path) -> None:
    """Copy a wheel without its requirements; METADATA's line in RECORD is made anew."""
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith(".dist-info/METADATA"):
                content = content_without_requirements(content)
                name, metadata = entry.filename, content
            elif entry.filename.endswith(".dist-info/RECORD"):
                record = entry, content
                continue
            copy.writestr(entry, content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(metadata).digest()).rstrip(b"=").decode()
        lines = record[1].decode().splitlines()
        lines = [f"{name},sha256={digest},{len(metadata)}" if line.startswith(f"{name},") else line for line in lines]
        copy.writestr(record[0], "\n".join(lines) + "\n")


def content_without_requirements(metadata: bytes) -> bytes:
    """METADATA without the `Requires-Dist` fields of its head; the description below the first blank line stays."""
    head, blank, description = metadata.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = [line for line in head.split(b"\n") if not line.startswith((b"Requires-Dist:", b"Provides-Extra:"))]
    return b"\n".join(fields) + blank + description
