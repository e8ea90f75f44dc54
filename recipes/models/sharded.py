"""A parameter's part on this process, however the model is sharded."""

from __future__ import annotations

from typing import Any


def local_rows(parameter: Any) -> tuple[Any, int]:
    """This process's part of a parameter, and the row that it begins with."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(parameter, DTensor):
        return parameter.data, 0
    placed = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    offset = placed[1]
    assert not any(offset[1:]), "FSDP2 shards rows"
    return parameter.to_local(), int(offset[0]) if offset else 0
