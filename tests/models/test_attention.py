"""The kernels against attention written out in float64: outputs and gradients, on the CPU and on a GPU if there is one.

FlexAttention has no backward on the CPU. Its tests here run what torch.compile captures (our rules, in the forward and
the joint graph) with torch's dense reference in place of the kernel; the kernel itself runs in the tests marked cuda.
"""

import itertools
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import profile

from recipes.models import attention, backends
from recipes.models.attention import Layer, attend, flash2, flash4, flex, math, sdpa
from recipes.models.masks import Batch

from ..conftest import Command

B, H, D = 2, 4, 16
SLOPES = 2.0 ** -torch.arange(2.0, 9.0, 2.0)  # ALiBi's slopes of four heads
PLAIN = Layer(scale=0.3, window=-1, softcap=None, alibi=False)
CASES = {
    "plain": (PLAIN, ""),
    "alibi": (replace(PLAIN, alibi=True), ""),
    "window": (replace(PLAIN, window=9), ""),
    "alibi window padded": (replace(PLAIN, alibi=True, window=9), "left"),
    "alibi padded right": (replace(PLAIN, alibi=True), "right"),
    "documents": (PLAIN, "documents"),
    "alibi packed": (replace(PLAIN, alibi=True), "documents right"),
    "softcap alibi": (replace(PLAIN, alibi=True, softcap=0.7), "left"),
}


