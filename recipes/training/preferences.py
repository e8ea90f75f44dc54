"""Direct preference optimisation: pairs of answers to one prompt, the better one to become likelier than before.

    loss = -log sigmoid(beta * ((log p(chosen) - log p₀(chosen)) - (log p(rejected) - log p₀(rejected))))

(Rafailov et al. 2023, arXiv 2305.18290, equation 7.) p₀ is the model as it was: with LoRA that is the same model with
its adapters turned off, so no second copy is held, on one process or sharded.

Shapes: B pairs, S tokens; the second dimension of a batch is (chosen, rejected).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from composer import ComposerModel, DataSpec
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, Metric

from data_prep.conversations import BadExample, ConversationTokenizer
from recipes.models.log_probabilities import log_probabilities
from recipes.models.loss import IGNORE
from recipes.training.pairs import EXPECTED, read_conversations


class PairLoss(MeanMetric):
    """The DPO loss, mean over pairs."""


class PairAccuracy(MeanMetric):
    """How often the chosen answer has gained more than the rejected one, a tie for half; a half is chance."""


class PreferenceModel(ComposerModel):
    """A language model with adapters, trained on pairs. Its parameters keep the names they have without it.

    model: the Composer model that the recipe's `model:` section builds. beta: how far p may move from p₀; smaller is
    further. Raises ValueError for a model without adapters.
    """

    def __init__(self, model: Any, beta: float) -> None:
        super().__init__()
        self.model = model.model
        self.tokenizer = model.tokenizer
        self.beta = beta
        self._terms = getattr(model, "terms", None)
        self._flops_of_sequences = model.flops_per_batch
        self._metrics = {"PairLoss": PairLoss(), "PairAccuracy": PairAccuracy()}
        if not list(_adapters(self.model)):
            raise ValueError("dpo compares with the model without its adapters: set model.peft_config (LoRA)")

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """beta times the difference of the gains, (B,): positive where the chosen answer has gained more."""
        now = self._answers(batch)  # (B, 2)
        was_training = self.model.training
        self.model.eval()  # the model that it was: with dropout, two readings of the same weights differ
        with torch.no_grad(), adapters_off(self.model):
            before = self._answers(batch)
        self.model.train(was_training)
        gain = now - before
        return self.beta * (gain[:, 0] - gain[:, 1])

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], *_: Any, **__: Any) -> Tensor:
        return -F.logsigmoid(outputs).mean()

    def eval_forward(self, batch: Mapping[str, Tensor], outputs: Tensor | None = None) -> Tensor:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        return {} if is_train else dict(self._metrics)

    def update_metric(self, batch: Any, outputs: Tensor, metric: Metric) -> None:
        half = outputs.new_tensor(0.5)
        metric.update(-F.logsigmoid(outputs) if isinstance(metric, PairLoss) else torch.heaviside(outputs, half))

    def flops_per_batch(self, batch: Mapping[str, Tensor]) -> float:
        """As the language model counts both answers: what a plan's MFU is of, one forward pass of two left out."""
        return self._flops_of_sequences({"input_ids": batch["input_ids"].flatten(0, 1)})

    def _answers(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probability of each answer under the model, (B, 2)."""
        ids, mask, labels = (batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "labels"))  # (2B, S)
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)  # (2B, S): cut and transposed logits would be copied
        if self._terms is not None and getattr(self.model, "takes_linear_loss", False):
            without_logits = partial(log_probabilities, targets=targets, terms=self._terms)
            each = self.model(input_ids=ids, attention_mask=mask.bool(), linear_loss=without_logits)  # (2B, S)
        else:
            logits = self.model(input_ids=ids, attention_mask=mask.bool()).logits.float()  # (2B, S, V)
            each = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
            each = each.unflatten(0, targets.shape)
        return each.sum(dim=1).unflatten(0, (-1, 2))


class adapters_off:
    """Inside, the model computes as if it had no adapters."""

    def __init__(self, model: Any) -> None:
        self._layers = list(_adapters(model))

    def __enter__(self) -> None:
        for layer in self._layers:
            layer._disable_adapters = True  # enable_adapters() would also change which parameters are trained

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer._disable_adapters = False


def _adapters(model: Any) -> Iterable[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer  # only here: a second that other runs need not wait

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


# --- pairs --------------------------------------------------------------------------------------------------------


def build_preference_loader(
    tokenizer: Any,
    device_batch_size: int,
    dataset: dict[str, Any],
    num_workers: int = 0,
    drop_last: bool = True,
    pin_memory: bool = True,
    prefetch_factor: int | None = None,
    persistent_workers: bool = False,
    timeout: int = 0,
) -> DataSpec:
    """The `preferences` loader: pairs from a JSON Lines file, each padded to max_seq_len (one length, compiled once).

    dataset: path, max_seq_len (tokens), shuffle. Raises ValueError for a row that is no pair, naming file and line.
    """
    pairs = read_pairs(Path(dataset["path"]), tokenizer, int(dataset["max_seq_len"]))
    sampler = dist.get_sampler(pairs, drop_last=drop_last, shuffle=bool(dataset.get("shuffle", False)))  # type: ignore[arg-type]
    loader: DataLoader[Any] = DataLoader(
        pairs,  # type: ignore[arg-type]
        batch_size=int(device_batch_size),
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        persistent_workers=persistent_workers,
        timeout=timeout,
    )
    return DataSpec(
        dataloader=loader,
        get_num_samples_in_batch=lambda batch: int(batch["input_ids"].shape[0]),
        get_num_tokens_in_batch=lambda batch: int(batch["attention_mask"].sum()),
    )


def read_pairs(path: Path, tokenizer: Any, max_seq_len: int) -> list[dict[str, Tensor]]:
    """Rows of {"prompt": …, "chosen": …, "rejected": …}, through the tokenizer's chat template: (2, S) tensors each.

    Each is text, or messages: the answers' may begin with the prompt's, which is then not asked for (as TRL has it). A
    pair that is longer than `max_seq_len` tokens is refused: cut off, it would prefer half an answer.
    """
    conversations = ConversationTokenizer(tokenizer, {})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    pairs = []
    for number, two in read_conversations(path):
        try:
            both = [_ids(messages, conversations) for messages in two]
        except (BadExample, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: {EXPECTED}: {error}") from None
        longest = max(len(prompt) + len(answer) for prompt, answer in both)
        if longest > max_seq_len:
            raise ValueError(
                f"{path}:{number}: {longest} tokens, max_seq_len is {max_seq_len}: shorten it, or raise that"
            )
        pairs.append(_padded(both, max_seq_len, pad))
    return pairs


def _ids(messages: list[dict[str, str]], conversations: ConversationTokenizer) -> tuple[list[int], list[int]]:
    *before, last = conversations.turns({"messages": messages})
    prompt = [token for turn in before for token in (*turn.input_ids, *turn.labels)]
    return [*prompt, *last.input_ids], last.labels


def _padded(both: Sequence[tuple[list[int], list[int]]], length: int, pad: int) -> dict[str, Tensor]:
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for prompt, answer in both:
        empty = length - len(prompt) - len(answer)
        rows["input_ids"].append([*prompt, *answer, *[pad] * empty])
        rows["attention_mask"].append([1] * (length - empty) + [0] * empty)
        rows["labels"].append([IGNORE] * len(prompt) + answer + [IGNORE] * empty)
    return {name: torch.tensor(values) for name, values in rows.items()}  # (2, S)
