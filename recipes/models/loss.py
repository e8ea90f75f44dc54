"""Next-token loss without logits: scores over the vocabulary exist for a chunk of tokens at a time, never for a batch.

LLM Foundry multiplies all hidden states with the output embedding, (N, V) numbers, and keeps them, their softmax and
their gradient until the backward pass: 3 x 1.6 GB a sequence of 8,192 tokens at a vocabulary of 50,432 in fp32. Here
each chunk is multiplied, scored and turned into its share of the gradients before the next one starts, so that what
is kept has the size of the hidden states and of the weight. No multiplication is done twice.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from llmfoundry.layers_registry import ffns_with_megablocks
from llmfoundry.models.layers import custom_embedding as foundry
from torch import Tensor, nn

from recipes.spelling import did_you_mean

IGNORE = -100  # torch's and LLM Foundry's target for tokens that do not count
# Scores of a chunk. On CPUs they should stay in the cache (256 tokens at a vocabulary of 8,192 were fastest of 128 to
# 1,024); a GPU needs multiplications large enough to fill it (2,661 tokens at 50,432, 0.5 GB in fp32).
SCORES_OF_A_CHUNK = {"cpu": 2**21, "cuda": 2**27}

COUNTED = frozenset({"LanguageCrossEntropy", "LanguagePerplexity", "TokenAccuracy"})  # LLM Foundry's training metrics
# What `model.loss_fn` may be; the first is LLM Foundry's default and means "the best one here".
CHOICES = ("fused_crossentropy", "chunked_crossentropy", "liger_crossentropy", "torch_crossentropy")


@dataclass(frozen=True)
class Terms:
    """What is added to plain cross entropy, and how scores come from the product of hidden states and weight.

    Scores are softcap·tanh(scale·product / softcap). A token's loss, with lse the logsumexp of its scores, is
    (1 - label_smoothing)·(lse - score of the target) + label_smoothing·(lse - mean score) + z_loss·lse²: label
    smoothing as torch has it, z-loss as in PaLM (Chowdhery et al. 2022, section 5; there 1e-4).
    """

    scale: float = 1.0
    softcap: float | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0


@dataclass(frozen=True)
class Sums:
    """Sums over the tokens that count: the loss, its cross entropy alone, hits of the top score, and how many."""

    loss: Tensor
    cross_entropy: Tensor
    hits: Tensor
    tokens: Tensor

    @property
    def mean(self) -> Tensor:
        """The loss a token; 0 where no token counts, as LLM Foundry has it."""
        return self.loss / self.tokens.clamp(min=1)


@torch.compiler.disable  # loops and buffers that a graph gains nothing from
def chunked(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    terms: Terms = Terms(),
    count_hits: bool = False,
    chunk: int | None = None,
) -> Sums:
    """Computes the loss of hidden (..., D) against weight (V, D) and targets (...), in plain torch, on any device.

    Under autocast it multiplies in autocast's type and scores in fp32, as torch's own linear and cross entropy do.
    ``hits`` costs a pass over the scores and is 0 unless ``count_hits``. ``chunk`` is in tokens; by default what
    ``SCORES_OF_A_CHUNK`` gives.
    """
    flat, targets = hidden.flatten(0, -2), targets.flatten()  # (N, D), (N,)
    chunk = chunk or tokens_of_a_chunk(flat, weight)
    dtype = _multiplied_in(flat)
    loss, cross_entropy, hits = _Chunked.apply(flat, weight, targets, terms, count_hits, chunk, dtype)
    return Sums(loss, cross_entropy, hits, (targets != IGNORE).sum())


def tokens_of_a_chunk(hidden: Tensor, weight: Tensor) -> int:
    scores = SCORES_OF_A_CHUNK.get(hidden.device.type, SCORES_OF_A_CHUNK["cpu"])
    return max(64, scores // weight.shape[0] // 64 * 64)


def _multiplied_in(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


class _Chunked(torch.autograd.Function):
    """Gradients are computed in the forward pass, for a loss whose own gradient is 1, and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        terms: Terms,
        count_hits: bool,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        exact = torch.promote_types(dtype, torch.float32)  # scores and sums
        W = weight.to(dtype)  # (V, D)
        d_hidden = torch.empty_like(hidden) if of_hidden else None  # (N, D)
        d_weight = torch.zeros_like(weight, dtype=exact) if of_weight else None  # (V, D)
        sums = torch.zeros(2, dtype=exact, device=hidden.device)  # loss, cross entropy
        hits = torch.zeros((), dtype=torch.int64, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, hidden.shape[0], chunk):
                part = slice(begin, begin + chunk)
                h = hidden[part].to(dtype)  # (C, D)
                # no name for the scores here, and none left for the gradient, (C, V): a chunk's must not outlive it
                loss, cross_entropy, hit, gradient = _score((h @ W.t()).to(exact), targets[part], terms, count_hits)
                sums += torch.stack([loss, cross_entropy])
                hits += hit
                gradient = gradient.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = gradient @ W
                if d_weight is not None and dtype == exact:
                    d_weight.addmm_(gradient.t(), h)
                elif d_weight is not None:
                    d_weight += gradient.t() @ h
                del gradient
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        loss_sum, cross_entropy_sum = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(cross_entropy_sum, hits)
        return loss_sum, cross_entropy_sum, hits

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        # In place: a second backward pass through the same loss is refused by torch, which sees what was changed.
        return (
            None if d_hidden is None else d_hidden.mul_(d_loss),
            None if d_weight is None else d_weight.mul_(d_loss),
            *(None,) * 5,
        )


