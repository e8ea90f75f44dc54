"""RWKV-4 against transformers' own: scores, padding, documents, generation, first weights, loss, blocks, size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from eval.backbone import Backbone
from recipes.config.check import check
from recipes.config.load import load
from recipes.cost.architecture import model_shape
from recipes.cost.flops import flops_per_token, llm_foundry_flops_per_token
from recipes.cost.memory import _saved_numbers_per_token
from recipes.cost.parameters import count_parameters
from recipes.cost.setup import read_setup
from recipes.models import compiling
from recipes.models.rwkv import ComposerRwkvCausalLM, RwkvConfig, RwkvForCausalLM
from recipes.models.rwkv_blocks import RwkvBlock
from recipes.parts import build_model, register_components

from ..conftest import ROOT, Command
from ..tiny import RWKV, VOCAB, build

pytestmark = pytest.mark.filterwarnings("ignore")


def ids(rows: int = 2, tokens: int = 20) -> Tensor:
    return torch.randint(2, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(1))


def theirs(model: RwkvForCausalLM, **changes: Any) -> transformers.RwkvForCausalLM:
    config = transformers.RwkvConfig(
        vocab_size=VOCAB, context_length=32, hidden_size=32, num_hidden_layers=2, **changes
    )
    made = transformers.RwkvForCausalLM(config)
    made.load_state_dict(model.state_dict())
    return made.eval()


@pytest.mark.parametrize(("rescale_every", "difference"), [(0, 1e-5), (1, 1e-3)])
def test_scores_are_those_of_transformers(rescale_every: int, difference: float) -> None:
    """Halved activations, for fp16, count a norm's epsilon for more."""
    model = build(RWKV)
    with torch.no_grad():
        ours = model(ids()).logits
        want = theirs(model, rescale_every=rescale_every)(ids(), use_cache=False).logits
    assert ours.std() > 0.1
    assert (ours - want).abs().max() < difference


def test_gradients_are_those_of_transformers() -> None:
    model = build(RWKV).train()
    other = theirs(model, rescale_every=0).train()
    model(ids()).logits.square().sum().backward()
    other(ids(), use_cache=False).logits.square().sum().backward()
    want = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        gradient = want[name].grad
        assert parameter.grad is not None
        assert gradient is not None
        assert (parameter.grad - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6, name


def test_padding_and_packed_documents_change_nothing() -> None:
    alone = build(RWKV)
    packed = build({**RWKV, "attn_config": {"attn_uses_sequence_id": True}})
    rows = ids(2, 12)
    with torch.no_grad():
        want = alone(rows).logits
        left = torch.cat([torch.zeros(2, 5, dtype=torch.long), rows], 1)
        mask = torch.arange(17)[None].expand(2, 17) >= 5
        assert (alone(left, mask).logits[:, 5:] - want).abs().max() < 1e-5
        right = torch.cat([rows, torch.zeros(2, 5, dtype=torch.long)], 1)
        assert (alone(right, mask.flip(1)).logits[:, :12] - want).abs().max() < 1e-5
        two = torch.cat([rows[:1], rows[1:]], 1)  # (1, 24)
        documents = torch.arange(24)[None] // 12
        apart = packed(two, sequence_id=documents).logits
        assert (apart.view(2, 12, -1) - want).abs().max() < 1e-5
        together = alone(two, sequence_id=documents).logits
        assert (together[0, 12:] - want[1]).abs().max() > 1e-2


def test_the_model_itself_searches_beams_without_a_state() -> None:
    model = build(RWKV)
    for seed in range(3):
        ids = torch.randint(1, VOCAB, (2, 5), generator=torch.Generator().manual_seed(seed))
        options = {"num_beams": 3, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
        kept = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert torch.equal(kept, model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options))


def test_generation_keeps_a_state_and_reads_padded_rows() -> None:
    model = build(RWKV)
    rows = ids(2, 9)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    want = [theirs(model).generate(row[None], **settings)[0, 9:].tolist() for row in rows]
    for use_cache in (True, False):
        mask = torch.ones_like(rows)
        assert model.generate(rows, attention_mask=mask, use_cache=use_cache, **settings)[:, 9:].tolist() == want
    left = torch.cat([torch.ones(2, 3, dtype=torch.long), rows], 1)
    mask = (torch.arange(12)[None].expand(2, 12) >= 3).long()
    assert model.generate(left, attention_mask=mask, use_cache=True, **settings)[:, 12:].tolist() == want


def test_first_weights_are_those_of_the_authors() -> None:
    """Vectors as in transformers, which took them over (but for time_first); matrices by their scale."""
    torch.manual_seed(0)
    model = RwkvForCausalLM(RwkvConfig(d_model=256, n_layers=3, vocab_size=512))
    other = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=512, hidden_size=256, num_hidden_layers=3)
    ).state_dict()
    for name, parameter in model.named_parameters():
        if "time_decay" in name or "time_mix" in name:
            torch.testing.assert_close(parameter.data, other[name], msg=name)
    first = model.rwkv.blocks[1].attention.time_first
    assert [round(float(x), 4) for x in first[:3]] == [-1.204, -0.704, -1.704]
    zeros = {n for n, p in model.named_parameters() if p.dim() == 2 and not p.any()}
    assert {n.split(".", 3)[3] for n in zeros} == {
        "attention.key.weight", "attention.receptance.weight", "attention.output.weight",
        "feed_forward.receptance.weight", "feed_forward.value.weight",
    }  # fmt: skip
    assert float(model.rwkv.blocks[0].attention.value.weight.detach().std()) == pytest.approx(1 / 16, rel=0.05)
    assert float(model.rwkv.blocks[0].feed_forward.key.weight.detach().std()) == pytest.approx(1 / 16, rel=0.05)
    assert float(model.head.weight.detach().std()) == pytest.approx(0.5 / 16, rel=0.05)
    assert model.rwkv.embeddings.weight.abs().max() <= 1e-4


