"""Loss by position: the same losses as cross entropy gives, in ranges; lengths beyond the trained one."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bench.positions import bucketed, loss_by_position, stretch
from recipes.models import mpt

pytestmark = pytest.mark.filterwarnings("ignore")


def make_model(**more: Any) -> mpt.MPTForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 16, "vocab_size": 40}
    return mpt.MPTForCausalLM(mpt.MPTConfig(**shape, **more)).eval()


@pytest.mark.parametrize("attention", [{"alibi": True}, {"rope": True, "rope_impl": "hf"}])
def test_losses_beyond_the_trained_length(attention: dict[str, Any]) -> None:
    model = make_model(attn_config=attention)
    ids = torch.randint(40, (3, 50), generator=torch.Generator().manual_seed(1))
    with pytest.raises(AssertionError):
        model(input_ids=ids)
    assert stretch(model, 50, None) == 16
    losses, count = loss_by_position(model, iter(ids))
    assert count == 3
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
    want = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(0)
    torch.testing.assert_close(losses, want.double(), rtol=1e-4, atol=1e-5)


def test_scaled_angles_change_a_rope_model_alone() -> None:
    model = make_model(attn_config={"rope": True, "rope_impl": "hf"})
    ids = torch.randint(40, (1, 50), generator=torch.Generator().manual_seed(1))
    stretch(model, 50, None)
    plain = model(input_ids=ids).logits
    model.config.max_seq_len = 16
    stretch(model, 50, "linear:4")
    assert not torch.allclose(model(input_ids=ids).logits, plain)
    for attention, words in (({"alibi": True}, "for a model with rope"), ({}, "learned positions")):
        with pytest.raises(SystemExit, match=words):
            stretch(make_model(attn_config=attention), 50, "linear:4")


def test_buckets_cover_every_position_once() -> None:
    found = bucketed(torch.log(torch.arange(1.0, 11.0)), buckets=3)
    assert [(first, last) for first, last, _ in found] == [(1, 4), (5, 7), (8, 10)]
    assert found[0][2] == pytest.approx(math.exp((math.log(1) + math.log(2) + math.log(3) + math.log(4)) / 4))