def _score(
    scores: Tensor, targets: Tensor, terms: Terms, count_hits: bool
) -> tuple[Tensor, Tensor, Tensor | int, Tensor]:
    """Gives a chunk's sums of loss, cross entropy and hits, and the loss's gradient by the product, (C, V)."""
    bent = None
    if terms.scale != 1.0:
        scores *= terms.scale
    if terms.softcap is not None:
        bent = torch.tanh(scores / terms.softcap)
        scores = terms.softcap * bent
    counts = targets != IGNORE  # (C,)
    index = torch.where(counts, targets, 0)[:, None]  # (C, 1)
    chosen = scores.gather(1, index)[:, 0]  # (C,)
    hits = ((scores.argmax(-1) == targets) & counts).sum() if count_hits else 0
    p = torch.softmax(scores, -1)  # (C, V)
    lse = scores.amax(-1) - p.amax(-1).log()  # (C,): from the largest share, which cannot vanish
    cross_entropy = lse - chosen
    loss = cross_entropy
    keep = 1.0 - terms.label_smoothing
    if terms.label_smoothing:
        loss = keep * cross_entropy + terms.label_smoothing * (lse - scores.mean(-1))
    if terms.z_loss:
        loss = loss + terms.z_loss * lse.square()
        p *= (1.0 + 2.0 * terms.z_loss * lse)[:, None]
    if terms.label_smoothing:
        p -= terms.label_smoothing / p.shape[1]
    p.scatter_add_(1, index, p.new_full(index.shape, -keep))
    if bent is not None:
        p *= bent.square_().neg_().add_(1.0)
    if terms.scale != 1.0:
        p *= terms.scale
    if p.device.type != "cpu" or not bool(counts.all()):  # asking a GPU would make the CPU wait for it
        p *= counts[:, None]
    return loss.masked_fill(~counts, 0).sum(), cross_entropy.masked_fill(~counts, 0).sum(), hits, p


