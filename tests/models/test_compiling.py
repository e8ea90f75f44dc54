"""Compiled and selectively checkpointed blocks: same numbers, one compilation for all blocks, fewer tensors kept."""

import inspect
import logging
from functools import partial
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.optim import DecoupledAdamW
from torch import Tensor

from recipes.callbacks import recompiles
from recipes.callbacks.recompiles import RecompileCounter, compiled_graphs
from recipes.models.compiling import checkpoint_blocks, checkpoint_by_operation, compile_blocks, uncompiled
from recipes.training.optimizers import FusedAdamW

from ..tiny import composer_model

pytestmark = pytest.mark.filterwarnings("ignore")
VOCAB = 60
make_model = partial(composer_model, n_layers=3, max_seq_len=64, vocab_size=VOCAB)


def make_batch(length: int = 32, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids, dtype=torch.bool)}


def loss_and_gradients(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    loss = model.loss(model(batch), batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def test_compiled_blocks_give_the_same_numbers_and_compile_once() -> None:
    torch._dynamo.reset()
    plain, compiled = make_model(), make_model()
    names = [name for name, _ in compiled.named_parameters()]
    compile_blocks(compiled, backend="aot_eager")
    assert [name for name, _ in compiled.named_parameters()] == names
    want = loss_and_gradients(plain, make_batch())
    for got, expected in zip(loss_and_gradients(compiled, make_batch()), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    graphs = compiled_graphs()
    for seed in range(1, 4):
        loss_and_gradients(compiled, make_batch(seed=seed))
    assert compiled_graphs() == graphs  # other tokens and masks are no reason to compile
    compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(make_batch()).logits, plain.eval()(make_batch()).logits)
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.cuda
def test_compiled_blocks_give_the_same_numbers_on_a_gpu() -> None:
    check_compiled_blocks("cuda")


def check_compiled_blocks(device: str) -> None:
    """With the compiler's own kernels, in single precision and in autocast's bfloat16; then a validation's pass."""
    plain, compiled = (make_model(n_heads=2).to(device) for _ in range(2))  # FlexAttention wants 16 dimensions a head
    compile_blocks(compiled)
    batch = {name: tensor.to(device) for name, tensor in make_batch().items()}
    wanted = loss_and_gradients(plain, batch)
    for is_autocast, tolerance in ((False, 1e-3), (True, 0.05)):
        with torch.autocast(device, torch.bfloat16, enabled=is_autocast):
            got = loss_and_gradients(compiled, batch)
        for ours, expected in zip(got, wanted, strict=True):
            assert (ours - expected).norm() <= tolerance * expected.norm() + 1e-6
    compiled.eval()
    with torch.no_grad():
        logits, expected = compiled(batch).logits, plain.eval()(batch).logits
    assert (logits - expected).norm() <= 1e-3 * expected.norm()


def test_ddp_leaves_a_blocks_graph_whole() -> None:
    operations: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        operations.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph.forward

    counted = {}
    is_first = not torch.distributed.is_initialized()  # a test that trained in this process leaves its group
    if is_first:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for name in ("plain", "ddp"):
            torch._dynamo.reset()
            operations.clear()
            model = make_model(d_model=256)  # gradients of a block: more than a bucket's first megabyte
            compile_blocks(model, backend=backend)
            whole = torch.nn.parallel.DistributedDataParallel(model) if name == "ddp" else model
            model.loss(whole(make_batch()), make_batch()).backward()
            counted[name] = list(operations)
    finally:
        if is_first:
            torch.distributed.destroy_process_group()
        torch._dynamo.reset()
    assert counted["ddp"] == counted["plain"]


def test_passes_of_any_length_are_not_compiled_where_tasks_are_judged() -> None:
    torch._dynamo.reset()
    model = make_model()
    compile_blocks(model, backend="aot_eager")
    graphs = compiled_graphs()
    with uncompiled(model), torch.no_grad():
        for length in range(3, 15):  # more than torch compiles variants of one function
            model(make_batch(length))
    assert compiled_graphs() == graphs
    loss_and_gradients(model, make_batch())
    assert compiled_graphs() > graphs
    torch._dynamo.reset()


def test_selective_checkpointing_keeps_less_and_gives_the_same_numbers() -> None:
    plain, selective = make_model(), make_model()
    checkpoint_by_operation(selective)
    kept: dict[str, int] = {}
    results = {}
    for name, model in (("plain", plain), ("selective", selective)):
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.loss(model(make_batch()), make_batch())
        kept[name] = sum(sizes)
        results[name] = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for got, expected in zip(results["selective"], results["plain"], strict=True):
        assert torch.equal(got, expected)
    assert kept["selective"] < kept["plain"] / 2
    calls = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(function)
            return function(*args, **(kwargs or {}))

    counts = []
    for model in (plain, selective):
        calls.clear()
        with Seen():
            loss_and_gradients(model, make_batch())
        counts.append((calls.count(torch.ops.aten.mm.default), calls.count(torch.ops.aten.gelu.default)))
    assert counts[1][0] == counts[0][0]  # no product is computed twice
    assert counts[1][1] == 2 * counts[0][1]  # activations are


def test_fused_adamw_takes_the_steps_of_decoupled_adamw() -> None:
    ours, theirs = make_model(), make_model()
    settings: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-2}
    steps = [
        (ours, FusedAdamW(ours.parameters(), **settings)),
        (theirs, DecoupledAdamW(theirs.parameters(), **settings)),
    ]
    for step in range(4):
        for model, optimizer in steps:
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / 8)  # a schedule
            optimizer.zero_grad()
            model.loss(model(make_batch(seed=step)), make_batch(seed=step)).backward()
            optimizer.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="expected more than 0"):
        FusedAdamW(ours.parameters(), lr=0.0)


