"""What the README promises about the install and the make targets."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from .conftest import ROOT, Command

MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("package", ["composer", "llmfoundry", "streaming"])
def test_packages_import_without_a_word(run_command: Command, package: str) -> None:
    result = run_command("python", "-c", f"import {package}", env={"PYTHONWARNINGS": ""})
    assert result.returncode == 0
    assert result.stdout + result.stderr == ""


def test_help_lists_every_target() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True, env=env
    ).stdout
    targets = re.findall(r"^([a-z]+):.*##", MAKEFILE, re.MULTILINE)
    assert {"setup", "train", "test", "check"} <= set(targets)
    assert [line.split()[0] for line in listed.splitlines()] == targets


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert commands[-1] == "make test"
    assert [c.split()[0] for c in commands] == ["set", "cd", "make"]
    assert "make test" in (ROOT / "README.md").read_text()


def test_requirements_carry_hashes() -> None:
    text = (ROOT / "requirements.txt").read_text()
    packages = re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE)
    assert len(packages) > 100
    assert text.count("--hash=sha256:") >= len(packages)
