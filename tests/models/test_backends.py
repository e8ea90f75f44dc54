"""The table of backends: what ``flash`` means where, what is refused and in which words, and that it needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from recipes.models import backends
from tests.conftest import ROOT, Command


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [
        ("cuda", ["alibi", "documents", "sliding_window", "softcap"], "flex"),
        ("cpu", ["alibi", "documents", "sliding_window", "dropout"], "sdpa"),
        ("cpu", ["softcap"], "math"),
        ("mps", [], "sdpa"),
    ],
)
def test_flash_is_the_first_backend_of_the_device_that_can(device: str, wanted: list[str], expected: str) -> None:
    assert backends.refusals("flash", device, wanted) == []
    assert backends.resolve("flash", device, wanted) == expected


def test_a_named_backend_is_that_backend() -> None:
    assert backends.resolve("sdpa", "cuda", ["alibi"]) == "sdpa"
    assert backends.resolve("torch", "cuda", ["dropout", "softcap"]) == "torch"


@pytest.mark.parametrize(
    ("attn_impl", "device", "wanted", "head_dim", "words"),
    [
        ("flash", "cuda", ["dropout"], None, "flex cannot do attention dropout"),
        ("sdpa", None, ["softcap"], None, "sdpa cannot do soft-capped scores"),
        ("flex", "cpu", [], None, "flex does not run on cpu, only on cuda"),
        ("flash", "cuda", [], 8, "heads of at least 16 dimensions, got 8"),
        ("flsh", None, [], None, "expected one of flash, flex, flash2, flash4, sdpa, torch; did you mean flash?"),
        ("flash2", "cpu", [], None, "flash2 does not run on cpu, only on cuda"),
        ("flash2", "cuda", [], None, "flash2 needs the module flash_attn.flash_attn_interface, which is not installed"),
        ("flash4", "cuda", [], None, "flash4 needs the module flash_attn.cute.block_sparsity, which is not installed"),
        ("flash4", None, [], 20, "flash4 takes heads of a multiple of 8 dimensions, got 20"),
        ("flash4", None, ["dropout"], None, "flash4 cannot do attention dropout"),
        ("flash2", None, ["dropout", "softcap"], None, "flash2 cannot do both attention dropout"),
        ("flash4", None, [], 256, "flash4 takes heads of at most 128 dimensions, got 256"),
    ],
)
def test_refusals_say_why(attn_impl: str, device: str | None, wanted: list[str], head_dim: int, words: str) -> None:
    reasons = backends.refusals(attn_impl, device, wanted, head_dim)
    assert words in " ".join(reasons)
    with pytest.raises(ValueError, match=words[:20]):
        backends.resolve(attn_impl, device or "cpu", wanted, head_dim)


@pytest.mark.parametrize(
    ("attn_impl", "capability", "words"),
    [
        ("flash2", 7.0, "GPUs of compute capability 8.0 and newer, this one has 7.0"),
        ("flash4", 8.0, "GPUs of compute capability 9.0 to 11.9, this one has 8.0"),
        ("flash4", 12.0, "9.0 to 11.9"),
        ("flash4", 9.0, ""),
        ("flash", 7.5, ""),
    ],
)
def test_kernels_for_other_gpus_are_refused(attn_impl: str, capability: float, words: str) -> None:
    reasons = [r for r in backends.refusals(attn_impl, "cuda", [], 64, capability) if "compute capability" in r]
    assert words in " ".join(reasons)
    assert bool(reasons) == bool(words)


def test_half_precision_kernels_refuse_fp32() -> None:
    assert "flash2 takes 16-bit numbers only" in backends.precision_refusals("flash2", "fp32")[0]
    assert backends.precision_refusals("flash2", "amp_bf16") == backends.precision_refusals("flex", "fp32") == []
    assert "set precision: amp_bf16" in backends.precision_refusals("flash2", "amp_fp8")[0]
    assert backends.precision_refusals("flash2", "amp_fp8", is_sharded=True) == []  # FSDP casts the weights


def test_features_are_read_from_llm_foundrys_keys() -> None:
    assert backends.features({}) == frozenset()
    everything = {
        "alibi": True,
        "attn_uses_sequence_id": True,
        "attn_pdrop": 0.1,
        "sliding_window_size": 128,
        "attn_logit_softcapping": 30.0,
    }
    assert backends.features(everything) == frozenset(backends.FEATURES)


def test_a_feature_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="not a feature of attention"):
        backends.refusals("sdpa", "cpu", ["alibbi"])


def test_the_table_is_consistent() -> None:
    assert set(backends.CHOICES) - {"flash"} <= set(backends.BACKENDS)
    assert {name for order in backends.FLASH.values() for name in order} <= set(backends.BACKENDS)
    assert all(set(backend.cannot) <= set(backends.FEATURES) for backend in backends.BACKENDS.values())


def test_importing_the_table_does_not_import_torch() -> None:
    code = "import sys, recipes.models.backends; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_flash_attn_4_alone_lets_llm_foundry_start(tmp_path: Path, run_command: Command) -> None:
    """Its wheel holds only flash_attn/cute: a namespace package without a version."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").touch()
    code = "import recipes.models.mpt as m; print(m.is_flash_v2_installed())"
    result = run_command("python", "-W", "ignore", "-c", code, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert result.stdout == "False\n", result.stderr
