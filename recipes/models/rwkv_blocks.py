"""A block of RWKV-4: time mixing and channel mixing, each with its first weights.

Shapes: B sequences, S tokens, D hidden size, F width of the channel mixing.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from llmfoundry.models.layers.norm import LPLayerNorm
from torch import Tensor, nn

from recipes.models.wkv import Seen, wkv

if TYPE_CHECKING:
    from recipes.models.rwkv import RwkvConfig


class LayerState:
    """What a block keeps of the tokens before: its two inputs at the last one, (B, D), and what ``wkv`` has seen.

    A plain class: of tuples and data classes FSDP would cast the tensors to the type that the block computes in.
    """

    def __init__(self, time_input: Tensor, channel_input: Tensor, seen: Seen) -> None:
        self.time_input, self.channel_input, self.seen = time_input, channel_input, seen


class Matrix(nn.Linear):
    """A matrix without bias that begins normal with a standard deviation, 0 for a matrix of zeros."""

    def __init__(self, width_in: int, width_out: int, init_std: float, device: str) -> None:
        super().__init__(width_in, width_out, bias=False, device=device)
        self.init_std = init_std


class TimeMixing(nn.Module):
    """In attention's place: each channel's decaying mean over the past, gated by the token itself."""

    def __init__(self, config: RwkvConfig, layer: int) -> None:
        super().__init__()
        D, device = config.d_model, config.init_device
        self.layer, self.n_layers = layer, config.n_layers
        self.time_decay, self.time_first = _parameter(device, D), _parameter(device, D)
        self.time_mix_key, self.time_mix_value = _parameter(device, 1, 1, D), _parameter(device, 1, 1, D)
        self.time_mix_receptance = _parameter(device, 1, 1, D)
        self.key, self.receptance = Matrix(D, D, 0.0, device), Matrix(D, D, 0.0, device)
        self.value = Matrix(D, D, 1 / math.sqrt(D), device)
        self.output = Matrix(D, D, 0.0, device)

    def forward(
        self, x: Tensor, starts: Tensor | None, past: tuple[Tensor, Seen] | None, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, Seen] | None]:
        before = _token_before(x, starts, None if past is None else past[0])
        change = x - before
        keys = self.key(before + change * self.time_mix_key)
        values = self.value(before + change * self.time_mix_value)
        receptance = torch.sigmoid(self.receptance(before + change * self.time_mix_receptance))
        decay, seen = torch.exp(self.time_decay.float()), None if past is None else past[1]
        out, seen = wkv(keys, values, decay, self.time_first, starts, seen)
        kept = (x[:, -1], seen) if keep else None
        return self.output(receptance * out.to(keys.dtype)), kept

    def initial(self) -> dict[str, Tensor]:
        """The values that the vectors begin with, from the channel's number and the layer's (RWKV's appendix E)."""
        D = self.time_decay.shape[0]
        channel = torch.arange(D, dtype=torch.float32)
        depth = self.layer / max(1, self.n_layers - 1)  # 0 to 1
        rest = 1 - self.layer / self.n_layers  # 1 to nearly 0
        share = channel / D
        return {
            "time_decay": -5 + 8 * (channel / max(1, D - 1)) ** (0.7 + 1.3 * depth),
            "time_first": math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1),
            "time_mix_key": share**rest,
            "time_mix_value": share**rest + 0.3 * depth,
            "time_mix_receptance": share ** (0.5 * rest),
        }


class ChannelMixing(nn.Module):
    """In the feed-forward part's place: squared ReLU, gated by the token itself."""

    def __init__(self, config: RwkvConfig, layer: int) -> None:
        super().__init__()
        D, F, device = config.d_model, config.intermediate_size, config.init_device
        self.layer, self.n_layers = layer, config.n_layers
        self.time_mix_key, self.time_mix_receptance = _parameter(device, 1, 1, D), _parameter(device, 1, 1, D)
        self.key = Matrix(D, F, 1 / math.sqrt(D), device)
        self.receptance = Matrix(D, D, 0.0, device)
        self.value = Matrix(F, D, 0.0, device)

    def forward(
        self, x: Tensor, starts: Tensor | None, past: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        before = _token_before(x, starts, past)
        change = x - before
        hidden = torch.square(torch.relu(self.key(before + change * self.time_mix_key)))  # (B, S, F)
        receptance = torch.sigmoid(self.receptance(before + change * self.time_mix_receptance))
        return receptance * self.value(hidden), x[:, -1] if keep else None

    def initial(self) -> dict[str, Tensor]:
        D = self.time_mix_key.shape[-1]
        share = (torch.arange(D, dtype=torch.float32) / D) ** (1 - self.layer / self.n_layers)
        return {"time_mix_key": share, "time_mix_receptance": share}


class RwkvBlock(nn.Module):
    def __init__(self, config: RwkvConfig, layer: int) -> None:
        super().__init__()
        # summed in fp32, read and written in 16 bits under autocast, which would have all around it in fp32
        norm = partial(LPLayerNorm, config.d_model, eps=config.norm_eps, device=config.init_device)
        self.pre_ln = norm() if layer == 0 else None
        self.ln1, self.ln2 = norm(), norm()
        self.attention = TimeMixing(config, layer)
        self.feed_forward = ChannelMixing(config, layer)

    def forward(
        self, x: Tensor, starts: Tensor | None = None, past: LayerState | None = None, keep: bool = False
    ) -> tuple[Tensor, LayerState | None]:
        if self.pre_ln is not None:
            x = self.pre_ln(x)
        mixed, time = self.attention(self.ln1(x), starts, None if past is None else (past.time_input, past.seen), keep)
        x = x + mixed
        mixed, channel = self.feed_forward(self.ln2(x), starts, None if past is None else past.channel_input, keep)
        kept = LayerState(time[0], channel, time[1]) if time is not None and channel is not None else None
        return x + mixed, kept


def _parameter(device: str, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, device=device))


def _token_before(x: Tensor, starts: Tensor | None, last: Tensor | None) -> Tensor:
    """(B, S, D) → what each token's predecessor has in its place: zeros where a document begins."""
    first = torch.zeros_like(x[:, :1]) if last is None else last[:, None].to(x.dtype)
    before = torch.cat([first, x[:, :-1]], dim=1)
    return before if starts is None else before.masked_fill(starts[..., None], 0)
