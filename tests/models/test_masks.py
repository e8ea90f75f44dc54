"""The block mask against torch's own, and against the rule it stands for; the bias, whole and in bands."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from recipes.models.masks import BLOCK, Batch, additive_bias, bands, block_mask, key_rule, needs_bias, segments

CPU = torch.device("cpu")
DOCUMENTS = ("", "sorted", "shuffled")


def make_batch(S: int, T: int, documents: str, padding: str) -> Batch:
    key_padding = sequence_id = None
    if padding:
        key_padding = torch.ones(2, T, dtype=torch.bool)
        key_padding[1, slice(0, T // 3) if padding == "left" else slice(T - T // 3, T)] = False
    if documents:
        sequence_id = (torch.arange(S) * 5 // S).repeat(2, 1)
        if documents == "shuffled":
            sequence_id = sequence_id[:, torch.randperm(S, generator=torch.Generator().manual_seed(0))]
    return Batch(key_padding=key_padding, sequence_id=sequence_id)


def seen_by_blocks(mask: BlockMask, batch_size: int, S: int, T: int) -> torch.Tensor:
    """Evaluates a block mask as the kernel does: full blocks whole, partial blocks by the rule, others not at all."""
    b, q, k = torch.meshgrid(torch.arange(batch_size), torch.arange(S), torch.arange(T), indexing="ij")
    rule = mask.mask_mod(b, None, q, k)

    def dense(counts: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        blocks = torch.zeros(columns.shape, dtype=torch.bool)
        blocks.scatter_(-1, columns.long(), torch.arange(columns.shape[-1]) < counts[..., None])
        blocks = blocks[:, 0].expand(batch_size, -1, -1)  # (B, N, M)
        rows, columns_ = mask.BLOCK_SIZE
        return blocks.repeat_interleave(rows, 1).repeat_interleave(columns_, 2)[:, :S, :T]

    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    return dense(mask.full_kv_num_blocks, mask.full_kv_indices) | (dense(mask.kv_num_blocks, mask.kv_indices) & rule)


@pytest.mark.parametrize("rows", [BLOCK, 2 * BLOCK])
@pytest.mark.parametrize("padding", ["", "left", "right"])
@pytest.mark.parametrize("window", [-1, 50, 200])
@pytest.mark.parametrize(
    ("S", "T", "documents"),
    [(100, 300, ""), *((S, S, documents) for S in (77, 129, 300, 384) for documents in DOCUMENTS)],
)
def test_block_mask_is_the_rule(S: int, T: int, window: int, documents: str, padding: str, rows: int) -> None:
    batch = make_batch(S, T, documents, padding)
    ours = block_mask(batch, window, S, T, CPU, rows)
    rule = key_rule(batch, window, T - S, CPU)
    b, q, k = torch.meshgrid(torch.arange(2), torch.arange(S), torch.arange(T), indexing="ij")
    assert torch.equal(seen_by_blocks(ours, 2, S, T), rule(b, None, q, k))
    if documents or padding:
        return
    # neither lists a block too many
    torchs = create_block_mask(rule, None, None, S, T, device="cpu", BLOCK_SIZE=(rows, BLOCK))
    assert torch.equal(ours.kv_num_blocks, torchs.kv_num_blocks)
    assert torch.equal(ours.full_kv_num_blocks, torchs.full_kv_num_blocks)


def test_sorted_documents_list_no_block_too_many() -> None:
    batch = make_batch(1024, 1024, "sorted", "")
    ours = block_mask(batch, -1, 1024, 1024, CPU)
    torchs = create_block_mask(key_rule(batch, -1, 0, CPU), 2, None, 1024, 1024, device="cpu")
    assert torch.equal(ours.kv_num_blocks, torchs.kv_num_blocks)
    assert torch.equal(ours.full_kv_num_blocks, torchs.full_kv_num_blocks)
    assert torch.equal(ours.q_num_blocks, torchs.q_num_blocks)


@pytest.mark.parametrize(
    ("batch", "window", "alibi", "S", "T", "shape"),
    [
        (Batch(), -1, False, 6, 6, None),
        (Batch(), -1, False, 1, 6, None),
        (Batch(), 3, False, 6, 6, (1, 1, 6, 6)),
        (Batch(), -1, False, 2, 6, (1, 1, 2, 6)),
        (Batch(slopes=torch.ones(4)), -1, True, 6, 6, (1, 4, 6, 6)),
        (Batch(slopes=torch.ones(4)), -1, False, 6, 6, None),
        (Batch(key_padding=torch.ones(3, 6, dtype=torch.bool)), -1, False, 6, 6, (3, 1, 6, 6)),
        (Batch(sequence_id=torch.zeros(3, 6), slopes=torch.ones(4)), -1, True, 6, 6, (3, 4, 6, 6)),
    ],
)
def test_bias_is_no_larger_than_it_must_be(
    batch: Batch, window: int, alibi: bool, S: int, T: int, shape: tuple[int, ...] | None
) -> None:
    assert needs_bias(batch, window, alibi, S, T) == (shape is not None)
    if shape is not None:
        bias = additive_bias(batch, window, alibi, range(S), range(T), T - S, torch.float32, CPU)
        assert tuple(bias.shape) == shape
        assert bool(bias.isfinite().all())


@pytest.mark.parametrize("rows", [1, 4, 7, 50])
@pytest.mark.parametrize("window", [-1, 6])
@pytest.mark.parametrize("documents", ["", "sorted"])
@pytest.mark.parametrize("past", [0, 9])
def test_bands_are_the_whole_bias(rows: int, window: int, documents: str, past: int) -> None:
    """What a band leaves out is forbidden, what it has is the whole bias's, and without documents it is one tensor."""
    S, T = 20, 20 + past
    if documents and past:
        return  # refused: packed documents have no cache
    batch = make_batch(S, T, documents, "")
    batch.slopes = torch.tensor([0.5, 0.25])
    lowest = torch.finfo(torch.float64).min
    whole = additive_bias(batch, window, True, range(S), range(T), past, torch.float64, CPU)
    rebuilt = torch.full_like(whole, lowest)
    cut = bands(batch, window, True, S, T, rows, torch.float64, CPU)
    for queries, keys, bias in cut:
        rebuilt[:, :, queries, keys] = bias
    assert torch.equal(rebuilt, whole)
    assert documents or len({bias.untyped_storage().data_ptr() for _, _, bias in cut}) == 1


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 5\), expected \(2, 6\)"):
        Batch(key_padding=torch.ones(2, 5, dtype=torch.bool)).check(2, 6, 6)
    with pytest.raises(ValueError, match="cannot be continued from a key/value cache"):
        Batch(sequence_id=torch.zeros(2, 1)).check(2, 1, 6)


def test_segments_begin_where_documents_and_padding_do() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    tokens = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]).bool()
    both = segments(Batch(sequence_id=ids, key_padding=tokens), 6)
    assert both.tolist() == [0, 2, 5, 6, 8, 12]
    assert both.dtype == torch.int32
    assert segments(Batch(sequence_id=ids), 6).tolist() == [0, 2, 5, 6, 12]
    assert segments(Batch(key_padding=tokens), 6).tolist() == [0, 6, 8, 12]