def test_fused_adamw_decays_groups_of_parameters_as_decoupled_adamw_does() -> None:
    settings: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.05}
    found = []
    for kind in (FusedAdamW, DecoupledAdamW):
        weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
        groups = [{"params": [weights[0]]}, {"params": [weights[1]], "weight_decay": 0.1}]
        optimizer = kind([*groups, {"params": [weights[2]], "lr": 5e-4}], **settings)
        for weight in weights:
            weight.grad = torch.zeros(3)
        optimizer.step()
        found.append(torch.stack([weight.detach() for weight in weights]))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0][:, 0], torch.tensor([0.95, 0.9, 0.95]))


def test_checkpointed_blocks_give_the_same_numbers_and_names() -> None:
    plain, checkpointed = make_model(), make_model()
    checkpoint_blocks(checkpointed)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    checkpointed.load_state_dict(plain.state_dict())
    for got, expected in zip(*(loss_and_gradients(m, make_batch()) for m in (checkpointed, plain)), strict=True):
        assert torch.equal(got, expected)
    kept = []
    for model in (plain, checkpointed):
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(model(make_batch()), make_batch())
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


def test_late_compilations_are_counted_and_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # before and after each step: those between the third and the fourth are not the training's
    graphs = iter([0, 2, 2, 3, 3, 3, 9, 9, 9, 11, 11, 11])
    monkeypatch.setattr(recompiles, "compiled_graphs", lambda: next(graphs))
    logged = InMemoryLogger()
    model = make_model()
    counter = RecompileCounter(warm_up=2)
    trainer = Trainer(
        model=model,
        train_dataloader=torch.utils.data.DataLoader([{k: v[0] for k, v in make_batch().items()}] * 6, batch_size=1),
        optimizers=FusedAdamW(model.parameters()),
        max_duration="6ba",
        callbacks=[counter],
        loggers=[logged],
        device="cpu",
        progress_bar=False,
    )
    with caplog.at_level(logging.WARNING, logger="recipes.callbacks.recompiles"):
        trainer.fit()
    assert counter.late == 2
    assert [record.message for record in caplog.records if "graphs again" in record.message] == [
        "step 5 compiled 2 graphs again, 2 since the first 2 steps; TORCH_LOGS=recompiles says why"
    ]
    assert [value for _, value in logged.data["compile/late_graphs"]] == [0, 0, 0, 0, 2, 2]


def test_the_defaults_of_fused_adamw_are_composers() -> None:
    ours, theirs = (inspect.signature(kind).parameters for kind in (FusedAdamW, DecoupledAdamW))
    assert {name: theirs[name].default for name in ours} == {name: p.default for name, p in ours.items()}
