"""What kernels, losses, compilation and checkpointing cannot do together is said before a run, in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from recipes.config.check import check
from recipes.config.load import load
from recipes.preflight import gpu, machine
from recipes.preflight.training import preflight

from ..conftest import ROOT

QUICKSTART = ROOT / "yamls" / "pretrain" / "mpt-quickstart.yaml"


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["model.loss_fn=chunked"], "model.loss_fn", "chunked_crossentropy"),
        (["model.label_smoothing=1.5"], "model.label_smoothing", "1.5"),
        (["model.z_loss=-1"], "model.z_loss", "-1"),
        (["model.attn_config.attn_impl=flash2"], "model.attn_config.attn_impl", "16-bit numbers only"),
        (
            ["model.attn_config.attn_impl=flash4", "precision=amp_bf16", "model.attn_config.attn_pdrop=0.1"],
            "model.attn_config.attn_impl",
            "flash4 cannot do attention dropout",
        ),
        (
            ["callbacks.loss_perp_v_len={log_batch_interval: 1, compute_batch_interval: 1}"],
            "callbacks.loss_perp_v_len",
            "set model.loss_fn: torch_crossentropy",
        ),
        (["compile=true", "compile_config={}"], "compile_config", "keep one"),
        (
            ["model.attn_config={attn_temperature_tuning: {attn_scale: 0.1}, attn_uses_sequence_id: true}"],
            "model.attn_config.attn_temperature_tuning",
            "not within its documents",
        ),
        (["compile=true", "selective_checkpointing=true"], "selective_checkpointing", "turn off this or compile"),
        (
            ["selective_checkpointing=true", "fsdp_config.activation_checkpointing=true"],
            "fsdp_config.activation_checkpointing",
            "recomputes whole blocks",
        ),
        (["precision=amp_fp8"], "precision", "Transformer Engine layers only"),
        (["fsdp_config.load_planner={name: dedup}"], "fsdp_config.load_planner", "is of FSDP1"),
        (["fsdp_config.cpu_offload=true"], "fsdp_config.cpu_offload", "is of FSDP1"),
    ],
)
def test_contradictions(overrides: list[str], key: str, words: str) -> None:
    found = {".".join(map(str, p.key)): p.text for p in check(load(QUICKSTART, overrides))}
    assert words in found[key]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.loss_fn=chunked_crossentropy", "model.z_loss=1e-4", "model.label_smoothing=0.1"],
        ["compile=true", "callbacks.recompile_counter.warm_up=5"],
        ["selective_checkpointing=true", "optimizer.name=fused_adamw"],
        ["model.attn_config.attn_impl=flash2", "precision=amp_bf16", "model.attn_config.attn_pdrop=0.1"],
    ],
)
def test_sound(overrides: list[str]) -> None:
    assert check(load(QUICKSTART, overrides)) == []


def missing(*overrides: str) -> dict[str, str]:
    return {".".join(map(str, p.key)): p.text for p in preflight(load(QUICKSTART, overrides))}


def test_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        assert "pip install liger-kernel" in missing("model.loss_fn=liger_crossentropy")["model.loss_fn"]
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    assert "needs a C++ compiler" in missing("compile=true")["compile"]
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    if importlib.util.find_spec("flash_attn") is None:
        flash2 = missing("model.attn_config.attn_impl=flash2", "precision=amp_bf16")["model.attn_config.attn_impl"]
        assert "flash_attn.flash_attn_interface, which is not installed" in flash2
    if importlib.util.find_spec("transformer_engine") is None:
        assert "needs the package transformer-engine" in missing("precision=amp_fp8")["precision"]
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 8.0'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "A100-SXM4-80GB computes at 8.0, amp_fp8 needs 8.9 or more" in missing("precision=amp_fp8")["precision"]
    driver.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 9.0'\n")
    assert "computes at" not in missing("precision=amp_fp8").get("precision", "")


def test_what_triton_and_torch_ask_of_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    key, bf16 = "model.attn_config.attn_impl", "precision=amp_bf16"
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    assert "flash compiles its kernel here and needs a C compiler" in missing(bf16)[key]
    assert key not in missing(bf16, "model.attn_config.attn_impl=sdpa")
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(gpu.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert f"needs {tmp_path}/Python.h: install Python's headers" in missing(bf16)[key]
    (tmp_path / "Python.h").touch()
    assert {key, "model"}.isdisjoint(missing(bf16))

    (tmp_path / "Python.h").unlink()
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    monkeypatch.setenv("CPATH", f"/nowhere:{tmp_path / 'include'}")
    assert key not in missing(bf16)


def test_a_gpu_whose_driver_torch_cannot_use_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "_is_there", lambda: True)
    monkeypatch.setattr(gpu, "NVIDIA", tmp_path)
    assert gpu._cuda_of_torch() == int(torch.version.cuda.split(".")[0])
    monkeypatch.setattr(gpu, "LIBCUDA", "libnowhere.so")
    assert "the GPU's driver is not here (libnowhere.so)" in missing("precision=amp_bf16")["precision"]
    monkeypatch.setattr(gpu, "_cuda_of_torch", lambda: 13)
    monkeypatch.setattr(gpu, "_cuda_of_driver", lambda: 12)
    said = missing("precision=amp_bf16")["precision"]
    assert "driver is for CUDA 12 and older, this PyTorch for CUDA 13: update the driver" in said
    assert not gpu.has_gpu()
    assert {"precision", "model"}.isdisjoint(missing())  # in fp32 it trains on the CPU
    monkeypatch.setattr(gpu, "_cuda_of_driver", lambda: 13)
    assert gpu.has_gpu()


@pytest.mark.skipif(gpu.has_flash_attn_2(), reason="flash-attn rotates all of these")
@pytest.mark.parametrize("has_flash_attn_4", [False, True])
def test_what_dail_cannot_rotate_here_is_said_before_the_build(
    has_flash_attn_4: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if has_flash_attn_4:
        (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path)
    dail = ["model.attn_config.alibi=false", "model.attn_config.rope=true", "model.attn_config.rope_impl=dail"]
    assert "model.attn_config.attn_impl" not in missing(*dail)
    said = missing(*dail, "model.attn_config.rope_dail_config.type=xpos")["model.attn_config.attn_impl"]
    assert "xpos needs the flash-attn package" in said
    assert "rotates d_model / n_heads" in missing(*dail, "model.head_dim=32")["model.attn_config.attn_impl"]
