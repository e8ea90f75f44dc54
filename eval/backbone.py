"""A causal language model in two halves: tokens → hidden states, and hidden states → logits where they are wanted.

Works on LLM Foundry's MPT (with our attention) and on any causal model of transformers. B rows, S tokens, D width,
V vocabulary, N positions picked from all rows.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eval.kv_cache import Past, can_be_shared
from eval.questions import ScoringError
from recipes.models.backends import goes_on_exactly

PROBE_TOKENS = 3
PROBE_DIFFERENCE = 1e-4  # of logits, relative to the largest; kernels may differ by rounding


class Backbone:
    """A model to be scored. It is put in eval mode.

    model: a Composer model or one of transformers. autocast: a function that gives the context of the precision.
    Raises ScoringError for a length at which answers would depend on one another.
    """

    def __init__(self, model: nn.Module, max_len: int, autocast: Callable[[], Any] = contextlib.nullcontext) -> None:
        self.whole = model.eval()
        self.causal = causal_model(model)
        refuse_beyond(self.causal.config, max_len)
        self.max_len = max_len  # tokens that the model reads at most
        self.autocast = autocast
        self.device = next(model.parameters()).device
        self.root = _sharded_root(model)
        self.body, self._head, self._finish = _halves(self.causal)
        self.vocabulary: int = self.causal.config.vocab_size
        self._takes_positions = _takes_positions(self.body)
        self._goes_on = _goes_on(self.body)
        self.turns_at = turns_at(self.causal.config)
        self.shares = True  # whether rows can go on from tokens that another row has read; found out by the first run
        self._checked = False

    @property
    def sharded(self) -> bool:
        """Whether the weights are spread over processes, which then must all compute at the same time."""
        return self.root is not None

    def most(self, count: int) -> int:
        """The largest `count` of the processes that must call the output layer equally often; alone, this one's."""
        if not self.sharded:
            return count
        found = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def run(self, work: Callable[[], Any]) -> Any:
        """Call `work`, which uses hidden() and logits(), without gradients and with the root's weights gathered."""
        with torch.no_grad(), self.autocast():
            if not self._checked:
                self._check_halves()
                self._checked = True
            return self._within_root(work)

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None,
        past: Past = None,
        keep: bool = False,
        sequence_id: Tensor | None = None,
    ) -> tuple[Tensor, Past]:
        """ids (B, S), mask (B, T) over the kept tokens and these, True for a token → (B, S, D), and keys and values.

        mask: None where there is no padding. sequence_id: (B, S), packed documents, for models that
        tell them apart.
        """
        extra: dict[str, Any] = {}
        if sequence_id is not None and getattr(self.body, "attn_uses_sequence_id", False):
            extra["sequence_id"] = sequence_id.to(self.device)
        if mask is not None:
            extra["attention_mask"] = mask
            if self._takes_positions:
                positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # (B, T)
                extra["position_ids"] = positions[:, -ids.shape[1] :]
        if past is not None:  # not every model keeps keys and values
            extra["past_key_values"] = past
        out = self.body(input_ids=ids, use_cache=keep or past is not None, **extra)
        return out.last_hidden_state, getattr(out, "past_key_values", None) if keep else None

    @property
    def divisible(self) -> bool:
        """Whether logits can be had of some words alone: not where the output layer is sharded, or has an adapter."""
        return not self.sharded and isinstance(self._head, (nn.Linear, nn.Embedding))

    def logits(self, hidden: Tensor, words: slice | None = None) -> Tensor:
        """(N, D) → (N, V) in float32; those of some words alone only where the output layer is `divisible`."""
        head: Any = self._head
        if words is not None:
            bias = getattr(head, "bias", None)
            logits = nn.functional.linear(hidden, head.weight[words], None if bias is None else bias[words])
        else:
            logits = head(hidden, True) if isinstance(head, nn.Embedding) else head(hidden)  # tied: LLM Foundry's own
        return self._finish(logits).float()

    def generate(self, **arguments: Any) -> Tensor:
        """transformers' `generate`; where the weights are sharded, every process must call it with as many steps.

        Keys and values are kept where that changes nothing, whatever the model's config says: MPT's says no.
        """
        is_stateful = getattr(self.causal, "_is_stateful", False)
        # of beams transformers puts keys and values in a new order, but not a state
        arguments.setdefault("use_cache", self._goes_on and not (is_stateful and arguments.get("num_beams", 1) > 1))
        with torch.no_grad(), self.autocast():
            return self._whole_pass(lambda: self.causal.generate(**arguments))

    def _whole_pass(self, work: Callable[[], Any]) -> Any:
        """Call `work`, which uses the causal model's own forward pass; as the root, that gathers the weights itself."""
        return work() if self.root is self.causal else self._within_root(work)

    def _within_root(self, work: Callable[[], Any]) -> Any:
        if self.root is None:
            return work()
        # FSDP gathers the root's own weights around its forward pass: ours becomes that pass for once
        with _forward_is(self.root, work):
            return self.root()

    def _check_halves(self) -> None:
        """Compare the two halves with the whole on a few tokens, and see what the model keeps of them."""
        ids = torch.arange(1, PROBE_TOKENS + 1, device=self.device)[None]
        whole = self._whole_pass(lambda: self.causal(input_ids=ids, use_cache=False).logits.float())

        def two_halves() -> tuple[Tensor, Past]:
            hidden, past = self.hidden(ids, None, keep=True)
            return self.logits(hidden), past

        halves, past = self._within_root(two_halves)
        scale = max(1.0, float(whole.abs().nan_to_num(0).max()))
        equal = whole.shape == halves.shape and torch.allclose(
            whole, halves, rtol=0, atol=PROBE_DIFFERENCE * scale, equal_nan=True
        )
        if not equal:
            raise ScoringError(
                f"{type(self.causal).__name__}: its logits are not its output layer applied to its last hidden states; "
                "this model cannot be scored here"
            )
        self.shares = can_be_shared(past) and self._goes_on and self.turns_at is None


