"""From answers to scores: LLM Foundry's metrics, their standard errors and 95 % intervals. No torch.

Each metric has one outcome an example; the score is their mean, except for calibration errors, which are over all.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence

import numpy as np

from eval.questions import Scored

Z_95 = 1.959964  # standard normal quantile of 0.975
BUCKETS = 10  # of confidence, in calibration errors
LM = "InContextLearningLMAccuracy"
CHOICE = "InContextLearningMultipleChoiceAccuracy"
MATCH = "InContextLearningGenerationExactMatchAccuracy"
LM_CALIBRATION = "InContextLearningLMExpectedCalibrationError"
CHOICE_CALIBRATION = "InContextLearningMCExpectedCalibrationError"
OF_KIND = {
    "language_modeling": (LM, LM_CALIBRATION),
    "multiple_choice": (CHOICE, CHOICE_CALIBRATION),
    "schema": (CHOICE, CHOICE_CALIBRATION),
    "generation_task_with_answers": (MATCH,),
}


def chosen(answers: Sequence[Scored]) -> int:
    """The choice of the lowest perplexity a token, the first of equals, in the float32 arithmetic of LLM Foundry."""
    means = [np.float32(-np.mean(np.array(a.logprobs, np.float32), dtype=np.float32)) for a in answers]
    with np.errstate(over="ignore"):
        perplexities = [float(np.exp(mean)) for mean in means]
    return perplexities.index(min(perplexities))


def choice_confidence(answers: Sequence[Scored]) -> tuple[int, float]:
    """The choice of the highest mean probability a token, and its share of all choices' (arXiv:2012.00955)."""
    means = [float(np.exp(np.array(a.logprobs)).mean()) for a in answers]
    return means.index(max(means)), max(means) / sum(means) if sum(means) else 1 / len(means)


def calibration_error(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """Mean over ten buckets of |share correct − middle of the bucket|, weighted by size, as LLM Foundry has it."""
    totals, right = [0] * BUCKETS, [0.0] * BUCKETS
    for confidence, outcome in zip(confidences, correct, strict=True):
        bucket = min(int(confidence * BUCKETS), BUCKETS - 1)
        totals[bucket] += 1
        right[bucket] += outcome
    gaps = [t * abs(r / t - (i + 0.5) / BUCKETS) for i, (t, r) in enumerate(zip(totals, right, strict=True)) if t]
    return sum(gaps) / max(1, len(confidences))


def exact_match(
    text: str, answers: Sequence[str], stop: Sequence[str] | None, cot_delimiter: str, normalise: bool
) -> bool:
    """Whether the generated text, cut at the stop strings, begins with one of the answers."""
    if stop:
        text = re.split("|".join(stop), text)[0]
    if cot_delimiter:
        text = text.split(cot_delimiter)[-1]
    clean = normalised if normalise else str.strip
    return any(clean(text).startswith(clean(answer)) for answer in answers)


def normalised(answer: str) -> str:
    """Lower case without punctuation, articles and extra white space, as TriviaQA's own evaluation does it."""
    punctuation = {*string.punctuation, "‘", "’", "´", "`"}
    words = answer.replace("_", " ").lower()
    words = "".join(c if c not in punctuation else " " for c in words)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def standard_error(outcomes: Sequence[float]) -> float:
    """Of the mean: s / √n with the n − 1 of a sample, as lm-evaluation-harness has it; 0 for fewer than two."""
    n = len(outcomes)
    if n < 2:
        return 0.0
    mean = sum(outcomes) / n
    return math.sqrt(sum((x - mean) ** 2 for x in outcomes) / (n - 1) / n)


def interval(outcomes: Sequence[float]) -> tuple[float, float]:
    """95 %: Wilson's for shares, which has a width at 0 and 1 too; else mean ± 1.96 standard errors.

    Wilson, JASA 22 (1927): (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).
    """
    n = len(outcomes)
    if n == 0:
        return math.nan, math.nan
    mean = sum(outcomes) / n
    if any(x not in (0, 1) for x in outcomes):
        reach = Z_95 * standard_error(outcomes)
        return mean - reach, mean + reach
    z2 = Z_95**2 / n
    middle = (mean + z2 / 2) / (1 + z2)
    reach = Z_95 * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n)) / (1 + z2)
    return max(0.0, middle - reach), min(1.0, middle + reach)  # rounding would give -0.0 % for 0


def paired_interval(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 %, of the mean difference: Newcombe's for right and wrong, which has a width where nothing flips too.

    Else mean ± 1.96 s/√n of the differences. Newcombe, Statistics in Medicine 17 (1998) 2635, method 10: the two
    Wilson intervals, joined by the correlation of the outcomes with a correction for continuity.
    """
    n = len(before)
    differences = [y - x for x, y in zip(before, after, strict=True)]
    mean = sum(differences) / n
    if any(x not in (0, 1) for x in (*before, *after)):
        reach = Z_95 * standard_error(differences)
        return mean - reach, mean + reach
    right = sum(x * y for x, y in zip(before, after, strict=True))
    a, b = sum(before), sum(after)
    excess = right * (n - a - b + right) - (a - right) * (b - right)  # both right × both wrong − one × the other
    excess = max(excess - n / 2, 0.0) if excess > 0 else excess
    spread = math.sqrt(a * (n - a) * b * (n - b))
    phi = excess / spread if spread else 0.0
    (low_a, high_a), (low_b, high_b) = interval(before), interval(after)

    def reach_of(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return mean - reach_of(b / n - low_b, high_a - a / n), mean + reach_of(a / n - low_a, high_b - b / n)