# As the second of two processes would: what Composer does where it shards a model that was built on no device.
SHARDED = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from recipes.models.rwkv import RwkvConfig, RwkvForCausalLM
torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
torch.manual_seed(0)
sizes = {"d_model": 32, "n_layers": 2, "vocab_size": 64}
whole, model = (RwkvForCausalLM(RwkvConfig(**sizes, init_device=device)) for device in ("cpu", "meta"))
for name, module in model.named_modules():
    if model.fsdp_wrap_fn(module):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
for module in model.modules():
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        module.to_empty(device="cpu", recurse=False)
        model.param_init_fn(module)
for (name, here), there in zip(model.named_parameters(), whole.parameters(), strict=True):
    local, half = here.to_local(), there.chunk(2)[1:]
    if "time_" in name or "ln" in name:
        assert torch.equal(local, half[0] if half else there[:0]), name
    elif there.any():
        assert abs(float(local.std() / there.std()) - 1) < 0.2, name
    else:
        assert not local.any(), name
print("as whole")
"""


def test_first_weights_of_a_shard_are_its_rows_of_the_whole(run_command: Command) -> None:
    done = run_command("python", "-W", "ignore", "-c", SHARDED)
    assert done.stdout.splitlines()[-1:] == ["as whole"], done.stderr[-2000:]


# What FSDP casts on its way into a block must not be what was seen: in bf16 it would lose what it is the sum of.
GENERATING = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from tests.tiny import RWKV, VOCAB, build
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
plain, model = build(RWKV), build(RWKV)
for name, module in model.named_modules():
    if model.fsdp_wrap_fn(module):
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
fully_shard(model, mesh=init_device_mesh("cpu", (1,)), mp_policy=MixedPrecisionPolicy(torch.bfloat16))
ids = torch.arange(2, 22)[None]
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    want, state = plain(ids).logits.float(), None
    for token in ids[0]:
        out = model(token.view(1, 1), state=state, use_cache=True)
        state = out.state
    assert state[0].seen.weight.dtype == torch.float32
    difference = float((out.logits[:, -1].float() - want[:, -1]).abs().max() / want.std())
assert difference < 0.05, difference
print("in fp32")
"""


def test_fsdp_leaves_what_was_seen_in_fp32(run_command: Command) -> None:
    done = run_command("python", "-W", "ignore", "-c", GENERATING)
    assert done.stdout.splitlines()[-1:] == ["in fp32"], done.stderr[-2000:]


