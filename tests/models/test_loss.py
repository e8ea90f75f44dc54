"""The loss without logits against the plain one in float64: values, gradients, memory, Composer's metrics, refusals."""

from functools import partial
from typing import Any

import pytest
import torch
from llmfoundry.models.mpt import modeling_mpt as foundry
from torch import Tensor
from torch.nn import functional as F

from recipes.models import log_probabilities as token_scores
from recipes.models import loss as losses
from recipes.models.loss import IGNORE, LogitsLoss, Terms, chunked

from ..conftest import Command
from ..tiny import composer_model

N, D, V = 37, 8, 50
TERMS = {
    "plain": Terms(),
    "scaled": Terms(scale=0.3),
    "soft-capped": Terms(scale=2.0, softcap=1.5),
    "smoothed": Terms(label_smoothing=0.1),
    "z-loss": Terms(z_loss=0.01),
    "all": Terms(scale=0.7, softcap=3.0, label_smoothing=0.2, z_loss=0.02),
}


def make(dtype: torch.dtype = torch.float64, ignored: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    if ignored:
        targets[::5] = IGNORE
    return hidden, weight, targets


def written_out(hidden: Tensor, weight: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """The loss a token by torch's own cross entropy on logits."""
    logits = hidden @ weight.T * terms.scale
    if terms.softcap is not None:
        logits = terms.softcap * torch.tanh(logits / terms.softcap)
    smoothed = F.cross_entropy(logits, targets, label_smoothing=terms.label_smoothing, reduction="none")
    # torch averages the smoothed part over the classes but gives 0 to ignored tokens, as we do
    z = terms.z_loss * logits.logsumexp(-1).square() * (targets != IGNORE)
    return (smoothed + z).sum() / (targets != IGNORE).sum()


@pytest.mark.parametrize("chunk", [1, 8, 37, None])
@pytest.mark.parametrize("name", ["plain", "scaled", "soft-capped"])
def test_log_probabilities_and_their_gradients_are_the_plain_ones(name: str, chunk: int | None) -> None:
    hidden, weight, targets = make()
    weighed = torch.linspace(-1, 2, N, dtype=torch.float64)  # as preferences weigh answers, known only afterwards
    logits = hidden @ weight.T * TERMS[name].scale
    if TERMS[name].softcap is not None:
        logits = TERMS[name].softcap * torch.tanh(logits / TERMS[name].softcap)  # type: ignore[operator]
    want = -F.cross_entropy(logits, targets, reduction="none")
    got = token_scores.log_probabilities(hidden, weight, targets, TERMS[name], chunk)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    assert bool((got[::5] == 0).all())
    ours, plain = (torch.autograd.grad((weighed * each).sum(), (hidden, weight)) for each in (got, want))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
@pytest.mark.parametrize("name", TERMS)
def test_loss_and_gradients_are_the_plain_ones(name: str, chunk: int, ignored: bool) -> None:
    hidden, weight, targets = make(ignored=ignored)
    want = written_out(hidden, weight, targets, TERMS[name])
    got = chunked(hidden, weight, targets, TERMS[name], chunk=chunk).mean
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    factor = 1.7  # as a micro-batch's share of the batch
    wanted = torch.autograd.grad(want * factor, (hidden, weight))
    for ours, plain in zip(torch.autograd.grad(got * factor, (hidden, weight)), wanted, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-14)


def test_sums_are_those_of_the_logits() -> None:
    hidden, weight, targets = make()
    sums = chunked(hidden, weight, targets, Terms(z_loss=0.1, label_smoothing=0.1), count_hits=True, chunk=10)
    logits = hidden @ weight.T
    assert sums.hits == ((logits.argmax(-1) == targets) & (targets != IGNORE)).sum()
    assert sums.tokens == (targets != IGNORE).sum()
    torch.testing.assert_close(sums.cross_entropy, F.cross_entropy(logits, targets, reduction="sum"))
    assert not sums.cross_entropy.requires_grad


def test_extreme_scores_stay_finite() -> None:
    hidden = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    sums = chunked(hidden, weight, torch.tensor([1, 1]))  # probabilities e^-600 and 1
    sums.mean.backward()
    assert sums.loss == 600.0
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, torch.tensor([[1.0], [0.0]]))


def test_no_token_that_counts_gives_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = make()
    mean = chunked(hidden, weight, torch.full_like(targets, IGNORE)).mean
    mean.backward()
    assert mean == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets = make()
    mean = chunked(hidden, weight.detach(), targets).mean
    (got,) = torch.autograd.grad(mean, hidden)
    (want,) = torch.autograd.grad(written_out(hidden, weight, targets, Terms()), hidden)
    torch.testing.assert_close(got, want)


def test_a_second_backward_pass_is_refused_rather_than_wrong() -> None:
    hidden, weight, targets = make()
    mean = chunked(hidden, weight, targets).mean
    mean.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mean.backward()


def test_under_autocast_it_rounds_where_torch_rounds() -> None:
    """Products in bfloat16, scores and sums in fp32, gradients in the types of hidden states and weight."""
    hidden, weight, targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = chunked(hidden, weight, targets, chunk=16).mean
        want = F.cross_entropy(F.linear(hidden, weight), targets)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(got, (hidden, weight))
    for ours, plain in zip(gradients, torch.autograd.grad(want, (hidden, weight)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - plain).norm() <= 0.01 * plain.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.cuda
@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("name", TERMS)
def test_loss_and_gradients_on_a_gpu(name: str, ignored: bool) -> None:
    check_rounded(name, ignored, "cuda")


def check_rounded(name: str, ignored: bool, device: str) -> None:
    """In single precision and in autocast's bfloat16, against float64."""
    hidden, weight, targets = (t.detach().to(device) for t in make(torch.float32, ignored))
    exact = [t.double().requires_grad_() for t in (hidden, weight)]
    want = written_out(*exact, targets, TERMS[name])
    wanted = torch.autograd.grad(want, exact)
    for is_autocast, tolerance in ((False, 1e-4), (True, 0.02)):
        with torch.autocast(device, torch.bfloat16, enabled=is_autocast):
            got = chunked(hidden.requires_grad_(), weight.requires_grad_(), targets, TERMS[name], chunk=16).mean
        assert (got.double() - want).abs() <= tolerance * want.abs()
        for ours, plain in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
            assert ours.dtype == torch.float32
            assert (ours.double() - plain).norm() <= tolerance * plain.norm()


def test_logits_loss_is_the_same_loss() -> None:
    hidden, weight, targets = make()
    terms = Terms(label_smoothing=0.1, z_loss=0.02)
    each = LogitsLoss(terms.label_smoothing, terms.z_loss)(hidden @ weight.T, targets)
    got = each.sum() / (targets != IGNORE).sum()
    torch.testing.assert_close(got, written_out(hidden, weight, targets, terms))


def test_no_tensor_is_as_large_as_the_logits() -> None:
    """The largest tensor of a training step has a chunk's scores or the weight's size, not N x V."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    batch = make_batch()
    sizes = {}
    for name in ("chunked_crossentropy", "torch_crossentropy"):
        model = make_model(loss_fn=name, vocab_size=4096)
        losses_before = losses.SCORES_OF_A_CHUNK["cpu"]
        losses.SCORES_OF_A_CHUNK["cpu"] = 64 * 4096
        try:
            with Largest() as seen:
                model.loss(model(batch), batch).backward()
        finally:
            losses.SCORES_OF_A_CHUNK["cpu"] = losses_before
        sizes[name] = seen.elements
    assert sizes["torch_crossentropy"] >= 256 * 4096
    assert sizes["chunked_crossentropy"] <= 64 * 4096


def make_batch() -> dict[str, Tensor]:
    ids = torch.randint(VOCAB, (2, 128), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :40] = IGNORE
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids, dtype=torch.bool)}


VOCAB = 60
ATTENTION = {"alibi": True, "attn_impl": "torch"}
make_model = partial(composer_model, max_seq_len=128, vocab_size=VOCAB, no_bias=False, attn_config=ATTENTION)


@pytest.mark.parametrize(
    "more",
    [{}, {"tie_word_embeddings": False}, {"logit_scale": "inv_sqrt_d_model"}, {"final_logit_softcapping": 0.5}],
)
def test_a_model_trains_as_llm_foundrys(more: dict[str, Any]) -> None:
    batch = make_batch()
    ours = make_model(**more).double()
    theirs = make_model(foundry.ComposerMPTCausalLM, loss_fn="torch_crossentropy", **more).double()
    theirs.load_state_dict(ours.state_dict())
    assert ours(batch).loss is not None
    assert "logits" not in ours(batch)
    values = {}
    for name, model in (("ours", ours), ("theirs", theirs)):
        value = model.loss(model(batch), batch)
        value.backward()
        values[name] = value.detach()
    torch.testing.assert_close(values["ours"], values["theirs"], rtol=1e-11, atol=0)
    for (name, mine), its in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-8, atol=1e-12, msg=name)
    assert ours.eval()(batch).logits.shape == (2, 128, VOCAB)  # evaluation has its metrics


@pytest.mark.parametrize("targets", [["Wqkv"], ["Wqkv", "lm_head"]])
def test_with_lora_the_loss_is_the_plain_one(targets: list[str]) -> None:
    """Adapters beside the head leave it ours; an adapted head is not ours any more, and its logits are kept."""
    from peft import LoraConfig, inject_adapter_in_model

    batch = make_batch()
    values = []
    for name in ("chunked_crossentropy", "torch_crossentropy"):
        model = make_model(loss_fn=name, tie_word_embeddings=False)
        torch.manual_seed(1)
        inject_adapter_in_model(LoraConfig(target_modules=targets, init_lora_weights=False), model.model, "default")
        outputs = model(batch)
        assert ("logits" in outputs) == (name == "torch_crossentropy" or "lm_head" in targets)
        loss = model.loss(outputs, batch)
        loss.backward()
        adapters = [p.grad for n, p in model.named_parameters() if "lora" in n]
        assert all(gradient is not None and gradient.any() for gradient in adapters)
        values.append((loss.detach(), adapters))
    (mine, ours), (its, theirs) = values
    torch.testing.assert_close(mine, its)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_training_metrics_come_from_the_sums() -> None:
    batch = make_batch()
    ours = make_model(use_train_metrics=True)
    theirs = make_model(foundry.ComposerMPTCausalLM, loss_fn="torch_crossentropy", use_train_metrics=True)
    theirs.load_state_dict(ours.state_dict())
    found: dict[str, list[float]] = {}
    for model in (ours, theirs):
        outputs = model(batch)
        copy = {k: v.clone() for k, v in batch.items()}
        with torch.no_grad():
            seen = model.eval().eval_forward(copy, outputs)
            for name, metric in model.get_metrics(is_train=True).items():
                model.update_metric(copy, seen, metric)
                found.setdefault(name, []).append(float(metric.compute()))
    assert set(found) == losses.COUNTED
    for mine, its in found.values():
        assert mine == pytest.approx(its, rel=1e-5)


def test_which_loss_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = losses.choose
    assert choose("fused_crossentropy", set(), "mptmlp") == "chunked_crossentropy"
    assert choose("fused_crossentropy", {"TokenAccuracy"}, "mptmlp") == "chunked_crossentropy"
    assert choose("fused_crossentropy", {"Other"}, "mptmlp") == "torch_crossentropy"
    monkeypatch.setattr(losses, "ffns_with_megablocks", {"mb_moe"})
    assert choose("fused_crossentropy", set(), "mb_moe") == "torch_crossentropy"
    with pytest.raises(ValueError, match="does not give what the training metric Other needs"):
        choose("chunked_crossentropy", {"Other"}, "mptmlp")
    with pytest.raises(ValueError, match=r"expected one of .* did you mean chunked_crossentropy"):
        choose("chunked_cross_entropy", set(), "mptmlp")
    with pytest.raises(ValueError, match="needs the package liger-kernel"):
        choose("liger_crossentropy", set(), "mptmlp")
    monkeypatch.setattr(losses, "has_liger", lambda: True)
    assert choose("fused_crossentropy", set(), "mptmlp") == "liger_crossentropy"
    assert choose("fused_crossentropy", {"TokenAccuracy"}, "mptmlp") == "chunked_crossentropy"
    with pytest.raises(ValueError, match="use_train_metrics: true"):
        choose("liger_crossentropy", {"TokenAccuracy"}, "mptmlp")


needs_liger = pytest.mark.skipif(not losses.has_liger(), reason="needs a GPU and liger-kernel")


def check_liger(name: str, device: str) -> None:
    """Liger's loss and gradients against the plain ones in float64, in single precision."""
    hidden, weight, targets = (t.detach().to(device) for t in make(torch.float32))
    exact = [t.double().requires_grad_() for t in (hidden, weight)]
    want = written_out(*exact, targets, TERMS[name])
    got = losses.liger(hidden.requires_grad_(), weight.requires_grad_(), targets, TERMS[name]).mean
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(want, exact)
    for ours, plain in zip(torch.autograd.grad(got, (hidden, weight)), wanted, strict=True):
        assert (ours.double() - plain).norm() <= 2e-3 * plain.norm()
    alone = losses.liger(hidden.detach(), weight, targets, TERMS[name]).mean  # nothing below the head is trained
    (ours,) = torch.autograd.grad(alone, weight)
    assert (ours.double() - wanted[1]).norm() <= 2e-3 * wanted[1].norm()


@needs_liger
@pytest.mark.cuda
@pytest.mark.parametrize("name", TERMS)
def test_liger_is_the_plain_loss(name: str) -> None:
    check_liger(name, "cuda")


def test_ligers_kernels_are_the_plain_loss_where_triton_interprets_them(run_command: Command) -> None:
    """Its own kernels, on a CPU; the interpreter has no tanh, which soft-capping takes from CUDA's library."""
    pytest.importorskip("liger_kernel")
    names = [name for name, terms in TERMS.items() if terms.softcap is None]
    code = (
        f"from tests.models.test_loss import check_liger\nfor name in {names}: check_liger(name, 'cpu')\nprint('same')"
    )
    done = run_command("python", "-c", code, env={"TRITON_INTERPRET": "1"})
    assert done.stdout == "same\n", done.stderr