def make_batch(S: int, T: int, layout: str, device: str = "cpu") -> Batch:
    batch = Batch(slopes=SLOPES.to(device))
    if "left" in layout or "right" in layout:
        batch.key_padding = torch.ones(B, T, dtype=torch.bool, device=device)
        batch.key_padding[1, slice(0, T // 4) if "left" in layout else slice(T - T // 4, T)] = False
    if "documents" in layout:
        batch.sequence_id = (torch.arange(S, device=device) * 3 // S).repeat(B, 1)
        if batch.key_padding is not None:
            batch.sequence_id = batch.sequence_id.masked_fill(~batch.key_padding, -1)
    return batch


def make_qkv(
    S: int, T: int, G: int, dtype: torch.dtype = torch.float64, device: str = "cpu", head_dim: int = D
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(S + T + G)
    shapes = [(B, H, S, head_dim), (B, G, T, head_dim), (B, G, T, head_dim)]
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    ]


def written_out(q: Tensor, k: Tensor, v: Tensor, batch: Batch, layer: Layer) -> Tensor:
    """Attention, one query of one head at a time."""
    S, T, heads_a_group = q.shape[2], k.shape[2], H // k.shape[1]
    rows = []
    for b, h, i in itertools.product(range(B), range(H), range(S)):
        position = T - S + i
        keys = [j for j in range(position + 1) if layer.window == -1 or j >= position - layer.window]
        if batch.key_padding is not None:
            keys = [j for j in keys if batch.key_padding[b, j]]
        if batch.sequence_id is not None:
            keys = [j for j in keys if batch.sequence_id[b, j] == batch.sequence_id[b, i]]
        if not keys:
            rows.append(torch.zeros_like(q[b, h, i]))
            continue
        scores = k[b, h // heads_a_group, keys] @ q[b, h, i] * layer.scale
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        if layer.alibi:
            scores = scores - SLOPES[h].to(q) * (position - torch.tensor(keys, device=q.device))
        rows.append(scores.softmax(0) @ v[b, h // heads_a_group, keys])
    return torch.stack(rows).view(B, H, S, D)


def outputs_of_tokens(out: Tensor, batch: Batch) -> Tensor:
    out = out.transpose(1, 2)  # (B, S, H, D)
    return out if batch.key_padding is None else out[batch.key_padding[:, -out.shape[1] :]]


def outputs_and_gradients(
    out: Tensor, qkv: list[Tensor], batch: Batch, factors: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The output of the queries that are tokens, and the gradients of a weighted sum of it."""
    out = outputs_of_tokens(out, batch)
    factors = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return (out, *torch.autograd.grad((out * factors).sum(), qkv))


def check_against_math(qkv: list[Tensor], batch: Batch, layer: Layer, tolerance: float) -> None:
    """FlexAttention on a GPU: its output, and its gradients where they are wanted, against float64."""
    exact = [t.detach().double().requires_grad_() for t in qkv]
    got, want = flex(*qkv, batch, layer, 0.0), math(*exact, batch, layer, 0.0)
    if torch.is_grad_enabled():
        gots, wants = outputs_and_gradients(got, qkv, batch), outputs_and_gradients(want, exact, batch)
    else:
        gots, wants = (outputs_of_tokens(got, batch),), (outputs_of_tokens(want, batch),)
    for a, b in zip(gots, wants, strict=True):
        assert not a.isnan().any()
        assert (a.double() - b).norm() <= tolerance * b.norm()


def check(kernel: Callable[..., Tensor], S: int, T: int, G: int, layer: Layer, layout: str) -> None:
    batch, qkv = make_batch(S, T, layout), make_qkv(S, T, G)
    expected = outputs_and_gradients(written_out(*qkv, batch, layer), qkv, batch)
    out = kernel(*qkv, batch, layer, 0.0)
    assert not out.isnan().any()
    for got, want in zip(outputs_and_gradients(out, qkv, batch), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("G", [4, 2, 1])
def test_cpu_kernels_compute_attention(case: str, G: int) -> None:
    layer, layout = CASES[case]
    check(math, 13, 13, G, layer, layout)
    if layer.softcap is None:
        check(sdpa, 13, 13, G, layer, layout)


@pytest.mark.parametrize("case", [case for case, (layer, _) in CASES.items() if layer.softcap is None])
@pytest.mark.parametrize("rows", [4, 5, 13])
def test_bands_of_queries_compute_attention(case: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BAND, "cpu", rows)
    layer, layout = CASES[case]
    check(sdpa, 13, 13, 2, layer, layout)
    if "documents" not in layout:
        check(sdpa, 6, 13, 2, layer, layout)


@pytest.mark.parametrize("case", CASES)
def test_flex_rules_compute_attention(case: str, flex_on_cpu: None) -> None:
    layer, layout = CASES[case]
    check(flex, 13, 13, 2, layer, layout)


@pytest.mark.parametrize("S", [1, 3])
def test_continuing_from_a_cache(S: int, flex_on_cpu: None) -> None:
    for layer, layout in ((PLAIN, ""), (replace(PLAIN, alibi=True, window=4), "left")):
        check(sdpa, S, 12, 2, layer, layout)
        check(flex, S, 12, 2, layer, layout)
    check(flex, 1, 12, 2, replace(PLAIN, softcap=0.7), "")


@pytest.fixture
def flash_attn_by_its_documentation(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """flash-attn 2's two functions as its documentation has them, in plain torch; gives the names of those called."""
    called: list[str] = []

    def one(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:  # (S, H, D), (T, G, D)
        assert options["causal"]
        assert options["dropout_p"] == 0.0
        left, right = options["window_size"]
        assert right == (0 if left != -1 else -1)
        S, T = q.shape[0], k.shape[0]
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = torch.einsum("shd,thd->hst", q, k) * options["softmax_scale"]
        if options["softcap"]:
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        distance = torch.arange(S)[:, None] + T - S - torch.arange(T)  # queries at the end of the keys
        if options["alibi_slopes"] is not None:
            scores = scores - options["alibi_slopes"][:, None, None] * distance.abs()
        seen = (distance >= 0) & ((distance <= left) if left != -1 else True)
        return torch.einsum("hst,thd->shd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        called.append("flash_attn_func")
        return torch.stack([one(*rows, **options) for rows in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, longest_q: int, longest_k: int, **options: Any
    ) -> Tensor:
        called.append("flash_attn_varlen_func")
        assert torch.equal(q_at, k_at)
        cuts = list(itertools.pairwise(q_at.tolist()))
        assert max(end - begin for begin, end in cuts) <= min(longest_q, longest_k)
        return torch.cat([one(q[begin:end], k[begin:end], v[begin:end], **options) for begin, end in cuts])

    module = types.ModuleType("flash_attn.flash_attn_interface")
    vars(module).update(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    monkeypatch.setattr(attention, "_check_half", lambda *_: None)
    return called


@pytest.mark.parametrize("case", CASES)
def test_flash2_is_asked_for_the_same_attention(case: str, flash_attn_by_its_documentation: list[str]) -> None:
    layer, layout = CASES[case]
    check(flash2, 13, 13, 2, layer, layout)
    assert flash_attn_by_its_documentation == ["flash_attn_varlen_func" if layout else "flash_attn_func"]
    if not layout:
        check(flash2, 4, 13, 2, layer, layout)  # continuing from a cache


def test_flash2_and_flash4_refuse_fp32() -> None:
    for kernel in (flash2, flash4):
        with pytest.raises(ValueError, match=r"takes 16-bit numbers only, got torch.float32; set precision: amp_bf16"):
            kernel(*make_qkv(4, 4, 2, torch.float32), Batch(), PLAIN, 0.0)


def test_flex_compiles_for_new_kinds_of_mask_only(flex_on_cpu: None) -> None:
    """New documents, paddings and windows reuse a compiled kernel; a second length compiles one for all lengths."""

    def run(S: int, window: int, layout: str) -> int:
        before = counters["stats"]["unique_graphs"]
        flex(*make_qkv(S, S, 2), make_batch(S, S, layout), replace(PLAIN, alibi=True, window=window), 0.0)
        return counters["stats"]["unique_graphs"] - before

    assert run(150, 8, "documents right") == 1
    assert run(150, 8, "documents left") == 0
    assert run(150, 20, "documents right") == 0
    assert [run(S, 8, "documents right") for S in (300, 200, 400)] == [1, 0, 0]


def test_passes_without_gradients_leave_training_a_kernel_of_its_own_length(flex_on_cpu: None) -> None:
    def run(S: int) -> int:
        before = counters["stats"]["unique_graphs"]
        flex(*make_qkv(S, S, 2), make_batch(S, S, ""), replace(PLAIN, alibi=True), 0.0)
        return counters["stats"]["unique_graphs"] - before

    with torch.no_grad():  # tasks before the first step
        assert [run(S) for S in (3, 150, 200)] == [1, 1, 0]
    assert [run(S) for S in (256, 300, 400)] == [1, 1, 0]  # the first for 256 alone: 300 needs another


def test_fifty_models_with_other_heads_may_compile_their_variants_in_one_process() -> None:
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):  # torch's own limits
        attention.compile_flex_attention()
        assert torch._dynamo.config.recompile_limit >= 50 * 9
        assert torch._dynamo.config.accumulated_recompile_limit >= 50 * 9


@pytest.mark.parametrize("capability", [8, 9, 10])
def test_kernels_get_the_options_that_their_gpu_wants(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fused(q: Tensor, *_: Tensor, **options: Any) -> Tensor:
        asked.append((options["kernel_options"], options["block_mask"].BLOCK_SIZE[0]))
        return q

    monkeypatch.setattr(attention, "fused_flex_attention", fused)
    monkeypatch.setattr(attention, "_compute_capability", lambda device: capability)
    half, single = torch.bfloat16, torch.float32
    for S, dim, dtype in ((200, 64, half), (48, 64, half), (200, 64, single), (200, 128, half), (48, 128, half)):
        q = torch.zeros(B, H, S, dim, dtype=dtype)
        flex(q, q, q, Batch(), PLAIN, 0.0)
    flash4(q, q, q, Batch(), PLAIN, 0.0)
    more_warps = {"fwd_num_warps": 8} if capability in (9, 10) else {}
    few = {"FORCE_USE_FLEX_ATTENTION": True}
    flexible = [more_warps or None, few | more_warps, None, None, few]
    assert asked == [
        *((options, 128) for options in flexible),
        ({"BACKEND": "FLASH"}, 256 if capability == 10 else 128),
    ]


def test_padding_queries_give_finite_outputs_and_gradients() -> None:
    for kernel in (sdpa, math):
        batch, qkv = make_batch(9, 9, "left"), make_qkv(9, 9, 4)
        out = kernel(*qkv, batch, replace(PLAIN, alibi=True), 0.0)
        out.sum().backward()
        assert out.isfinite().all()
        assert all(t.grad is not None and t.grad.isfinite().all() for t in qkv)


@pytest.mark.parametrize("layer", [PLAIN, replace(PLAIN, alibi=True)])
def test_cpu_attention_is_fused_forward_and_backward(layer: Layer) -> None:
    qkv = make_qkv(64, 64, 2, torch.float32)
    with profile() as recorded:
        sdpa(*qkv, make_batch(64, 64, "right"), layer, 0.0).sum().backward()
    used = {event.key for event in recorded.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in used


def test_dropout_keeps_the_mean_and_spreads_as_it_should() -> None:
    """With values of one, an output is the sum of the kept probabilities over 1 - p: mean 1, variance p/(1-p) Σw²."""
    S, p = 64, 0.25
    q, k, _ = (t.detach() for t in make_qkv(S, S, H, torch.float32))
    v = torch.ones(B, H, S, D)
    torch.manual_seed(0)
    for kernel in (sdpa, math):
        out = torch.stack([kernel(q, k, v, Batch(), PLAIN, p)[..., 0] for _ in range(100)])  # (100, B, H, S)
        scores = (q @ k.transpose(2, 3) * PLAIN.scale).masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)
        variance = p / (1 - p) * scores.softmax(-1).square().sum(-1)  # (B, H, S)
        assert abs(out.mean() - 1) < 0.01
        assert 0.9 < (out.var(0) / variance).mean() < 1.1
        torch.testing.assert_close(kernel(q, k, v, Batch(), PLAIN, 0.0), v)


@pytest.mark.parametrize("window", [0, 3, 4, 5])
def test_a_window_that_leaves_out_one_key_is_no_window_over_everything(window: int) -> None:
    q, k, v = (t.detach() for t in make_qkv(6, 6, H))
    flat = [t.transpose(1, 2).flatten(2) for t in (q, k, v)]
    out, _, _ = attend(
        *flat, H, H, attn_impl="flash", alibi=False, attn_bias=Batch(), softmax_scale=0.3, sliding_window_size=window
    )
    expected = written_out(q, k, v, Batch(), replace(PLAIN, window=window))
    torch.testing.assert_close(out, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kernel", [sdpa, math])
@pytest.mark.parametrize("layout", ["", "left"])
def test_layers_of_other_windows_and_positions_share_no_bias(kernel: Callable[..., Tensor], layout: str) -> None:
    batch, qkv = make_batch(13, 13, layout), make_qkv(13, 13, H)
    near, far = replace(PLAIN, window=5), replace(PLAIN, window=9)
    for layer in (near, far, replace(far, alibi=True), replace(PLAIN, alibi=True)):
        out, expected = kernel(*qkv, batch, layer, 0.0), written_out(*qkv, batch, layer)
        torch.testing.assert_close(outputs_of_tokens(out, batch), outputs_of_tokens(expected, batch))


def test_layers_of_one_batch_have_a_kernel_each() -> None:
    q, k, v = (t.detach() for t in make_qkv(6, 6, H))
    flat, batch = [t.transpose(1, 2).flatten(2) for t in (q, k, v)], Batch()
    for softcap in (None, 0.7):
        layer = {"softmax_scale": 0.3, "attn_logit_softcapping": softcap}
        out, _, _ = attend(*flat, H, H, attn_impl="flash", alibi=False, attn_bias=batch, **layer)
        expected = written_out(q, k, v, batch, replace(PLAIN, softcap=softcap))
        torch.testing.assert_close(out, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, "math"), (torch.float32, "sdpa")])
def test_distances_of_a_single_query_are_not_rounded(
    dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("math", "sdpa"):
        monkeypatch.setattr(attention, name, lambda *_, name=name: name)
    q, k, v = make_qkv(1, 9, H, dtype)
    assert attention.single_query(q, k, v, make_batch(1, 9, ""), replace(PLAIN, alibi=True), 0.0) == kernel


def test_attend_refuses_what_no_kernel_of_the_device_can_do() -> None:
    x = torch.zeros(B, 5, H * D)
    same = {"n_heads": H, "kv_n_heads": H, "alibi": False, "attn_bias": Batch(), "softmax_scale": 1.0}
    with pytest.raises(ValueError, match="flex does not run on cpu"):
        attend(x, x, x, **same, attn_impl="flex")
    with pytest.raises(ValueError, match="sdpa cannot do soft-capped scores"):
        attend(x, x, x, **same, attn_impl="sdpa", attn_logit_softcapping=3.0)


def test_which_kernel_runs_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_announced", set())
    x = torch.zeros(B, 5, H * D)
    with caplog.at_level("INFO", logger="recipes.models.attention"):
        for _ in range(2):
            attend(x, x, x, H, H, attn_impl="flash", alibi=False, attn_bias=Batch(), softmax_scale=1.0)
    assert [record.message for record in caplog.records] == ["attention: flash → sdpa (cpu)"]


def test_where_a_gpu_is_to_be_tested_and_none_is_there_it_is_said(run_command: Command) -> None:
    no_gpu = {"TESTED_ON": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    done = run_command("python", "-m", "pytest", "-m", "cuda", "tests/models/test_loss.py", env=no_gpu)
    assert done.returncode != 0
    assert "TESTED_ON=cuda, but torch finds no GPU here" in done.stderr


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("S", [48, 200])
@pytest.mark.parametrize("case", CASES)
def test_flex_kernel_on_a_gpu(case: str, S: int, dtype: torch.dtype) -> None:
    layer, layout = CASES[case]
    for G in (4, 2, 1):
        batch, qkv = make_batch(S, S, layout, "cuda"), make_qkv(S, S, G, dtype, "cuda")
        check_against_math(qkv, batch, layer, 0.02 if dtype == torch.bfloat16 else 2e-3)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["", "left"])
def test_flex_kernel_without_gradients_for_all_lengths_on_a_gpu(layout: str) -> None:
    """From the second length on one kernel does for all, and others do behind kept keys."""
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for S, T in ((256, 256), (333, 333), (200, 200), (40, 190), (150, 301)):
            batch, qkv = make_batch(S, T, layout, "cuda"), make_qkv(S, T, 2, torch.bfloat16, "cuda")
            check_against_math(qkv, batch, replace(PLAIN, alibi=True), 0.02)
    assert counters["stats"]["unique_graphs"] - before < 5


@needs_gpu
@pytest.mark.cuda
def test_flex_kernel_behind_kept_keys_on_a_gpu() -> None:
    for S, T in ((40, 200), (150, 300)):
        batch, qkv = make_batch(S, T, "left", "cuda"), make_qkv(S, T, 2, torch.float32, "cuda")
        check_against_math(qkv, batch, replace(PLAIN, alibi=True, window=60), 2e-3)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["", "documents", "documents right"])
def test_flex_kernel_for_heads_of_64_dimensions_on_a_gpu(layout: str) -> None:
    """They get options of their own on an H100."""
    batch, qkv = make_batch(256, 256, layout, "cuda"), make_qkv(256, 256, 2, torch.bfloat16, "cuda", head_dim=64)
    check_against_math(qkv, batch, replace(PLAIN, scale=0.125, alibi=True), 0.02)


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("name", ["flash2", "flash4"])
@pytest.mark.parametrize("case", CASES)
def test_flash_attn_kernels_on_a_gpu(case: str, name: str) -> None:
    layer, layout = CASES[case]
    wanted = ["softcap"] if layer.softcap is not None else []
    reasons = backends.refusals(name, "cuda", wanted, D)
    if reasons:
        pytest.skip(" ".join(reasons))
    kernel = attention.KERNELS[name]
    for S, G in ((48, 4), (200, 2)):
        batch, qkv = make_batch(S, S, layout, "cuda"), make_qkv(S, S, G, torch.bfloat16, "cuda")
        got = outputs_and_gradients(kernel(*qkv, batch, layer, 0.0), qkv, batch)
        exact = [t.detach().double().requires_grad_() for t in qkv]
        for a, b in zip(got, outputs_and_gradients(math(*exact, batch, layer, 0.0), exact, batch), strict=True):
            assert (a.double() - b).norm() <= 0.02 * b.norm()


@needs_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("layout", ["", "documents right"])
def test_flex_memory_on_a_gpu_is_linear_in_the_length(layout: str) -> None:
    def peak_bytes(S: int) -> int:
        batch, qkv = make_batch(S, S, layout, "cuda"), make_qkv(S, S, 4, torch.bfloat16, "cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        flex(*qkv, batch, replace(PLAIN, alibi=True), 0.0).sum().backward()
        return torch.cuda.max_memory_allocated() - before

    peak_bytes(4096)  # compiles
    small, large = peak_bytes(8192), peak_bytes(16384)
    assert large < 2.5 * small
    assert large < 16384 * 16384  # bytes: not even one flag for each query and key
