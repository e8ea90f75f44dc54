"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): blocks without attention, whose memory of the past does not grow.

Modules, parameters and their names are those of transformers' ``RwkvForCausalLM``, so that a checkpoint is exported by
copying its tensors; the computation is our own. transformers goes through a sequence token by token unless a CUDA
kernel was built for it, pays no attention to padding, and changes weights in place when it evaluates. Here ``wkv``
takes all tokens at once, padding and packed documents are kept apart, and the loss needs no logits, as in mpt.py.

Shapes: B sequences, S tokens, D hidden size, F width of the channel mixing, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

import torch
import transformers
from composer.utils import dist
from llmfoundry.models.layers.norm import LPLayerNorm
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from recipes.models import loss as losses
from recipes.models.mpt import ComposerMPTCausalLM, LossOutput
from recipes.models.rwkv_blocks import ChannelMixing, LayerState, Matrix, RwkvBlock, TimeMixing
from recipes.models.sharded import local_rows

# RWKV's SmallInit: embeddings begin uniform in ± this, and the norm behind them makes them large
EMBEDDING_LIMIT = 1e-4
HEAD_SCALE = 0.5  # of the output embedding's first weights


class RwkvConfig(transformers.RwkvConfig):
    """transformers' configuration of RWKV-4, from the keys that MPT has for the same things.

    d_model, n_layers, vocab_size, max_seq_len (tokens of a training sequence; the model itself has no limit).
    expansion_ratio: F / D. norm_eps: of the layer norms. attn_config: its ``attn_uses_sequence_id`` keeps packed
    documents apart, as in MPT.
    """

    # what MPT has and RWKV does not, where LLM Foundry's code for a causal model asks for it
    block_overrides = None
    final_logit_softcapping = None
    ffn_config = {"ffn_type": "rwkv"}  # noqa: RUF012 (transformers reads a configuration's attributes)

    def __init__(
        self,
        d_model: int = 2048,
        n_layers: int = 24,
        vocab_size: int = 50368,
        max_seq_len: int = 2048,
        expansion_ratio: float = 4,
        norm_eps: float = 1e-5,
        attn_config: dict[str, Any] | None = None,
        init_device: str = "cpu",
        **kwargs: Any,
    ) -> None:
        for name in ("bos_token_id", "eos_token_id"):  # transformers' default is 0, in many a vocabulary a word
            kwargs.setdefault(name, None)
        super().__init__(
            hidden_size=d_model,
            num_hidden_layers=n_layers,
            vocab_size=vocab_size,
            context_length=max_seq_len,
            intermediate_size=round(d_model * expansion_ratio),
            layer_norm_epsilon=norm_eps,
            rescale_every=0,  # transformers halves weights in place every so many layers; only fp16 needs that
            **kwargs,
        )
        self.d_model, self.n_layers, self.max_seq_len = d_model, n_layers, max_seq_len
        self.expansion_ratio, self.norm_eps, self.init_device = expansion_ratio, norm_eps, init_device
        self.attn_config = {"attn_uses_sequence_id": False, **(attn_config or {})}


@dataclass
class RwkvOutput(ModelOutput):
    """``state``: a ``LayerState`` a block, for the tokens that come next."""

    last_hidden_state: Tensor | None = None
    logits: Tensor | None = None
    state: Any = None


class RwkvModel(nn.Module):
    """Embeddings and blocks: tokens → hidden states."""

    shift_labels = True  # the loss compares a token's scores with the next token

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__()
        device = config.init_device
        self.config = config
        self.attn_uses_sequence_id = bool(config.attn_config["attn_uses_sequence_id"])
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model, device=device)
        self.blocks = nn.ModuleList(RwkvBlock(config, layer) for layer in range(config.n_layers))
        self.ln_out = LPLayerNorm(config.d_model, device=device)  # with torch's epsilon, as in transformers

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sequence_id: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        state: list[LayerState] | None = None,
        use_cache: bool = False,
        **_: Any,  # what transformers and Composer give any model, such as positions
    ) -> RwkvOutput:
        """attention_mask: (B, S), True for a token. sequence_id: (B, S), equal within a document."""
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # (B, S, D)
        starts = None if state is not None else self._starts(attention_mask, sequence_id)
        kept: list[LayerState] = []
        for layer, block in enumerate(self.blocks):
            x, left = block(x, starts, None if state is None else state[layer], use_cache)
            if left is not None:
                kept.append(left)
        return RwkvOutput(last_hidden_state=self.ln_out(x), state=kept or None)

    @torch.no_grad()
    def _starts(self, mask: Tensor | None, sequence_id: Tensor | None) -> Tensor | None:
        """(B, S), True where a document begins and so knows nothing of what is before it; None where nothing does."""
        ids = sequence_id if self.attn_uses_sequence_id else None
        if mask is not None and not bool(mask.all()):
            ids = (torch.zeros_like(mask, dtype=torch.long) if ids is None else ids).masked_fill(~mask.bool(), -1)
        if ids is None:
            return None
        starts = torch.zeros_like(ids, dtype=torch.bool)
        starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
        return starts


class RwkvForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """transformers' model of the same name, by its parameters; ``LossOutput`` in training, as MPT gives it."""

    config_class = RwkvConfig
    base_model_prefix = "rwkv"
    _is_stateful = True  # says to ``generate`` that what is kept of the past is no list of keys and values
    logit_scale = None

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__(config)
        if config.init_device == "mixed":  # the first process of a machine holds the weights and sends them
            config.init_device = "cpu" if dist.get_local_rank() == 0 else "meta"
        self.rwkv = RwkvModel(config)
        self.head = losses.Head(config.d_model, config.vocab_size, bias=False, device=config.init_device)
        if config.init_device != "meta":
            self.apply(self.param_init_fn)

    @property
    def takes_linear_loss(self) -> bool:
        """Whether the output embedding is still ours: resizing the vocabulary puts another module there."""
        return isinstance(self.head, losses.Head)

    @property
    def transformer(self) -> RwkvModel:
        """By the name that LLM Foundry's code for causal models asks for."""
        return self.rwkv

    def get_input_embeddings(self) -> nn.Module:
        return self.rwkv.embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.rwkv.embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.head = new_embeddings

    @wraps(RwkvModel.forward)  # whose signature transformers and Composer look at
    def forward(  # type: ignore[override]
        self, *args: Any, linear_loss: Callable[..., losses.Sums] | None = None, **kwargs: Any
    ) -> Any:
        """Logits (B, S, V); with a ``linear_loss`` of (hidden, weight), a ``LossOutput`` without them."""
        out = self.rwkv(*args, **kwargs)
        if linear_loss is None:
            return RwkvOutput(logits=self.head(out.last_hidden_state), state=out.state)
        return LossOutput.of(self.head(out.last_hidden_state, loss=linear_loss))

    def generate(self, *arguments: Any, **more: Any) -> Any:
        """transformers' own. It puts keys and values of beams in a new order, but no state, so none is kept then."""
        said = more.get("generation_config") or self.generation_config
        if (more.get("num_beams") or getattr(said, "num_beams", None) or 1) > 1:
            more["use_cache"] = False
        return super().generate(*arguments, **more)

    def prepare_inputs_for_generation(self, input_ids: Any, *_: Any, **kwargs: Any) -> dict[str, Any]:
        """All tokens the first time, then the last one and what was kept of those before."""
        state, attention_mask = kwargs.get("state"), kwargs.get("attention_mask")
        if state is not None:
            input_ids, attention_mask = input_ids[:, -1:], None
        use_cache = bool(kwargs.get("use_cache"))
        return {"input_ids": input_ids, "attention_mask": attention_mask, "state": state, "use_cache": use_cache}

    @torch.no_grad()
    def param_init_fn(self, module: nn.Module) -> None:
        """Fills a module's own parameters with the values they begin with; sharded ones too.

        As RWKV's authors do (src/model.py of RWKV-v4neo), but for their orthogonal matrices, which a shard cannot draw
        by itself: normal ones of the same variance.
        """
        if isinstance(module, losses.Head):
            nn.init.normal_(module.weight, std=HEAD_SCALE / math.sqrt(module.in_features))
        elif isinstance(module, Matrix):
            nn.init.normal_(module.weight, std=module.init_std)
        elif isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -EMBEDDING_LIMIT, EMBEDDING_LIMIT)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, (TimeMixing, ChannelMixing)):
            for name, values in module.initial().items():
                parameter = getattr(module, name)
                local, first = local_rows(parameter)
                local.copy_(values.view(parameter.shape)[first : first + local.shape[0]])

    def fsdp_wrap_fn(self, module: nn.Module) -> bool:
        return isinstance(module, RwkvBlock) or module in (self.rwkv.embeddings, self.head)

    def activation_checkpointing_fn(self, module: nn.Module) -> bool:
        return isinstance(module, RwkvBlock)


class ComposerRwkvCausalLM(ComposerMPTCausalLM):
    """The Composer model ``rwkv_causal_lm``; losses and metrics are those of ``mpt_causal_lm``.

    Raises:
        ValueError: a loss that does not exist, is not installed, or cannot give the metrics that are asked for.
    """

    @property
    def model_class(self) -> Any:
        return RwkvForCausalLM

    @property
    def config_class(self) -> Any:
        return RwkvConfig

    @cached_property
    def n_total_params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @cached_property
    def n_active_params(self) -> int:
        """Without the table of embeddings, which is looked up in, not multiplied with."""
        return self.n_total_params - self.model.rwkv.embeddings.weight.numel()

    def get_attention_flops(self, msl: int) -> int:
        """None: there are no scores between tokens."""
        return 0