def liger(hidden: Tensor, weight: Tensor, targets: Tensor, terms: Terms = Terms()) -> Sums:
    """The same loss by Liger's Triton kernels (package liger-kernel, CUDA), which chunk in the same way.

    It does not report the cross entropy beside the loss, nor hits: ``cross_entropy`` is the loss, ``hits`` 0.
    """
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    flat, targets = hidden.flatten(0, -2), targets.flatten()  # (N, D), (N,)
    dtype = _multiplied_in(flat)
    function = LigerFusedLinearCrossEntropyLoss(
        ignore_index=IGNORE,
        lse_square_scale=terms.z_loss,
        label_smoothing=terms.label_smoothing,
        reduction="sum",
        softcap=terms.softcap,
        accum_dtype=torch.float32,  # of the weight's gradient over the chunks: in bf16 it loses a digit
    )
    if terms.scale != 1.0:
        flat = flat * terms.scale
    if torch.is_grad_enabled() and weight.requires_grad and not flat.requires_grad:
        flat = flat.detach().requires_grad_()  # Liger gives a weight no gradient where hidden states want none
    with torch.autocast(flat.device.type, enabled=False):
        loss = function(weight.to(dtype), flat.to(dtype), targets)
    return Sums(loss, loss.detach(), torch.zeros_like(targets[0]), (targets != IGNORE).sum())


class LogitsLoss(nn.CrossEntropyLoss):
    """The loss of each token from its logits, (N, V) and (N,) → (N,), for models that keep them: LLM Foundry's way."""

    def __init__(self, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        super().__init__(ignore_index=IGNORE, reduction="none", label_smoothing=label_smoothing)
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        loss = super().forward(input, target)
        if self.z_loss:
            loss = loss + self.z_loss * input.float().logsumexp(-1).square().masked_fill(target == IGNORE, 0)
        return loss


def choose(loss_fn: str, train_metrics: Set[str], ffn_type: str) -> str:
    """Names the loss that ``loss_fn`` means on this machine: ``fused_crossentropy`` the best one, others themselves.

    ``train_metrics`` are class names; those of ``COUNTED`` come with a chunked loss, others need logits.

    Raises:
        ValueError: in words, what cannot be had.
    """
    if loss_fn not in CHOICES:
        hint = did_you_mean(loss_fn, CHOICES)
        raise ValueError(f"loss_fn: {loss_fn!r} is not a loss; expected one of {', '.join(CHOICES)}{hint}")
    if loss_fn == "liger_crossentropy" and not has_liger():
        raise ValueError(
            "loss_fn: liger_crossentropy needs the package liger-kernel and a CUDA GPU, and this machine lacks one of "
            "them; use fused_crossentropy, which takes the best loss that is here."
        )
    needs = [f"the training metric {name}" for name in sorted(train_metrics - COUNTED)]
    if ffn_type in ffns_with_megablocks:
        needs.append(f"ffn_type: {ffn_type}")
    if loss_fn == "liger_crossentropy" and train_metrics:
        needs.append("use_train_metrics: true")
    if loss_fn == "fused_crossentropy":
        if needs:
            return "torch_crossentropy"
        return "liger_crossentropy" if has_liger() and not train_metrics else "chunked_crossentropy"
    if loss_fn != "torch_crossentropy" and needs:
        raise ValueError(
            f"loss_fn: {loss_fn} does not give what {' and '.join(needs)} needs; use loss_fn: torch_crossentropy, "
            "which keeps the logits, or leave that out."
        )
    return loss_fn


LINEAR: dict[str, Callable[..., Sums]] = {"chunked_crossentropy": chunked, "liger_crossentropy": liger}


def has_liger() -> bool:
    """Whether Liger's kernels can run here: its package, and a CUDA device."""
    return importlib.util.find_spec("liger_kernel") is not None and torch.cuda.is_available()


class SharedEmbedding(foundry.SharedEmbedding):
    """LLM Foundry's tied embedding, which also takes a loss in place of giving logits.

    The loss is computed inside the module, where FSDP has gathered its weight.
    """

    def forward(self, input: Tensor, unembed: bool = False, loss: Callable[..., Any] | None = None) -> Any:
        return super().forward(input, unembed) if loss is None else loss(input, self.weight)


class Head(nn.Linear):
    """An output embedding of its own, without bias, which also takes a loss in place of giving logits."""

    def forward(self, input: Tensor, loss: Callable[..., Any] | None = None) -> Any:
        return super().forward(input) if loss is None else loss(input, self.weight)
