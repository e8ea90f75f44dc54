"""What every result says beside its numbers: the machine, the versions, and the file it is written to."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def machine_and_versions(*packages: str) -> str:
    """One line: processor, cores, GPU if there is one, Python, and these packages' versions."""
    parts = [f"{processor()}, {os.cpu_count()} cores", *_gpus(), f"Python {platform.python_version()}"]
    return ", ".join([*parts, *(f"{package} {version(package)}" for package in packages)])


def write_result(lines: list[str], out: Path | None) -> None:
    """Print the lines, or write them to a file whole."""
    text = "\n".join(lines) + "\n"
    if out is None:
        print(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(out)
    print(f"wrote {out}")


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import torch

    return [f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"] if torch.cuda.is_available() else []
