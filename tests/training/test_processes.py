"""How a model is spread over devices, without starting a process for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core.state import _create_device_mesh
from composer.utils import get_device
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from recipes.models.masks import Batch
from recipes.training.processes import as_all_find, parallelism

from .. import tiny
from ..conftest import ROOT, recipe_arguments


@pytest.fixture
def four_devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # a test that has trained in this process left others in the environment
    for name, value in {"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    if torch.distributed.is_initialized():  # by a test that trains in this process
        torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("fsdp", "shape"),
    [
        ({}, {"data_parallel_shard": 4}),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, {"data_parallel_shard": 4}),
        ({"sharding_strategy": "HYBRID_SHARD"}, {"data_parallel_replicate": 2, "data_parallel_shard": 2}),
        ({"data_parallel_shard_degree": 1}, {"data_parallel_replicate": 4, "data_parallel_shard": 1}),
        ({"data_parallel_replicate_degree": 2}, {"data_parallel_replicate": 2, "data_parallel_shard": 2}),
    ],
)
def test_composer_makes_the_mesh_that_the_recipe_says(
    four_devices: None, fsdp: dict[str, Any], shape: dict[str, int]
) -> None:
    config = parallelism(fsdp, None, None)
    assert config is not None
    mesh = _create_device_mesh(get_device("cpu"), config["fsdp"], None)
    assert mesh is not None
    assert dict(zip(mesh.mesh_dim_names or (), mesh.shape, strict=True)) == shape


def test_sharded_layers_share_one_mask_of_slopes_in_fp32(four_devices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    once = Batch.once

    def counted(self: Batch, key: Any, build: Any) -> Any:
        def count() -> Any:
            built.append((key[0], self.slopes.dtype if self.slopes is not None else None))
            return build()

        return once(self, key, count)

    monkeypatch.setattr(Batch, "once", counted)
    ids = torch.arange(2, 22)[None].repeat(2, 1)
    model = tiny.build(tiny.MPT)
    model(ids)
    alone = list(built)
    built.clear()
    policy = MixedPrecisionPolicy(torch.bfloat16)
    for module in model.modules():
        if model.fsdp_wrap_fn(module):
            fully_shard(module, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    model(ids)
    assert built == alone
    assert built[0][1] == torch.float32


@pytest.mark.parametrize(
    ("found", "ends"),
    [
        ([0, 0, None, None], [0, 0, 0, 0]),  # finished before, which the second machine does not see
        ([None, None, 0, 0], [None] * 4),  # an old copy of the folder
        ([3, 0, None, None], [3, 0, 3, 0]),
        ([None, None, 1, None], [1, 0, 1, 0]),
        ([None] * 4, [None] * 4),
    ],
)
def test_all_machines_end_as_the_first_or_for_a_refusal(
    found: list[int | None], ends: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composer.utils.dist.all_gather_object", lambda _: found)
    monkeypatch.setattr("composer.utils.dist.barrier", lambda: None)
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
        assert as_all_find(found[rank]) == ends[rank]


@pytest.mark.parametrize(("processes", "asks"), [(1, False), (2, True)])
def test_a_finished_run_is_said_to_other_machines(
    processes: int, asks: bool, whole: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import recipes.build
    import train

    told: list[int | None] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(recipes.build, "agree", lambda recipe, code: told.append(code) or code)
    for name, value in {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    assert train.main(recipe_arguments(shards, whole)) == 0
    assert told == ([0] if asks else [])


@pytest.mark.parametrize(("precision", "tells"), [("fp32", True), ("amp_bf16", False)])
def test_what_one_machine_lacks_is_said_to_others(
    precision: str,
    tells: bool,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They would wait for its processes else; one that lacks the GPU itself cannot meet them."""
    import recipes.build
    import train

    told: list[int | None] = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(recipes.build, "agree", lambda recipe, code: told.append(code) or code)
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "RANK": 1, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    lacking = [f"precision={precision}", "train_loader.dataset.local=nowhere"]
    assert train.main([*recipe_arguments(shards, tmp_path), *lacking]) == 1
    assert told == ([1] if tells else [])
    assert "another machine" not in capsys.readouterr().err
    monkeypatch.setattr(recipes.build, "agree", lambda recipe, code: 1)
    assert train.main([*recipe_arguments(shards, tmp_path), "precision=fp32"]) == 1
    assert "error: another machine cannot begin this run" in capsys.readouterr().err


def test_what_has_no_parameters_is_not_sharded() -> None:
    model = tiny.build(tiny.LLAMA)
    wrapped = [module for module in model.modules() if model.fsdp_wrap_fn(module)]
    assert len(wrapped) == 3 + model.config.n_layers  # embedding, last norm and head, and each block
    assert all(any(True for _ in module.parameters()) for module in wrapped)
