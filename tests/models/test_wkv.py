"""RWKV's scan against its definition in float64: values, gradients, documents, going on, numbers that overflow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recipes.models.wkv import GROUP, wkv

C = 6
LENGTHS = [1, GROUP - 1, GROUP, GROUP + 1, GROUP * GROUP + 3, 700]  # one token, one group, groups, groups of groups


def make(S: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(S)
    keys = torch.randn(2, S, C, generator=generator, dtype=torch.float64) * 3
    values = torch.randn(2, S, C, generator=generator, dtype=torch.float64)
    decay = torch.exp(torch.linspace(-5, 3, C, dtype=torch.float64))  # what RWKV begins with
    bonus = torch.randn(C, generator=generator, dtype=torch.float64)
    return tuple(x.to(dtype).requires_grad_() for x in (keys, values, decay, bonus))  # type: ignore[return-value]


def written_out(keys: Tensor, values: Tensor, decay: Tensor, bonus: Tensor, starts: Tensor | None = None) -> Tensor:
    """Every pair of tokens, as the definition has it."""
    S = keys.shape[1]
    t, i = torch.arange(S)[:, None], torch.arange(S)[None]
    logs = keys[:, None] - (t - 1 - i)[..., None] * decay  # (B, S, S, C)
    logs = torch.where((t == i)[..., None], (keys + bonus)[:, None], logs)
    seen = (i <= t)[None]
    if starts is not None:
        document = starts.cumsum(1)
        seen = seen & (document[:, :, None] == document[:, None])
    weights = torch.softmax(logs.masked_fill(~seen[..., None], -torch.inf), 2)
    return (weights * values[:, None]).sum(2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    exact = make(700)
    on_gpu = tuple(x.detach().to("cuda", dtype).requires_grad_() for x in exact)
    same = tuple(x.detach().double().cpu().requires_grad_() for x in on_gpu)  # with the digits that the type has
    starts = torch.rand(2, 700, generator=torch.Generator().manual_seed(1)) < 0.01
    out, want = wkv(*on_gpu, starts.cuda())[0], written_out(*same, starts)
    assert (out.cpu() - want).abs().max() < 5e-6
    sent = torch.ones_like(want)
    wanted = torch.autograd.grad(want, same, sent)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    for got, gradient in zip(torch.autograd.grad(out, on_gpu, sent.float().cuda()), wanted, strict=True):
        assert (got.cpu() - gradient).abs().max() < tolerance * gradient.abs().max()


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("S", LENGTHS)
def test_values_and_gradients_are_the_definitions(S: int, documents: bool) -> None:
    inputs = make(S)
    starts = torch.rand(2, S, generator=torch.Generator().manual_seed(1)) < 0.1 if documents else None
    out, want = wkv(*inputs, starts)[0], written_out(*inputs, starts)
    torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-12)
    sent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    wanted = torch.autograd.grad(want, inputs, sent)
    for got, gradient in zip(torch.autograd.grad(out, inputs, sent), wanted, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-8, atol=1e-10)


def test_fp32_is_as_good_as_fp32_can_be() -> None:
    exact = make(700)
    single = tuple(x.detach().float().requires_grad_() for x in exact)
    out, want = wkv(*single)[0], written_out(*exact)
    assert out.dtype == torch.float32
    assert (out - want).abs().max() < 5e-6
    sent = torch.ones_like(want)
    wanted = torch.autograd.grad(want, exact, sent)
    for got, gradient in zip(torch.autograd.grad(out, single, sent.float()), wanted, strict=True):
        assert (got - gradient).abs().max() < 2e-5 * gradient.abs().max()


def test_half_precision_and_autocast_compute_in_fp32() -> None:
    keys, values, decay, bonus = make(40)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = wkv(keys.bfloat16(), values.bfloat16(), decay, bonus)
    assert out.dtype == torch.float32
    want = written_out(keys.bfloat16().double(), values.bfloat16().double(), decay, bonus)
    assert (out - want).abs().max() < 2e-6


@pytest.mark.parametrize("size", [80.0, -80.0, 1e4])
def test_keys_whose_exponentials_overflow_are_no_matter(size: float) -> None:
    keys, values, decay, bonus = make(100, torch.float32)
    out, _ = wkv(keys + size, values, decay, bonus)
    assert out.isfinite().all()
    assert (out - wkv(keys, values, decay, bonus)[0]).abs().max() < 1e-5 * max(1, abs(size) / 10)
    for gradient in torch.autograd.grad(out.sum(), (keys, values, decay, bonus)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("cut", [1, 7, GROUP, 50])
def test_going_on_from_what_was_seen_is_one_pass(cut: int) -> None:
    keys, values, decay, bonus = make(90)
    whole, once = wkv(keys, values, decay, bonus)
    _, seen = wkv(keys[:, :cut], values[:, :cut], decay, bonus)
    rest, twice = wkv(keys[:, cut:], values[:, cut:], decay, bonus, None, seen)
    torch.testing.assert_close(rest, whole[:, cut:])
    torch.testing.assert_close(twice.weight, once.weight)
    torch.testing.assert_close(twice.means[0], once.means[0])


def test_a_document_computes_what_it_computes_alone() -> None:
    keys, values, decay, bonus = make(30)
    starts = torch.zeros(2, 30, dtype=torch.bool)
    starts[:, 13] = True
    out, _ = wkv(keys, values, decay, bonus, starts)
    torch.testing.assert_close(out[:, 13:], wkv(keys[:, 13:], values[:, 13:], decay, bonus)[0])
    (gradient,) = torch.autograd.grad(out[:, 13:].sum(), values)
    assert (gradient[:, :13] == 0).all()


def test_memory_is_linear_in_the_tokens() -> None:
    """What the backward pass keeps: keys, values, and two numbers a channel of what was seen."""
    kept = []
    for S in (64, 128):
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs = make(S, torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept.append((wkv(*inputs)[0], sum(seen.values()))[1])
    assert kept[1] - kept[0] == 4 * 64 * 2 * C * 4  # four tensors, 64 more tokens of two sequences, 4 bytes