def test_beams_are_searched_without_a_state() -> None:
    model = build(RWKV)
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3, "pad_token_id": 1}
    mask = torch.ones(2, 9, dtype=torch.long)
    want = model.generate(ids(2, 9), attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(Backbone(model, 32).generate(input_ids=ids(2, 9), attention_mask=mask, **settings), want)


def test_no_word_is_an_end_unless_it_is_said() -> None:
    model = RwkvForCausalLM(RwkvConfig(d_model=8, n_layers=1, vocab_size=16))  # zeros: token 0 is the likeliest
    with torch.no_grad():
        model.head.weight.zero_()
    written = model.generate(torch.tensor([[3]]), max_new_tokens=5, do_sample=False, pad_token_id=1)
    assert written.tolist() == [[3, 0, 0, 0, 0, 0]]


def test_sizes_at_the_edges() -> None:
    assert RwkvConfig(d_model=152, expansion_ratio=1000 / 152).intermediate_size == 1000
    assert model_shape({**RWKV, "d_model": 152, "expansion_ratio": 1000 / 152}).ffn_hidden_size == 1000
    tiny = RwkvForCausalLM(RwkvConfig(d_model=1, n_layers=1, vocab_size=4))
    assert all(p.isfinite().all() for p in tiny.parameters())
    first_of_machine = RwkvForCausalLM(RwkvConfig(d_model=8, n_layers=1, vocab_size=4, init_device="mixed"))
    assert first_of_machine.head.weight.device.type == "cpu"


def test_another_head_takes_no_loss() -> None:
    """As after LLM Foundry has made the vocabulary longer for a tokenizer."""
    model = composer_model().train()
    model.model.resize_token_embeddings(VOCAB + 64)
    batch = {"input_ids": ids() + 64, "labels": ids() + 64}
    out = model(batch)
    assert out.logits.shape[-1] == VOCAB + 64
    assert model.loss(out, batch).isfinite()


def composer_model(**changes: Any) -> ComposerRwkvCausalLM:
    register_components()
    made = build_model({**RWKV, **changes}, None, None, None)
    assert isinstance(made, ComposerRwkvCausalLM)
    made.model.load_state_dict(build(RWKV).state_dict())
    return made


def test_the_loss_needs_no_logits_and_is_the_same() -> None:
    batch = {"input_ids": ids(), "labels": ids()}
    losses = {}
    for name in ("fused_crossentropy", "torch_crossentropy"):
        model = composer_model(loss_fn=name, z_loss=1e-2).train()
        out = model(batch)
        assert ("logits" in out) == (name == "torch_crossentropy")
        loss = model.loss(out, batch)
        loss.backward()
        losses[name] = (loss.detach(), [p.grad for p in model.parameters()])
    torch.testing.assert_close(losses["fused_crossentropy"][0], losses["torch_crossentropy"][0])
    for one, other in zip(losses["fused_crossentropy"][1], losses["torch_crossentropy"][1], strict=True):
        assert one is not None
        assert other is not None
        assert (one - other).abs().max() <= 1e-4 * other.abs().max() + 1e-7


def test_blocks_are_checkpointed_and_wrapped() -> None:
    batch = {"input_ids": ids(), "labels": ids()}

    def gradients(model: ComposerRwkvCausalLM) -> list[Tensor]:
        model.train()
        model.loss(model(batch), batch).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    want = gradients(composer_model())
    whole, operations = composer_model(), composer_model()
    compiling.checkpoint_blocks(whole)
    compiling.checkpoint_by_operation(operations)
    for model in (whole, operations):
        for got, gradient in zip(gradients(model), want, strict=True):
            torch.testing.assert_close(got, gradient)
    model = composer_model().model
    wrapped = {name for name, module in model.named_modules() if model.fsdp_wrap_fn(module)}
    assert wrapped == {"rwkv.embeddings", "rwkv.blocks.0", "rwkv.blocks.1", "head"}


def test_size_and_flops_are_counted_as_the_paper_does() -> None:
    model = {**RWKV, "d_model": 768, "n_layers": 12, "vocab_size": 50277, "init_device": "meta"}
    module = RwkvForCausalLM(RwkvConfig(**{k: v for k, v in model.items() if k != "name"}))
    assert sum(p.numel() for p in module.parameters()) == count_parameters(model).total == 169_342_464  # 1.693e8
    flops = flops_per_token(model, 1024)
    assert flops.matrix + flops.attention + flops.head == pytest.approx(2.613e8, rel=1e-3)  # table 1's FLOPs a token
    small = composer_model()
    batch = {"input_ids": ids(3, 16)}
    assert small.flops_per_batch(batch) == 3 * 16 * llm_foundry_flops_per_token(RWKV, 16)


@pytest.mark.parametrize("expansion_ratio", [4, 3])
def test_the_plan_counts_what_a_block_keeps(expansion_ratio: int) -> None:
    D, S = 64, 40
    block = RwkvBlock(RwkvConfig(d_model=D, n_layers=2, vocab_size=64, expansion_ratio=expansion_ratio), 1)
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters and tensor.numel() >= S * D:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(torch.randn(1, S, D, requires_grad=True))
    recipe = {
        "max_seq_len": S, "global_train_batch_size": 1, "max_duration": "1ba", "precision": "fp32",
        "model": {"name": "rwkv_causal_lm", "d_model": D, "n_layers": 2, "vocab_size": 64,
                  "expansion_ratio": expansion_ratio},
    }  # fmt: skip
    assert out[0].shape == (1, S, D)
    assert sum(kept.values()) == 4 * S * _saved_numbers_per_token(read_setup(recipe, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.n_heads=4", "n_heads"),
        ("model.d_model=0", "d_model"),
        ("model.expansion_ratio=0.3", "expansion_ratio"),
        ("model.attn_config.alibi=true", "attn_config.alibi"),
        ("model.loss_fn=crossentropy", "loss_fn"),
        ("model.peft_config.r=4", "peft_config"),
        ("precision=amp_fp8", "rwkv_causal_lm has none"),
        ("dpo.beta=0.1", "adapters (LoRA), which rwkv_causal_lm does not have"),
    ],
    ids=lambda value: value.partition("=")[0],
)
def test_keys_that_it_does_not_have_are_refused(change: str, said: str) -> None:
    found = check(load(ROOT / "yamls" / "pretrain" / "rwkv-quickstart.yaml", [change]))
    assert any(said in str(problem) for problem in found)
