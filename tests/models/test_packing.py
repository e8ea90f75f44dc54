"""Concatenated documents kept apart: what a document is given for its tokens does not depend on its neighbours."""

from typing import Any

import pytest
import torch
from llmfoundry.data.text_data import ConcatenatedSequenceCollatorWrapper
from torch import Tensor

from ..tiny import composer_model

pytestmark = pytest.mark.filterwarnings("ignore")
EOS, VOCAB, S = 0, 40, 24
BORDERS = [9, 17]  # the last tokens of the first two documents
POSITIONS: dict[str, dict[str, Any]] = {"alibi": {"alibi": True}, "rope": {"rope": True, "rope_impl": "hf"}}


def make_model(uses_sequence_id: bool, **attention: Any) -> Any:
    attention |= {"attn_uses_sequence_id": uses_sequence_id}
    init = {"name": "kaiming_normal_", "emb_init_std": 1.0}
    sizes = {"n_layers": 3, "max_seq_len": S, "vocab_size": VOCAB}
    return composer_model(init_config=init, attn_config=attention, no_bias=False, **sizes).double()


def make_batch(seed: int) -> dict[str, Tensor]:
    """A row of three documents; the middle one is the same for every seed. Borders come from EOS, as when training."""
    middle = torch.randint(1, VOCAB, (S,), generator=torch.Generator().manual_seed(99))
    ids = torch.randint(1, VOCAB, (S,), generator=torch.Generator().manual_seed(seed))
    ids[BORDERS[0] + 1 : BORDERS[1]] = middle[BORDERS[0] + 1 : BORDERS[1]]
    ids[BORDERS] = EOS

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        ids = torch.stack(rows)
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids, dtype=torch.bool)}

    return ConcatenatedSequenceCollatorWrapper(collate, eos_token_id=EOS)([ids])


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_documents_logits_do_not_depend_on_its_neighbours(positions: str) -> None:
    inside = slice(BORDERS[0] + 1, BORDERS[1] + 1)
    apart = make_model(True, **POSITIONS[positions]).eval()
    together = make_model(False, **POSITIONS[positions]).eval()
    one, other = make_batch(1), make_batch(2)
    assert one["sequence_id"].unique().tolist() == [0, 1, 2]
    assert torch.equal(apart(one).logits[0, inside], apart(other).logits[0, inside])
    assert not torch.allclose(together(one).logits[0, inside], together(other).logits[0, inside])


def test_nor_do_its_gradients() -> None:
    """The loss of one document alone, backward: no gradient reaches the embeddings of tokens of the others."""
    model = make_model(True, alibi=True).train()
    batch = make_batch(1)
    batch["labels"][
        :, : BORDERS[0] + 2
    ] = -100  # a label is the next token's: the first that counts is predicted inside
    batch["labels"][:, BORDERS[1] + 1 :] = -100
    embedded = model.model.transformer.wte(batch["input_ids"]).detach().requires_grad_()
    inputs = {k: v for k, v in batch.items() if k != "input_ids"} | {"inputs_embeds": embedded}
    model.loss(model(inputs), batch).backward()
    assert embedded.grad is not None
    touched = embedded.grad[0].abs().sum(-1) > 0  # (S,)
    assert not touched[: BORDERS[0] + 1].any()
    assert not touched[BORDERS[1] + 1 :].any()
    assert touched[BORDERS[0] + 1 : BORDERS[1]].all()
