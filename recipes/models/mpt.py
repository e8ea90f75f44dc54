"""LLM Foundry's MPT, with our attention in it and the parts back that newer packages took away.

Each class is LLM Foundry's with a few methods replaced: parameter names, initialisation, blocks, FSDP wrapping and
activation checkpointing stay its own, so its checkpoints load here and ours load there.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from llmfoundry.metrics import TokenAccuracy
from llmfoundry.models.layers.attention import GroupedQueryAttention, gen_slopes, is_flash_v2_installed
from llmfoundry.models.mpt import modeling_mpt as foundry
from llmfoundry.models.utils.config_defaults import attn_config_defaults
from torch import nn
from transformers import GenerationMixin, PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from recipes.models import backends
from recipes.models import loss as losses
from recipes.models.attention import attend
from recipes.models.masks import Batch

log = logging.getLogger(__name__)

# LLM Foundry lets its rotary embedding read only the configuration keys on a list; transformers 4.57 reads a few more
# while it builds a configuration.
foundry._ALLOWED_LLAMA_CONFIG_KEYS.update(
    {"_create_id_label_maps", "_attn_implementation", "_attn_implementation_internal", "sub_configs"}
)


@contextmanager
def _in_llm_foundrys_words(attn_config: dict[str, Any], attn_impl: str) -> Iterator[None]:
    """Shows LLM Foundry, for a while, an ``attn_config`` it knows: one of its two names, a rotary embedding it has.

    Its checks and its constructor refuse any other ``attn_impl`` and, without flash-attn, ``rope_impl: dail``. That one
    rotates by the same angles as ``hf`` without scaling; ``linear`` by 1.0 is the same again, and the only spelling
    for which transformers does not warn about the ``factor`` that LLM Foundry adds.
    """
    shown: dict[str, Any] = {"attn_impl": attn_impl}
    if _rotates_without_flash_attn(attn_config):
        shown["rope_impl"] = "hf"
    if "rope_impl" in shown or attn_config["rope_hf_config"]["type"] == "no_scaling":
        shown["rope_hf_config"] = {"type": "linear", "factor": 1.0}
    ours = {key: attn_config[key] for key in shown}
    attn_config.update(shown)
    try:
        yield
    finally:
        attn_config.update(ours)


def _rotates_without_flash_attn(attn_config: dict[str, Any]) -> bool:
    return attn_config["rope"] and attn_config["rope_impl"] == "dail" and not is_flash_v2_installed()


def _nothing_more(*_: Any) -> dict[str, Any]:
    """What ``attend`` wants beside a ``Batch``; LLM Foundry tries to import flash-attn here, in every layer's pass."""
    return {}