def causal_model(model: nn.Module) -> Any:
    """The transformers-style causal model inside a Composer model or a LoRA wrapper, or the model itself."""
    inner: Any = model
    while True:
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        elif isinstance(inner, DistributedDataParallel):
            inner = inner.module
        elif not hasattr(inner, "config") or hasattr(inner, "eval_forward"):
            inner = inner.model
        else:
            return inner


def _halves(causal: Any) -> tuple[Any, nn.Module, Callable[[Tensor], Tensor]]:
    """What gives hidden states, the output layer, and what then becomes of its output."""
    if hasattr(causal, "final_logit_softcapping"):  # LLM Foundry's MPT
        return causal.transformer, causal.lm_head or causal.transformer.wte, partial(_scaled, causal)
    body = causal.get_decoder() if hasattr(causal, "get_decoder") else None
    body = body if body is not None and body is not causal else causal.base_model
    return body, causal.get_output_embeddings(), lambda logits: logits


def _scaled(causal: Any, logits: Tensor) -> Tensor:
    """As LLM Foundry's MPTForCausalLM.forward goes on from its output layer."""
    if causal.logit_scale is not None:
        logits = logits * causal.logit_scale
    if causal.final_logit_softcapping is not None:
        logits = causal.final_logit_softcapping * torch.tanh(logits / causal.final_logit_softcapping)
    return logits


def _takes_positions(body: Any) -> bool:
    """Whether positions must be given beside a mask. MPT works them out of the mask, or has none with ALiBi."""
    named = "position_ids" in inspect.signature(body.forward).parameters
    return named and getattr(getattr(body, "config", None), "model_type", "") != "mpt"


def _goes_on(body: Any) -> bool:
    """Whether rows, padded ones among them, can go on from keys and values that were kept."""
    # flash-attn 2's rotary kernel turns new tokens from the padded length of what they go on from
    rotates_by_length = getattr(body, "rope_impl", None) == "dail"
    return not rotates_by_length and goes_on_exactly(getattr(getattr(body, "config", None), "attn_config", None))


def turns_at(config: Any) -> int | None:
    """Tokens of the longest row of a pass beyond which all its rows are turned by other angles; None where none are.

    So it is with longrope, as Phi-3's 128k models have it: an answer would depend on its neighbours in the batch.
    """
    scaling = getattr(config, "rope_scaling", None) or {}
    if "longrope" not in (scaling.get("rope_type"), scaling.get("type")):
        return None
    return int(getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings)


def refuse_beyond(config: Any, max_len: int) -> None:
    """Raises ScoringError where a model that reads so many tokens would turn them by the longest row it has seen.

    So it is with `dynamic` (NTK) RoPE beyond the length that it was trained at: no answer would be the same twice.
    """
    scaling, most = getattr(config, "rope_scaling", None) or {}, getattr(config, "max_position_embeddings", None)
    if "dynamic" in (scaling.get("rope_type"), scaling.get("type")) and most and max_len > most:
        text = f"with dynamic RoPE, answers beyond {most} tokens depend on what was read before"
        raise ScoringError(f"max_seq_len: got {max_len}; {text}: set it to at most {most}")


def _sharded_root(model: nn.Module) -> Any:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    from torch.distributed.fsdp import FSDPModule

    return next((module for module in model.modules() if isinstance(module, FSDPModule)), None)


@contextlib.contextmanager
def _forward_is(module: Any, work: Callable[[], Any]) -> Iterator[None]:
    module.forward = work
    try:
        yield
    finally:
        del module.forward
