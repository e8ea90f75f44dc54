"""Scaling law of language models: the loss of N parameters trained on D tokens, and how to spend a budget.

    L(N, D) = E + A / N^alpha + B / D^beta        (Hoffmann et al. 2022, "Chinchilla", arXiv 2203.15556, equation 2)

With C = 6 N D the best split of C FLOPs is N = G (C/6)^(beta/s), D = (C/6) / N, where s = alpha + beta and
G = (alpha A / (beta B))^(1/s).
The loss is in nats a token on the authors' data and tokenizer: compare losses of one law with each other, not with
the loss of a run on other data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ScalingLaw:
    """One fit of the law. N counts all parameters, embeddings included."""

    name: str
    source: str
    irreducible: float  # E
    parameters_scale: float  # A
    tokens_scale: float  # B
    parameters_power: float  # alpha
    tokens_power: float  # beta
    irreducible_standard_error: float | None  # None: its authors give none

    @property
    def loss_error_95(self) -> float | None:
        """± of a predicted loss at 95 %: 1.96 standard errors of E.

        A and alpha (B and beta) were fitted together and their errors cancel within the data, so that E's remains; it
        holds inside the fitted range only.
        """
        return None if self.irreducible_standard_error is None else 1.96 * self.irreducible_standard_error

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss in nats a token."""
        if parameters <= 0 or tokens <= 0:
            raise ValueError(f"loss: got {parameters} parameters and {tokens} tokens, expected both above 0.")
        from_size = self.parameters_scale / parameters**self.parameters_power
        return self.irreducible + from_size + self.tokens_scale / tokens**self.tokens_power

    def optimal(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the lowest loss for `flops` = 6 N D of training."""
        if flops <= 0:
            raise ValueError(f"flops: got {flops}, expected more than 0.")
        a, b = self.parameters_power, self.tokens_power
        ratio = (a * self.parameters_scale) / (b * self.tokens_scale)
        parameters = ratio ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
        return parameters, flops / 6 / parameters

    def tokens_for(self, loss: float, parameters: float) -> float:
        """Tokens that a model of this size needs to reach a loss.

        Raises:
            ValueError: no number of tokens is enough for a model this small.
        """
        left = loss - self.irreducible - self.parameters_scale / parameters**self.parameters_power
        if left <= 0:
            limit = loss - left
            raise ValueError(
                f"loss: {parameters:.3g} parameters cannot reach {loss:.3f}; with any number of tokens they end at "
                f"{limit:.3f}. Use a larger model."
            )
        return (self.tokens_scale / left) ** (1 / self.tokens_power)


SCALING_LAWS: Mapping[str, ScalingLaw] = {
    law.name: law
    for law in (
        ScalingLaw(
            "besiroglu-2024",
            "Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt (arXiv 2404.10102)",
            irreducible=1.8172,
            parameters_scale=482.01,
            tokens_scale=2085.43,
            parameters_power=0.3478,
            tokens_power=0.3658,
            irreducible_standard_error=0.03,  # table 1
        ),
        ScalingLaw(
            "hoffmann-2022",
            "Hoffmann et al. 2022 (arXiv 2203.15556), approach 3 as printed: rounded, and at odds with the paper's own "
            "20 tokens a parameter",
            irreducible=1.69,
            parameters_scale=406.4,
            tokens_scale=410.7,
            parameters_power=0.34,
            tokens_power=0.28,
            irreducible_standard_error=None,
        ),
    )
}
DEFAULT_LAW = "besiroglu-2024"

# The runs behind both fits: "70 million to over 16 billion parameters on 5 to 500 billion tokens" (Hoffmann et al.,
# abstract). Outside of it a loss is an extrapolation.
FITTED_PARAMETERS = (70e6, 16e9)
FITTED_TOKENS = (5e9, 500e9)


def is_extrapolated(parameters: float, tokens: float) -> bool:
    """Outside of what was fitted, by more than the tenth to which its ends are known."""
    low, high = FITTED_PARAMETERS
    few, many = FITTED_TOKENS
    return not (0.9 * low <= parameters <= 1.1 * high and 0.9 * few <= tokens <= 1.1 * many)


@dataclass(frozen=True)
class TrainingBalance:
    """How a run of N parameters and D tokens compares with the best use of its FLOPs."""

    tokens_per_parameter: float
    optimal_tokens_per_parameter: float  # at the same FLOPs
    flops_wasted: float  # share of the FLOPs that the optimal split would not need for the same loss
    verdict: str


def scaling_law(name: str = DEFAULT_LAW) -> ScalingLaw:
    if name not in SCALING_LAWS:
        raise ValueError(f"scaling law: got {name!r}, expected one of {', '.join(SCALING_LAWS)}.")
    return SCALING_LAWS[name]


def predicted_loss(
    parameters: float, tokens: float, vocabulary: int | None = None, law: str = DEFAULT_LAW
) -> float | None:
    """Nats a token by a scaling law; None where it says nothing: no less than guessing all words alike."""
    loss = scaling_law(law).loss(parameters, tokens)
    return loss if vocabulary is None or loss < math.log(max(vocabulary, 2)) else None


def balance(parameters: float, tokens: float, law: str = DEFAULT_LAW) -> TrainingBalance:
    """Says whether a run is over- or under-trained for its compute.

    Over-training costs more FLOPs for the same loss and makes a smaller model, which is cheaper to serve: it is often
    what one wants, so the verdict states the price rather than judging.
    """
    chosen = scaling_law(law)
    flops = 6 * parameters * tokens
    best_parameters, best_tokens = chosen.optimal(flops)
    loss = chosen.loss(parameters, tokens)
    best_loss = chosen.loss(best_parameters, best_tokens)
    # along the best split the loss falls as a power of the FLOPs, down to the irreducible one
    a, b = chosen.parameters_power, chosen.tokens_power
    enough = flops * ((best_loss - chosen.irreducible) / (loss - chosen.irreducible)) ** ((a + b) / (a * b))
    ratio, best_ratio = tokens / parameters, best_tokens / best_parameters
    wasted = max(0.0, 1 - enough / flops)
    compared = f"{ratio:.3g} tokens a parameter where {best_ratio:.0f} are compute-optimal"
    if 0.5 <= ratio / best_ratio <= 2:
        verdict = f"about compute-optimal: {compared}"
    elif ratio > best_ratio:
        verdict = (
            f"over-trained: {compared}; a larger model, dearer to serve, needs {wasted:.0%} fewer FLOPs for this loss"
        )
    else:
        verdict = (
            f"under-trained: {compared}; a smaller model on more tokens needs {wasted:.0%} fewer FLOPs for this loss"
        )
    return TrainingBalance(
        tokens_per_parameter=ratio,
        optimal_tokens_per_parameter=best_ratio,
        flops_wasted=wasted,
        verdict=verdict,
    )


def optimal_with_inference(loss: float, inference_tokens: float, law: str = DEFAULT_LAW) -> tuple[float, float]:
    """(parameters, training tokens) of the fewest FLOPs in all that reach `loss` and then serve `inference_tokens`.

    Minimises 6 N D + 2 N D_inference under L(N, D) = loss (Sardana et al. 2024, Beyond Chinchilla-Optimal, arXiv
    2401.00448, equation 2), by golden-section search over log N: more inference wants a smaller, longer-trained model.

    Raises:
        ValueError: the loss is at or below the law's irreducible one, or the tokens are negative.
    """
    chosen = scaling_law(law)
    if loss <= chosen.irreducible:
        raise ValueError(f"loss: got {loss}, expected above {chosen.irreducible}, the irreducible loss of {law}.")
    if inference_tokens < 0:
        raise ValueError(f"inference_tokens: got {inference_tokens}, expected 0 or more.")
    # The smallest model that can reach the loss with endless data; above 1e6 times that the search never ends.
    smallest = (chosen.parameters_scale / (loss - chosen.irreducible)) ** (1 / chosen.parameters_power)

    def flops(log_parameters: float) -> float:
        parameters = math.exp(log_parameters)
        return parameters * (6 * chosen.tokens_for(loss, parameters) + 2 * inference_tokens)

    low, high = math.log(smallest * 1.0001), math.log(smallest * 1e6)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(100):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if flops(left) < flops(right):
            high = right
        else:
            low = left
    parameters = math.exp((low + high) / 2)
    return parameters, chosen.tokens_for(loss, parameters)
