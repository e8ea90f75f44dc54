"""The scaling laws: their published consequences, and the optimum against a search."""

from __future__ import annotations

import pytest

from recipes.cost.scaling import SCALING_LAWS, balance, optimal_with_inference, predicted_loss, scaling_law

CHINCHILLA_FLOPS = 5.76e23


def test_default_agrees_with_chinchilla_and_the_rounded_one_does_not() -> None:
    """Besiroglu et al. 2024: about 20 tokens a parameter; the constants as printed in 2022 say 93."""
    parameters, tokens = scaling_law().optimal(CHINCHILLA_FLOPS)
    assert tokens / parameters == pytest.approx(18.4, abs=0.1)
    assert parameters == pytest.approx(72e9, rel=0.02)  # Chinchilla has 70e9
    parameters, tokens = scaling_law("hoffmann-2022").optimal(CHINCHILLA_FLOPS)
    assert tokens / parameters == pytest.approx(93, abs=1)


def test_loss_by_hand() -> None:
    by_hand = 1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658
    assert scaling_law().loss(70e9, 1.4e12) == pytest.approx(by_hand)


@pytest.mark.parametrize("name", SCALING_LAWS)
@pytest.mark.parametrize("flops", [1e18, 1e21, 1e24])
def test_optimum_is_a_minimum(name: str, flops: float) -> None:
    law = scaling_law(name)
    parameters, tokens = law.optimal(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    best = law.loss(parameters, tokens)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        assert law.loss(parameters * factor, tokens / factor) > best


def test_balance_names_the_side() -> None:
    assert balance(70e9, 1.4e12).verdict.startswith("about compute-optimal")
    mpt = balance(6.65e9, 1e12)
    assert mpt.verdict.startswith("over-trained: 150 tokens a parameter")
    gpt_3 = balance(175e9, 300e9)
    assert gpt_3.verdict.startswith("under-trained: 1.71 tokens a parameter")
    # The FLOPs said to be enough for the loss reach it, spent in the best way.
    law = scaling_law()
    enough = 6 * 175e9 * 300e9 * (1 - gpt_3.flops_wasted)
    assert law.loss(*law.optimal(enough)) == pytest.approx(law.loss(175e9, 300e9))
    at_best = balance(*law.optimal(1e22))
    assert at_best.flops_wasted == pytest.approx(0, abs=1e-6)


def test_inference_moves_the_optimum_to_smaller_models() -> None:
    law = scaling_law()
    loss = law.loss(*law.optimal(CHINCHILLA_FLOPS))
    parameters, tokens = optimal_with_inference(loss, 0)
    assert (parameters, tokens) == pytest.approx(law.optimal(CHINCHILLA_FLOPS), rel=1e-3)
    sizes = [parameters]
    for inference in (1e12, 1e13, 1e14):
        smaller, longer = optimal_with_inference(loss, inference)
        assert law.loss(smaller, longer) == pytest.approx(loss)

        def spent(n: float, served: float = inference) -> float:
            return 6 * n * law.tokens_for(loss, n) + 2 * n * served

        assert spent(smaller) <= min(spent(smaller * 1.05), spent(smaller / 1.05))
        sizes.append(smaller)
    assert sizes == sorted(sizes, reverse=True)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="got 'chinchilla', expected one of besiroglu-2024, hoffmann-2022"):
        scaling_law("chinchilla")
    with pytest.raises(ValueError, match=r"cannot reach 1\.900"):
        scaling_law().tokens_for(1.9, 1e8)
    with pytest.raises(ValueError, match="the irreducible loss"):
        optimal_with_inference(1.5, 0)
    with pytest.raises(ValueError, match="expected both above 0"):
        scaling_law().loss(0, 1)


def test_twice_the_best_ratio_is_the_last_that_is_about_optimal() -> None:
    parameters, tokens = scaling_law().optimal(1e22)
    for factor, side in ((1.9, "about"), (2.1, "over-trained"), (0.52, "about"), (0.48, "under-trained")):
        ratio = balance(parameters, tokens).optimal_tokens_per_parameter
        for _ in range(20):  # what is best moves with the FLOPs
            ratio = balance(parameters, factor * ratio * parameters).optimal_tokens_per_parameter
        assert balance(parameters, factor * ratio * parameters).verdict.startswith(side)


def test_a_loss_is_predicted_where_it_is_less_than_guessing() -> None:
    assert predicted_loss(70e9, 1.4e12, 50432) == predicted_loss(70e9, 1.4e12) == scaling_law().loss(70e9, 1.4e12)
    assert predicted_loss(1e5, 1e5, 1000) is None
    assert scaling_law().loss_error_95 == pytest.approx(1.96 * 0.03)