class MPTConfig(foundry.MPTConfig):
    """MPT's configuration: LLM Foundry's keys and defaults, with the ``attn_impl`` names of ``backends.CHOICES``.

    Raises:
        ValueError: a backend that does not exist, or one named that cannot do what the rest of the configuration asks.
    """

    attn_config: dict[str, Any]

    def __init__(self, **kwargs: Any) -> None:
        attn_config = kwargs.get("attn_config") or {}
        with warnings.catch_warnings():
            if (attn_config.get("alibi") or attn_config.get("rope")) and not kwargs.get("learned_pos_emb"):
                kwargs["learned_pos_emb"] = False
                warnings.filterwarnings("ignore", message="alibi or rope is turned on")
            super().__init__(**kwargs)

    def _validate_config(self) -> None:
        self.attn_config = self._set_config_defaults(self.attn_config, copy.deepcopy(attn_config_defaults))
        head_dim = self.head_dim or self.d_model // self.n_heads
        reasons = backends.refusals(
            self.attn_config["attn_impl"], wanted=backends.features(self.attn_config), head_dim=head_dim
        )
        if _rotates_without_flash_attn(self.attn_config):
            reasons += backends.rotation_refusals(self.attn_config, head_dim, self.d_model // self.n_heads)
        if reasons:
            raise ValueError(" ".join(reasons))
        with _in_llm_foundrys_words(self.attn_config, attn_impl="torch"):  # 'torch' is refused nothing
            super()._validate_config()


class MPTModel(foundry.MPTModel):
    """LLM Foundry's decoder stack; its attention layers call ``attention.attend`` unless ``attn_impl`` is ``torch``."""

    config_class = MPTConfig

    def __init__(self, config: MPTConfig) -> None:
        asked = config.attn_config["attn_impl"]
        with _in_llm_foundrys_words(config.attn_config, "torch" if asked == "torch" else "flash"):
            super().__init__(config)
        _become(self.wte, losses.SharedEmbedding)
        self.has_our_attention = asked != "torch"
        if self.has_our_attention:
            # Neither of its two names: the forward pass then prepares nothing for either, and takes the key/value
            # cache as (B, T, G * D).
            self.attn_impl = "recipes"
            for layer in self.modules():
                if isinstance(layer, GroupedQueryAttention):
                    layer.attn_fn = partial(attend, attn_impl=asked, alibi=self.alibi and not layer.nope)
                    layer.get_implementation_specific_args = _nothing_more

    @torch.no_grad()
    def _attn_bias(
        self,
        device: torch.device,
        dtype: torch.dtype,
        attention_mask: torch.Tensor | None = None,
        sequence_id: torch.Tensor | None = None,
    ) -> tuple[Any, torch.Tensor | None]:
        """Gives the blocks a ``Batch`` in place of a bias tensor."""
        if not self.has_our_attention:
            return super()._attn_bias(device, dtype, attention_mask, sequence_id)
        padded = attention_mask is not None and not bool(attention_mask.all())
        batch = Batch(
            key_padding=attention_mask if padded else None,
            sequence_id=sequence_id if self.attn_uses_sequence_id else None,
            slopes=gen_slopes(self.config.n_heads, self.alibi_bias_max, device, return_1d=True) if self.alibi else None,
        )
        return batch, attention_mask


@dataclass
class LossOutput(ModelOutput):
    """What a training step gives in place of logits: sums over its tokens, and the loss a token."""

    loss: torch.Tensor | None = None
    cross_entropy: torch.Tensor | None = None
    hits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None

    @classmethod
    def of(cls, sums: losses.Sums) -> LossOutput:
        return cls(sums.mean, sums.cross_entropy, sums.hits, sums.tokens)


class MPTForCausalLM(foundry.MPTForCausalLM, GenerationMixin):
    """LLM Foundry's language model, with ``generate`` back, which newer transformers takes away from its base class."""

    config_class = MPTConfig

    def __init__(self, config: MPTConfig) -> None:
        super().__init__(config)
        if self.lm_head is not None:
            _become(self.lm_head, losses.Head)
            # LLM Foundry fills a head of its own by `init_config` where the model is built on meta, and elsewhere
            # leaves it torch's first weights: one GPU would start from another distribution than eight
            if config.init_device != "meta":
                self.param_init_fn(self.lm_head)
        # LLM Foundry marks what FSDP shards on its own beside the blocks by an attribute that Composer has deprecated
        marked = [(name, module) for name, module in self.named_modules() if vars(module).pop("_fsdp_wrap", False)]
        # what has no parameters, such as RoPE's angles, has nothing to shard, and its hooks would split compiled blocks
        self._sharded_alone = tuple(name for name, module in marked if any(True for _ in module.parameters()))

    @wraps(foundry.MPTForCausalLM.forward)  # whose signature transformers and Composer look at
    def forward(self, *args: Any, linear_loss: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        """LLM Foundry's forward pass; with a ``linear_loss`` of (hidden, weight) what it gives, in place of logits."""
        if linear_loss is None:
            return super().forward(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes what it knows of a language model; the loss has its targets
        hidden = self.transformer(*args, **kwargs).last_hidden_state  # (B, S, D)
        found = self.get_output_embeddings()(hidden, loss=linear_loss)
        return LossOutput.of(found) if isinstance(found, losses.Sums) else found

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Writes the model; where its code goes with it, as LLM Foundry's class, whose code is found everywhere.

        So it is for the hf_checkpointer callback, which has that class written down for transformers. ``attn_impl`` is
        then ``torch``, which needs nothing else.
        """
        config = self.config
        if foundry.MPTForCausalLM._auto_class is None:
            super().save_pretrained(*args, **kwargs)
            return
        ours, impl = (type(self), type(config)), config.attn_config["attn_impl"]
        self.__class__, config.__class__ = foundry.MPTForCausalLM, foundry.MPTConfig
        config.attn_config["attn_impl"] = "torch"
        try:
            foundry.MPTForCausalLM.save_pretrained(self, *args, **kwargs)
        finally:
            self.__class__, config.__class__ = ours
            config.attn_config["attn_impl"] = impl

    @property
    def takes_linear_loss(self) -> bool:
        """Whether the output embedding is still ours: PEFT and embedding surgery put other modules there."""
        return isinstance(self.get_output_embeddings(), (losses.SharedEmbedding, losses.Head))

    def fsdp_wrap_fn(self, module: nn.Module) -> Any:
        return any(module is self.get_submodule(name) for name in self._sharded_alone) or super().fsdp_wrap_fn(module)

    @property
    def backbone_model_class(self) -> type[MPTModel]:
        return MPTModel

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Tells ``generate`` to keep the tuples of keys and values that LLM Foundry's forward pass gives and takes."""
        return False


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Makes a module of LLM Foundry's one of our subclass, with its parameters and marks untouched."""
    assert issubclass(kind, type(module))
    module.__class__ = kind


class ComposerMPTCausalLM(foundry.ComposerMPTCausalLM):
    """The Composer model ``mpt_causal_lm``: takes LLM Foundry's ``model:`` section as it stands.

    ``loss_fn`` is one of ``loss.CHOICES``. LLM Foundry's default, ``fused_crossentropy``, is here the best loss
    without logits: Liger's on CUDA where it is installed, else the chunked one in torch. ``torch_crossentropy`` keeps
    the logits. All compute the same number. ``label_smoothing`` and ``z_loss`` are added to the training loss alone.

    Raises:
        ValueError: a loss that does not exist, is not installed, or cannot give the metrics that are asked for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        loss_fn: str = "fused_crossentropy",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(tokenizer=tokenizer, loss_fn="torch_crossentropy", **kwargs)
        self.loss_fn = losses.LogitsLoss(label_smoothing, z_loss)  # evaluation, and training with logits
        self.loss_name = losses.choose(loss_fn, set(self.train_metrics or ()), self.config.ffn_config["ffn_type"])
        self._linear_loss: partial[losses.Sums] | None = None
        if self.loss_name in losses.LINEAR:
            terms = losses.Terms(
                1.0 if self.model.logit_scale is None else self.model.logit_scale,
                self.config.final_logit_softcapping,
                label_smoothing,
                z_loss,
            )
            hits = {"count_hits": True} if self.train_metrics else {}
            self._linear_loss = partial(losses.LINEAR[self.loss_name], terms=terms, **hits)
        log.info("loss: %s → %s", loss_fn, self.loss_name)

    @property
    def model_class(self) -> type[MPTForCausalLM]:
        return MPTForCausalLM

    @property
    def config_class(self) -> type[MPTConfig]:
        return MPTConfig

    @property
    def terms(self) -> losses.Terms | None:
        """Of a loss without logits; None where ``loss_fn`` keeps them."""
        return None if self._linear_loss is None else self._linear_loss.keywords["terms"]

    def forward(self, batch: MutableMapping[str, Any]) -> Any:
        """Logits; in training a ``LossOutput``, unless the loss needs logits."""
        takes = getattr(self.model, "takes_linear_loss", False)
        if not (self.training and self._linear_loss is not None and takes and "labels" in batch):
            return super().forward(batch)
        targets = self.get_targets(batch) if self.shift_labels else batch["labels"]
        linear_loss = self._linear_loss
        if self.loss_name == "liger_crossentropy" and targets.device.type == "cpu":  # a run on the CPU of a GPU machine
            linear_loss = partial(losses.chunked, **linear_loss.keywords)
        inputs = ("input_ids", "attention_mask", "sequence_id", "inputs_embeds", "position_ids")
        return self.model(
            **{name: batch.get(name) for name in inputs},
            linear_loss=partial(linear_loss, targets=targets),
        )

    def loss(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        return outputs.loss if isinstance(outputs, LossOutput) else super().loss(outputs, batch)

    def eval_forward(self, batch: Any, outputs: Any | None = None) -> Any:
        return outputs if isinstance(outputs, LossOutput) else super().eval_forward(batch, outputs)

    def update_metric(self, batch: Any, outputs: Any, metric: Any) -> dict[str, Any]:
        """Training metrics from the sums that the loss has counted; the others as Composer computes them."""
        if not isinstance(outputs, LossOutput):
            return super().update_metric(batch, outputs, metric)
        if isinstance(metric, TokenAccuracy):
            metric.correct_tokens += outputs.hits
            metric.total_tokens += outputs.tokens
        else:
            metric.sum_loss += outputs.cross_entropy
            metric.total_items += outputs.tokens
        return {}
