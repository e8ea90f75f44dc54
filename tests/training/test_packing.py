"""Packed examples: a run that goes on packs what it would have packed, and loses none of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import DataSpec, Evaluator
from composer.utils import dist
from llmfoundry.data.packing import BinPackCollator
from llmfoundry.data.utils import LossGeneratingTokensCollatorWrapper, get_tokens_per_batch_func
from torch.utils.data import DataLoader, Dataset

from recipes.training.packing import Packing, pack_whole

from ..conftest import ROOT, Command, losses

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH, EXAMPLES, BINS = 16, 7, 3
NOTHING: Any = SimpleNamespace()


class Rows(Dataset[list[int]]):
    """Row n is made of n + 1 alone."""

    packing_ratio = EXAMPLES / BINS

    def __getitem__(self, n: int) -> list[int]:
        return [n + 1] * (3 + n * 7 % 11)

    def __len__(self) -> int:
        return 70


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """As LLM Foundry's collator pads: (B, S)."""
    ids = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": (ids > 0).long()}


def packed_loader(num_workers: int = 0) -> DataSpec:
    packer = BinPackCollator(collate, target_batch_size=BINS, max_seq_len=LENGTH, pad_token_id=0, padding_side="right")
    counting = LossGeneratingTokensCollatorWrapper(packer, get_tokens_per_batch_func())
    return DataSpec(DataLoader(Rows(), batch_size=EXAMPLES, collate_fn=counting, num_workers=num_workers))


def batches(spec: DataSpec, first: int, last: int) -> list[tuple[Any, ...]]:
    made = []
    for number, batch in enumerate(spec.dataloader):
        if first <= number < last:
            packed = spec.batch_transforms(batch)
            made.append(tuple(packed[name].tolist() for name in ("input_ids", "labels", "sequence_id")))
            assert packed["total_tokens"] == packed["attention_mask"].sum(dim=1).tolist()
    return made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_waits_is_in_the_checkpoint(num_workers: int) -> None:
    straight, begun, resumed = packed_loader(), packed_loader(num_workers), packed_loader(num_workers)
    as_llm_foundry = [straight.dataloader.collate_fn([Rows()[n] for n in range(i, i + 7)]) for i in range(0, 70, 7)]  # type: ignore[union-attr]
    before, after = Packing(begun), Packing(resumed)
    made = batches(begun, 0, 4)
    saved = before.state_dict()
    after.load_state_dict(saved)
    after.fit_start(NOTHING, NOTHING)
    made += batches(resumed, 4, 10)
    assert [ids for ids, _, _ in made] == [batch["input_ids"].tolist() for batch in as_llm_foundry]
    assert [labels for _, labels, _ in made] == [batch["labels"].tolist() for batch in as_llm_foundry]
    forgetful = packed_loader()
    Packing(forgetful)
    assert batches(forgetful, 4, 10) != made[4:]
    assert resumed.dataloader.dataset.packing_ratio == Fraction(EXAMPLES, BINS)  # type: ignore[union-attr]


@pytest.mark.parametrize(("before", "now"), [(2, 2), (2, 3), (3, 1)])
def test_every_rank_gets_its_own_and_others_share_all(before: int, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = packed_loader()
    packing = Packing(loader)
    batches(loader, 0, 5)
    packer: Any = packing._packer
    waiting = packer._leftover_bins
    assert len(waiting) >= 4
    shares = [waiting[rank::before] for rank in range(before)]
    monkeypatch.setattr(dist, "all_gather_object", lambda _: shares)
    saved = packing.state_dict()
    monkeypatch.setattr(dist, "get_world_size", lambda: now)
    given = []
    for rank in range(now):
        monkeypatch.setattr(dist, "get_global_rank", lambda rank=rank: rank)
        packing.load_state_dict(saved)
        packing.fit_start(NOTHING, NOTHING)
        given.append([(size, rows["input_ids"].tolist()) for size, rows in packer._leftover_bins])
    plain = [[(size, rows["input_ids"].tolist()) for size, rows in share] for share in shares]
    assert sorted(one for share in given for one in share) == sorted(one for share in plain for one in share)
    assert now != before or given == plain


def test_an_evaluation_sees_all_of_its_data_each_time() -> None:
    loader = packed_loader()
    evaluator = Evaluator(label="eval", dataloader=loader, metric_names=[])
    pack_whole(evaluator)
    first = batches(loader, 0, 10)
    seen = sorted(id for ids, _, _ in first for row in ids for id in row if id)
    assert seen == sorted(id for n in range(70) for id in Rows()[n])
    assert max(len(ids) for ids, _, _ in first) > BINS
    assert evaluator.device_eval_microbatch_size == BINS
    assert batches(loader, 0, 10) == first
    plain = Evaluator(label="eval", dataloader=DataSpec([1]), metric_names=[], device_eval_microbatch_size=7)
    pack_whole(plain)
    assert plain.device_eval_microbatch_size == 7
    assert not Packing(DataSpec([1])).is_needed


def test_a_packed_run_goes_on_to_the_same_losses(shards: Path, tmp_path: Path, run_command: Command) -> None:
    questions = ROOT / "data_prep" / "sotu" / "questions.jsonl"
    cut = ["--seq-len", "128", "--holdout", "0.9"]  # a tenth is read more than once
    sizes = ["d_model=32", "n_heads=4", "n_layers=2", "vocab_size=512"]
    changes = [
        *(f"model.{size}" for size in sizes),
        *(f"{loader}.dataset.streams.questions.local={tmp_path}" for loader in ("train_loader", "eval_loader")),
        f"tokenizer.name={shards / 'tokenizer'}",
        f"save_folder={tmp_path / 'run' / 'checkpoints'}",
        *("pretrained=null", "max_duration=9ba", "save_interval=6ba", "scheduler.t_warmup=1ba", "eval_interval=0ba"),
        *("train_loader.dataset.packing_ratio=3.0", "progress_bar=false"),
    ]
    prepare = ["python", "-m", "data_prep.finetune", questions, "--out", tmp_path, "--tokenizer", shards / "tokenizer"]
    done = run_command(*prepare, *cut)
    assert done.returncode == 0, done.stderr
    command = ["python", "train.py", "yamls/finetune/mpt-quickstart-chat.yaml", *changes]
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    straight = losses(tmp_path / "run")
    size = (tmp_path / "run" / "metrics.jsonl").stat().st_size
    (last,) = (tmp_path / "run" / "checkpoints").glob("*-ba9-rank0.pt")
    last.unlink()
    done = run_command(*command)
    assert done.returncode == 0, done.stderr
    assert "autoresume: going on from" in done.stdout
    assert losses(tmp_path / "run") == straight
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > size  # three steps were done again
