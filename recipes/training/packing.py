"""Packing of examples into sequences that goes on where a checkpoint left it.

LLM Foundry packs in the processes that load the data. What has no room in a batch waits there for the next one: it is
taken from the data and in no checkpoint, so that a run that goes on would pack otherwise, and never see it. Here those
processes pad, the run itself packs, and a checkpoint has what waits on all ranks.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from composer import DataSpec, Evaluator
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from llmfoundry.data.packing import BinPackCollator
from torch import Tensor

Bin = tuple[int, dict[str, Tensor]]  # tokens, and (tokens,) tensors by name


def pack_here(spec: DataSpec, keeps_none: bool = False) -> BinPackCollator | None:
    """Take the packing out of a loader and make it what is done to a batch before it is used; None where it packs not.

    spec: of LLM Foundry's `finetuning` loader; changed in place. keeps_none: what has no room in a batch makes it
    longer.
    """
    loader: Any = spec.dataloader
    counting: Any = getattr(loader, "collate_fn", None)  # writes the number of tokens into what is packed
    packer = getattr(counting, "base_collator", None)
    if not isinstance(packer, BinPackCollator):
        return None
    loader.collate_fn = packer.base_collator
    counting.base_collator = partial(_pack_all, packer) if keeps_none else packer.pack
    spec.batch_transforms = counting
    if getattr(loader.dataset, "packing_ratio", None):  # by which Streaming counts examples, rounding down
        loader.dataset.packing_ratio = Fraction(loader.batch_size, packer.out_size)
    return packer


def pack_whole(evaluator: Evaluator) -> None:
    """Let an evaluation see all of its data; LLM Foundry leaves out what has no room in the last batch.

    A batch then has some sequences more, which are computed after the others, so that none takes more memory.
    """
    if packer := pack_here(evaluator.dataloader, keeps_none=True):
        evaluator.device_eval_microbatch_size = packer.out_size


def _pack_all(packer: BinPackCollator, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    packed = packer.pack(batch)
    rest, packer._leftover_bins = [rows for _, rows in packer._leftover_bins], []
    more = packer._convert_to_batch(rest) if rest else {}
    return {name: torch.cat([rows, more[name]]) if more else rows for name, rows in packed.items()}


class Packing(Callback):
    """Keeps what waits to be packed in the checkpoints of a run.

    A run that goes on with as many ranks as before goes on exactly; with more or fewer, nothing is lost.

    training: the loader, whose packing becomes the run's.
    """

    def __init__(self, training: DataSpec) -> None:
        self._packer = pack_here(training)
        self.is_needed = self._packer is not None
        self._loaded = ""

    def state_dict(self) -> dict[str, Any]:
        """All ranks call it, as they do for their random numbers; each has what waits on all."""
        if self._packer is None:
            return {}
        return {"waiting": _to_text(dist.all_gather_object(self._packer._leftover_bins))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loaded = state.get("waiting", "")

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._packer is None or not self._loaded:
            return
        by_rank, self._loaded = _from_text(self._loaded), ""
        rank, ranks = dist.get_global_rank(), dist.get_world_size()
        if len(by_rank) != ranks:
            waiting = [one for bins in by_rank for one in bins]
            by_rank = [waiting[first::ranks] for first in range(ranks)]
        self._packer._leftover_bins = [one for one in by_rank[rank] if one[0] <= self._packer.max_seq_len]


def _to_text(by_rank: Sequence[Sequence[Bin]]) -> str:
    """One text, which every kind of checkpoint keeps as it is."""
    plain = [[{name: row.tolist() for name, row in rows.items()} for _, rows in bins] for bins in by_rank]
    return base64.b64encode(zlib.compress(json.dumps(plain).encode())).decode()


def _from_text(text: str) -> list[list[Bin]]:
    plain = json.loads(zlib.decompress(base64.b64decode(text)))
    by_rank = [[{name: torch.tensor(row) for name, row in rows.items()} for rows in bins] for bins in plain]
    return [[(len(rows["input_ids"]), rows) for rows in bins] for bins in by_rank]
