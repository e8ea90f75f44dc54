"""uv.lock → requirements.txt for pip: `python relaxed/make.py UV` writes it and the archives, `--check` compares.

Everything is pinned with hashes. What the lock overrides is in the archives of this folder: see backend.py.
"""

import argparse
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
RELAXED = ("llm-foundry", "mosaicml", "mosaicml-streaming")  # those whose metadata pip refuses
EXPORT = ["export", "--frozen", "--no-dev", "--no-emit-project", "--no-header", "--quiet"]
BUILD_SYSTEM = '[build-system]\nrequires = ["pip"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uv", help="the uv command")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    arguments = parser.parse_args()

    files = requirements(arguments.uv)
    outdated = [path for path, content in files.items() if not path.exists() or path.read_bytes() != content]
    if arguments.check and outdated:
        names = ", ".join(str(path.relative_to(HERE.parent)) for path in outdated)
        print(f"error: {names}: not what uv.lock says; run `make lock`", file=sys.stderr)
        return 1
    if not arguments.check:
        for old in {*HERE.glob("*.zip")} - {*files}:
            old.unlink()
        for path in outdated:
            path.write_bytes(files[path])
    return 0


def requirements(uv: str) -> dict[Path, bytes]:
    """The content of requirements.txt and of each archive."""
    text = subprocess.run([uv, *EXPORT], check=True, capture_output=True, text=True, cwd=HERE.parent).stdout
    files = {}
    for name in RELAXED:
        pattern = rf"^{name}==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)"
        found = re.search(pattern, text, re.MULTILINE)
        assert found, f"{name} is not in the lock"
        version, published = found[1], found[0]
        archive = HERE / f"{name.replace('-', '_')}-{version}.zip"
        files[archive] = source_archive(name, version, published)
        digest = hashlib.sha256(files[archive]).hexdigest()
        local = f"./{archive.relative_to(HERE.parent)} \\\n    --hash=sha256:{digest}\n"
        text = text.replace(published, local)
    for name, extras in extras_in_use((HERE.parent / "uv.lock").read_text(encoding="utf-8")).items():
        pinned = re.compile(rf"^{name}(==.*\n(?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)
        text = pinned.sub(rf"\g<0>{name}[{','.join(sorted(extras))}]\g<1>", text)
    return {HERE.parent / "requirements.txt": text.encode(), **files}


def extras_in_use(lock: str) -> dict[str, set[str]]:
    """Package → its extras that another package of uv.lock asks for: pip wants them pinned too."""
    extras: dict[str, set[str]] = {}
    for name, names in re.findall(r'{ name = "([^"]+)",(?: [^{}]*,)? extra = \[([^]]+)\]', lock):
        extras.setdefault(name, set()).update(re.findall(r'"([^"]+)"', names))
    return extras


def source_archive(name: str, version: str, published: str) -> bytes:
    """A source archive of a few kilobytes, the same bytes on every machine: stored, dated 1980."""
    contents = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": BUILD_SYSTEM,
        "backend.py": (HERE / "backend.py").read_text(encoding="utf-8"),
        "published.txt": published,
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file, content in contents.items():
            archive.writestr(zipfile.ZipInfo(f"{name.replace('-', '_')}-{version}/{file}"), content)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
