"""What the README promises about the install and the make targets."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import os
import re
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import ROOT, Command

MAKEFILE = (ROOT / "Makefile").read_text()


def test_packages_import_without_a_word(run_command: Command) -> None:
    result = run_command("python", "-c", "import streaming, composer, llmfoundry", env={"PYTHONWARNINGS": ""})
    assert result.returncode == 0
    assert result.stdout + result.stderr == ""


def test_help_lists_every_target() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=env
    ).stdout
    targets = re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE)
    assert {"setup", "train", "test", "check"} <= set(targets)
    assert [line.split()[0] for line in listed.splitlines()] == targets


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "make test"
    assert [c.split()[0] for c in commands] == ["set", "cd", "make"]
    assert "make test" in (ROOT / "README.md").read_text()


def test_requirements_are_pinned_with_hashes() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("    ")]
    assert len(lines) > 100
    assert all(re.match(r"(\./relaxed/\S+\.zip|[a-z0-9.-]+(\[[a-z,]+\])?==\S+)( ; .*)? \\$", line) for line in lines)
    hashed = re.findall(r"\\\n    --hash=sha256:[0-9a-f]{64}", (ROOT / "requirements.txt").read_text())
    assert len(hashed) >= len(lines)


def test_requirements_have_all_that_their_packages_ask_for() -> None:
    """With --require-hashes pip takes nothing else: each package, each extra, in a version that fits."""
    pinned = {}
    for line in re.findall(
        r"^[a-z0-9.-]+(?:\[[a-z,]+\])?==.* \\$", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    ):
        one = Requirement(line.removesuffix("\\"))
        if one.marker is None or one.marker.evaluate():
            pinned[(canonicalize_name(one.name), frozenset(one.extras))] = one.specifier
    assert len(pinned) > 100
    for (name, extras), specifier in pinned.items():
        asked = [Requirement(text) for text in metadata.requires(name) or ()]
        assert metadata.version(name) in specifier
        for wanted in asked:
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                found = pinned.get((canonicalize_name(wanted.name), frozenset(wanted.extras)))
                assert found is not None, f"{name} asks for {wanted}"
                version = metadata.version(wanted.name)
                assert version in found
                assert wanted.specifier.contains(version, prereleases=True), f"{name} asks for {wanted}, not {version}"


@pytest.mark.parametrize("name", ["llm-foundry", "mosaicml", "mosaicml-streaming"])
def test_pip_gets_the_locks_wheel_by_way_of_an_archive(name: str) -> None:
    (archive,) = (ROOT / "relaxed").glob(name.replace("-", "_") + "-[0-9]*.zip")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert f"./relaxed/{archive.name} \\\n    --hash=sha256:{digest}\n" in (ROOT / "requirements.txt").read_text()

    package = (ROOT / "uv.lock").read_text().split(f'name = "{name}"\nversion = ')[1].split("[[package]]")[0]
    content = {path.name: path.read_text() for path in zipfile.Path(archive, archive.stem + "/").iterdir()}
    hashes = re.findall(r"sha256:[0-9a-f]{64}", content["published.txt"])
    assert hashes
    assert all(digest in package for digest in hashes)
    assert content["backend.py"] == (ROOT / "relaxed" / "backend.py").read_text()


def test_a_relaxed_wheel_differs_in_its_requirements_only(tmp_path: Path) -> None:
    metadata = (
        "Metadata-Version: 2.1\nName: a\nRequires-Dist: torch<2\nLicense: B\nProvides-Extra: gpu\n\nRequires-Dist: x\n"
    )
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/__init__.py", "one = 1\n")
        wheel.writestr("a-1.dist-info/METADATA", metadata)
        wheel.writestr("a-1.dist-info/RECORD", "a/__init__.py,sha256=x,8\na-1.dist-info/METADATA,sha256=old,99\n")
    spec = importlib.util.spec_from_file_location("relaxed_backend", ROOT / "relaxed" / "backend.py")
    assert spec
    assert spec.loader
    backend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(backend)
    backend.without_requirements(tmp_path / "a-1-py3-none-any.whl", tmp_path / "relaxed.whl")
    wheel = zipfile.Path(tmp_path / "relaxed.whl", "")
    expected = "Metadata-Version: 2.1\nName: a\nLicense: B\n\nRequires-Dist: x\n"
    assert (wheel / "a-1.dist-info" / "METADATA").read_text() == expected
    assert (wheel / "a" / "__init__.py").read_text() == "one = 1\n"
    digest = base64.urlsafe_b64encode(hashlib.sha256(expected.encode()).digest()).decode().rstrip("=")
    assert (wheel / "a-1.dist-info" / "RECORD").read_text().splitlines() == [
        "a/__init__.py,sha256=x,8",
        f"a-1.dist-info/METADATA,sha256={digest},{len(expected)}",
    ]
