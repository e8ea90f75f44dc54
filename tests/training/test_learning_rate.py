"""The learning rate by a recipe alone, against Composer's schedulers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from composer.core import Time, Timestamp
from llmfoundry.utils import builders

from recipes.config.load import load
from recipes.training.learning_rate import SHAPES, learning_rate, warmup_is_longer

TOKENS = 8 * 32  # of a step


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("duration", "lengths"),
    [
        ("60ba", {"t_warmup": "10ba"}),
        ("60ba", {"t_warmup": "0.25dur"}),
        ("90ba", {"t_warmup": "10ba", "t_max": "100ba"}),
        (f"{60 * TOKENS}tok", {"t_warmup": f"{10 * TOKENS}tok"}),
    ],
)
def test_it_is_composers(name: str, duration: str, lengths: dict[str, str], recipe_file: Callable[[str], Path]) -> None:
    more: dict[str, float] = {"constant_with_warmup": {"alpha": 0.5}}.get(name, {"alpha_f": 0.1})
    keys = "".join(f", {key}: {value}" for key, value in {**lengths, **more}.items())
    text = f"scheduler: {{name: {name}{keys}}}\noptimizer: {{lr: 2.0e-3}}\nmax_duration: {duration}\n"
    recipe = load(recipe_file(f"{text}max_seq_len: 32\nglobal_train_batch_size: 8\n"))
    scheduler: Any = builders.build_scheduler(name, {**lengths, **more})
    for step in (0, 5, 10, 15, 40, 60):
        timestamp = Timestamp(batch=step, token=step * TOKENS)
        state = SimpleNamespace(max_duration=Time.from_timestring(duration), timestamp=timestamp, dataloader_len=None)
        assert learning_rate(recipe, step) == pytest.approx(2e-3 * scheduler(state))


def test_of_other_schedulers_nothing_is_said(recipe_file: Callable[[str], Path]) -> None:
    text = "scheduler: {name: inv_sqrt_with_warmup, t_warmup: 10ba, t_scale: 10ba}\noptimizer: {lr: 1.0e-3}\n"
    recipe = load(recipe_file(f"{text}max_duration: 60ba\nmax_seq_len: 32\nglobal_train_batch_size: 8\n"))
    assert learning_rate(recipe, 5) is None


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_scheduler_does_not_say_is_as_composer_has_it(name: str, recipe_file: Callable[[str], Path]) -> None:
    text = f"scheduler: {{name: {name}, t_warmup: 10ba}}\noptimizer: {{lr: 2.0e-3}}\nmax_duration: 60ba\n"
    recipe = load(recipe_file(f"{text}max_seq_len: 32\nglobal_train_batch_size: 8\n"))
    scheduler: Any = builders.build_scheduler(name, {"t_warmup": "10ba"})
    for step in (5, 40, 60):
        duration = Time.from_timestring("60ba")
        state = SimpleNamespace(max_duration=duration, timestamp=Timestamp(batch=step), dataloader_len=None)
        assert learning_rate(recipe, step) == pytest.approx(2e-3 * scheduler(state))


@pytest.mark.parametrize("name", ["linear_decay_with_warmup", "cosine_with_warmup"])
def test_behind_its_end_it_stays_where_it_is(name: str, recipe_file: Callable[[str], Path]) -> None:
    text = f"scheduler: {{name: {name}, t_warmup: 10ba, t_max: 40ba, alpha_f: 0.1}}\nmax_duration: 60ba\n"
    recipe = load(recipe_file(f"{text}optimizer: {{lr: 2.0e-3}}\nmax_seq_len: 32\nglobal_train_batch_size: 8\n"))
    for step in (40, 50, 60):
        assert learning_rate(recipe, step) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("warmup", "duration", "is_longer"),
    [
        ("100ba", "1ep", True),
        ("5ba", "1ep", False),
        ("100ba", "9ba", True),
        ("3ep", "2ep", True),
        ("9ep", "9tok", False),
    ],
)
def test_a_warm_up_and_a_run_are_compared_in_steps(
    warmup: str, duration: str, is_longer: bool, recipe_file: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n" * 64)  # 8 steps
    text = f"scheduler: {{name: constant_with_warmup, t_warmup: {warmup}}}\nmax_duration: {duration}\nmax_seq_len: 32\n"
    text += f"train_loader: {{name: preferences, dataset: {{path: {tmp_path}/pairs.jsonl}}}}\ndpo: {{beta: 0.1}}\n"
    recipe = load(recipe_file(text + "global_train_batch_size: 8\n"))
    assert warmup_is_longer(recipe) == is_longer
