"""Tasks: what the generators make, and what is said about files that are wrong."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import metrics
from eval.questions import Scored
from eval.tasks.cloze import make_cloze
from eval.tasks.dates import APART, make_dates
from eval.tasks.icl import Tokens, build_tasks
from eval.tasks.rows import TaskError
from eval.tasks.sentences import CONTEXT_WORDS, make_next_sentences

from ..conftest import write_jsonl


def documents() -> list[str]:
    chosen = random.Random(4)
    words = [f"{a}{b}word" for a in "abcdefghij" for b in "abcdefghij"]
    made = []
    for _ in range(3):
        sentences = []
        for _ in range(60):
            body = [chosen.choice(words) for _ in range(chosen.randrange(6, 20))]
            if chosen.random() < 0.3:
                body.insert(3, f"in {chosen.randrange(1800, 2000)},")
            sentences.append(" ".join(body).capitalize() + ".")
        made.append(" ".join(sentences))
    return made


@pytest.mark.parametrize("make", [make_cloze, make_next_sentences, make_dates])
def test_the_same_seed_makes_the_same_examples(make: Callable[..., Any]) -> None:
    assert make(documents(), 30, 3) == make(documents(), 30, 3)
    assert make(documents(), 30, 3) != make(documents(), 30, 4)
    made = make(documents(), 30, 3)
    assert len(made) == 30
    assert {example["gold"] for example in made} == {0, 1, 2, 3}


def test_the_right_passage_comes_before_the_sentence() -> None:
    texts = [" ".join(d.split()) for d in documents()]
    for example in make_next_sentences(documents(), 30, 3):
        passages: Any = example["context_options"]
        assert len(set(passages)) == 4
        assert {len(p.split()) for p in passages} == {CONTEXT_WORDS}
        right = f"{passages[example['gold']]} {example['continuation']}"
        assert any(right in text for text in texts)


def test_the_right_year_follows_and_the_others_are_far_from_it() -> None:
    texts = [" ".join(d.split()) for d in documents()]
    for example in make_dates(documents(), 30, 3):
        years: Any = example["choices"]
        assert any(f"{example['query']} {years[example['gold']]}" in text for text in texts)
        numbers = sorted(map(int, years))
        assert min(b - a for a, b in itertools.pairwise(numbers)) >= APART


def test_cloze_offers_words_of_about_the_same_frequency() -> None:
    words = [f"{a}{b}word" for a in "abcdefghijklmnopqrst" for b in "abcdefghij"]
    # the first words come most often
    document = " ".join(word for rank, word in enumerate(words) for _ in range(1 + 400 // (rank + 1)))
    made = make_cloze([document], examples=50, seed=3)
    assert make_cloze([document], examples=50, seed=3) == made
    assert make_cloze([document], examples=50, seed=4) != made
    counts = {word: document.split().count(word) for word in words}
    for example in made:
        choices = example["choices"]
        assert isinstance(choices, list)
        assert len(set(choices)) == 4
        answer = choices[int(str(example["gold"]))]
        assert f"{example['query']} {answer}" in document
        others = [counts[c] for c in choices if c != answer]
        assert max(others) >= counts[answer] / 12
    assert {example["gold"] for example in made} == {0, 1, 2, 3}


@pytest.mark.parametrize("make", [make_cloze, make_next_sentences])
def test_too_little_text_is_said_so(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="too few"):
        make(["A few words only. And a few more."], 10, 0)


def test_documents_without_a_year_are_said_so() -> None:
    with pytest.raises(ValueError, match="name no year"):
        make_dates(["no year at all " * 20], 10, 0)


# --- files that are wrong -----------------------------------------------------------------------------------------

GOOD: dict[str, dict[str, Any]] = {
    "multiple_choice": {"query": "q", "choices": ["a", "b"], "gold": 1},
    "schema": {"context_options": ["a", "b"], "continuation": "c", "gold": 0},
    "language_modeling": {"context": "a", "continuation": "b"},
    "generation_task_with_answers": {"context": "a", "answer": "b"},
}


class Words:
    """A tokenizer of single characters, enough for prompts."""

    eos_token_id = None

    def __call__(self, text: Any, add_special_tokens: bool = True) -> dict[str, Any]:
        ids = [[ord(c) for c in t] for t in ([text] if isinstance(text, str) else text)]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}


def build(path: Path, rows: list[Any], kind: str = "multiple_choice", length: int = 50, **more: Any) -> Any:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    entry = {"label": "task", "dataset_uri": str(path), "icl_task_type": kind, "num_fewshot": [0], **more}
    return build_tasks(entry, Tokens(Words()), length)


@pytest.mark.parametrize("kind", GOOD)
def test_every_field_is_needed(tmp_path: Path, kind: str) -> None:
    assert build(tmp_path / "good.jsonl", [GOOD[kind]], kind)
    for field in GOOD[kind]:
        lacking = {key: value for key, value in GOOD[kind].items() if key != field}
        with pytest.raises(TaskError, match=rf"task\.jsonl:2: '{field}' is missing; a {kind} example needs"):
            build(tmp_path / "task.jsonl", [GOOD[kind], lacking], kind)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"query": "q", "choices": ["a", "b"], "gold": 2}], "'gold': got 2, expected an index from 0 to 1"),
        ([{"query": "q", "choices": ["a", "b"], "gold": -1}], "'gold': got -1"),
        ([{"query": "q", "choices": ["a", "b"], "gold": "1"}], "'gold': got '1'"),
        ([{"query": "q", "choices": ["a", "b"], "gold": True}], "'gold': got True"),
        ([{"query": "q", "choices": [], "gold": 0}], "'choices': got .., expected a list of texts, at least one"),
        ([{"query": 3, "choices": ["a"], "gold": 0}], "'query': got 3, expected text"),
        ([{"query": "q", "choices": ["a", ""], "gold": 0}], "'choices': got .*, at least one and none empty"),
        (['{"query": "q"'], "task.jsonl:1: not JSON"),
        (["", "", '{"query": "\\ud800"}'], "task.jsonl:3: not JSON: .*surrogates"),
        (["", "", "{}"], "task.jsonl:3: 'query' is missing"),
        (["[1]"], "got list, expected a JSON object"),
        ([], "holds no examples"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        build(tmp_path / "task.jsonl", rows)


@pytest.mark.parametrize("kind", ["language_modeling", "generation_task_with_answers"])
def test_rows_without_a_question_are_named(kind: str, tmp_path: Path) -> None:
    rows = [GOOD[kind], {**GOOD[kind], "context": " "}]
    with pytest.raises(TaskError, match="task/0-shot, example 2: there is no question"):
        build(tmp_path / "task.jsonl", rows, kind, continuation_delimiter=" ")
    assert build(tmp_path / "task.jsonl", rows, kind, prompt_string="Go on: ")
    assert build(tmp_path / "task.jsonl", rows, kind, num_fewshot=[1])


def test_answers_that_any_text_has_are_refused(tmp_path: Path) -> None:
    path, kind = tmp_path / "task.jsonl", "generation_task_with_answers"
    for row in ({"answer": ""}, {"answer": "the"}, {"answer": "a", "aliases": [""]}):
        with pytest.raises(TaskError, match=r"task\.jsonl:1: nothing of the answer"):
            build(path, [{"context": "a", **row}], kind)
    assert build(path, [{"context": "a", "answer": "the"}], kind, do_normalization=False)
    (task,) = build(path, [{"context": "a", "answer": "The", "aliases": ["", "b", "A"]}], kind)
    assert task.examples[0].answers == ("b",)
    for kind in ("language_modeling", "schema"):
        with pytest.raises(TaskError, match="'continuation': got '', expected text that is not empty"):
            build(path, [{**GOOD[kind], "continuation": ""}], kind)


def test_a_right_choice_that_stands_twice_is_counted(tmp_path: Path) -> None:
    rows = [{"query": "q", "choices": choices, "gold": 1} for choices in (["a", "a"], ["b", "a"], ["a", "b", "b"])]
    (task,) = build(tmp_path / "task.jsonl", rows)
    assert task.twice == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"early_stopping_criteria": [1]}, r"early_stopping_criteria: got \[1\], expected a list of texts"),
        ({"random_baseline": 7}, "random_baseline: got 7, expected a share from 0 to 1"),
    ],
)
def test_settings_of_no_meaning_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        build(tmp_path / "task.jsonl", [{"query": "q", "choices": ["a", "b"], "gold": 1}], **settings)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    rows = [json.dumps({"context": "a\u2028b\x85c", "continuation": c}, ensure_ascii=False) + "\r" for c in "xy"]
    (task,) = build(tmp_path / "task.jsonl", rows, "language_modeling")
    assert [example.question for example in task.examples] == ["a\u2028b\x85c x", "a\u2028b\x85c y"]


def test_settings_that_cannot_be_are_named(tmp_path: Path) -> None:
    for more, words in (
        ({"icl_task_type": "multiple_choices"}, "expected one of generation_task_with_answers"),
        ({"icl_task_type": "mine"}, "types of one's own .code_paths. cannot be evaluated"),
        ({"metric_names": ["InContextLearningLMAccuracy"]}, "for multiple_choice"),
        ({"num_fewshot": None}, "num_fewshot is missing"),
        ({"num_fewshot": [0, 0]}, "num_fewshot: got .*, expected a list of different whole numbers"),
        ({"num_fewshot": [-1]}, "num_fewshot: got "),
        ({"num_fewshot": 5}, "num_fewshot: got 5, expected a list"),
        ({"num_fewshot": [1]}, "task/1-shot: num_fewshot: 1 examples before each question are not there"),
        ({"has_categories": True}, "'category' is missing"),
        ({"max_seq_len": "long"}, "max_seq_len: got 'long', expected a whole number"),
        ({"prelimiter": "Q: ", "question_prelimiter": "Q: "}, "two names of one setting"),
        ({"early_stopping_criteria": ["Q?", "?"]}, "early_stopping_criteria: .* parts of a regular expression"),
    ):
        with pytest.raises(TaskError, match=words):
            build(tmp_path / "task.jsonl", [GOOD["multiple_choice"]], **more)
    with pytest.raises(TaskError, match="cannot be read"):
        build_tasks(
            {"label": "t", "dataset_uri": "no.jsonl", "icl_task_type": "schema", "num_fewshot": [0]}, Tokens(Words()), 9
        )


def test_generation_kwargs_fit_the_context_and_generate(tmp_path: Path) -> None:
    path, kind = tmp_path / "task.jsonl", "generation_task_with_answers"
    rows = [{"context": "x" * 40, "answer": "bb"}, {"context": "y", "answer": "bb"}]
    wanted = {"max_new_tokens": 30, "do_sample": True, "bad_words_ids": [[5], [6]], "use_cache": False}
    (task,) = build(path, rows, kind, generation_kwargs=wanted)
    prompts = [example.prompt for example in task.examples]
    assert [(len(p.tokens), p.max_new_tokens) for p in prompts] == [(20, 30), (len(task.examples[1].shown), 30)]
    assert task.truncated == 1
    assert json.loads(prompts[0].settings) == {"do_sample": True, "bad_words_ids": [[5], [6]]}
    assert len({prompt.key for prompt in prompts}) == 2
    for kwargs, words in (
        ({"max_new_tokens": 60}, "it asks for 60, the context 50: nothing is left to ask"),
        ({"max_new_tokens": 1.5}, "max_new_tokens: got 1.5, expected a whole number of at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"temprature": 1.0}, "temprature: no argument of transformers' generate .* did you mean temperature"),
        ({"num_return_sequences": 2}, "num_return_sequences: no argument .* can be set for a task"),
        ({"early_stopping": "soon"}, "generation_kwargs: .*early_stopping"),
        ([1], "generation_kwargs: got .1., expected arguments"),
    ):
        with pytest.raises(TaskError, match=words):
            build(path, rows, kind, generation_kwargs=kwargs)


def test_a_task_cannot_be_longer_than_the_model_reads(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "task.jsonl", [{"context": "x" * 80, "continuation": "yy"}])
    entry = {"label": "t", "dataset_uri": str(file), "icl_task_type": "language_modeling"}
    for own, length in ((40, 40), (60, 50), (None, 30)):
        settings = {**entry, "num_fewshot": [0], "max_seq_len": own}
        (task,) = build_tasks(settings, Tokens(Words()), 30, reads=50)
        (request,) = task.examples[0].requests
        assert len(request.context) + len(request.continuation) == length


def test_long_examples_lose_their_beginning_and_are_counted(tmp_path: Path) -> None:
    rows = [
        {"query": "x" * 10, "choices": ["aa", "b"], "gold": 0},
        {"query": "y" * 80, "choices": ["aa", "b"], "gold": 0},
    ]
    (task,) = build(tmp_path / "task.jsonl", rows, length=30)
    assert task.truncated == 1
    assert [len(r.context) for r in task.examples[1].requests] == [28, 29]
    with pytest.raises(TaskError, match="example 1: an answer of 60 tokens leaves no room in 30"):
        build(tmp_path / "task.jsonl", [{"query": "x", "choices": ["a" * 60, "b"], "gold": 0}], length=30)


def test_digests_tell_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    (first,) = build(path, [GOOD["multiple_choice"]])
    (again,) = build(path, [GOOD["multiple_choice"]])
    (other,) = build(path, [{**GOOD["multiple_choice"], "gold": 0}])
    (longer,) = build(path, [GOOD["multiple_choice"]], length=60)
    (elsewhere,) = build(tmp_path / "copy.jsonl", [GOOD["multiple_choice"]])
    (delimited,) = build(path, [GOOD["multiple_choice"]], continuation_delimiter=": ")
    (relabelled,) = build(path, [GOOD["multiple_choice"]], label="t", metric_names=[metrics.CHOICE_CALIBRATION])
    assert {t.digest for t in (again, longer, elsewhere, relabelled)} == {first.digest}
    assert len({first.digest, other.digest, delimited.digest}) == 3
    rows = [{**GOOD["multiple_choice"], "query": "q" * 40}] * 3
    of_shots = {shots: build(path, rows, num_fewshot=list(shots)) for shots in ((0,), (1, 0), (1,))}
    none, (one, none_too), (one_too,) = (of_shots[shots] for shots in of_shots)
    assert [t.digest for t in none] == [none_too.digest]
    assert one.digest == one_too.digest != none_too.digest
    assert one.truncated
    assert one.digest != build(path, rows, length=40, num_fewshot=[1])[0].digest


def test_an_example_by_itself_is_the_text_that_shards_would_have(tmp_path: Path) -> None:
    row = {"query": "the capital is", "choices": ["Paris", "Rome"], "gold": 0}
    schema = {"context_options": ["the dog because the dog"], "continuation": "was tired", "gold": 0}
    for kind, rows, more, text in (
        ("multiple_choice", [row], {}, "the capital is Paris"),
        ("multiple_choice", [row], {"continuation_delimiter": ":\n"}, "the capital is:\nParis"),
        ("multiple_choice", [{**row, "choices": [" Paris"]}], {}, "the capital is Paris"),
        ("schema", [schema], {}, "the dog because the dog was tired"),
    ):
        (task,) = build(tmp_path / "task.jsonl", rows, kind, **more)
        assert task.examples[0].question == text


@pytest.mark.parametrize("kind", ["language_modeling", "multiple_choice", "generation_task_with_answers"])
def test_the_question_may_have_a_name_of_its_own(tmp_path: Path, kind: str) -> None:
    row = {key: value for key, value in GOOD[kind].items() if key not in ("query", "context")}
    (task,) = build(tmp_path / "task.jsonl", [{**row, "ask": "who"}], kind, context_key="ask")
    assert task.examples[0].shown == "who"
    with pytest.raises(TaskError, match="'ask' is missing"):
        build(tmp_path / "task.jsonl", [GOOD[kind]], kind, context_key="ask")


# --- scores and their uncertainty ---------------------------------------------------------------------------------


def test_the_first_of_equal_choices_is_chosen() -> None:
    def scored(*logprobs: float) -> Scored:
        return Scored(logprobs, False, 0.5)

    assert metrics.chosen([scored(-2.0), scored(-1.0, -1.0), scored(-3.0)]) == 1
    assert metrics.chosen([scored(-1.0), scored(-1.0, -1.0)]) == 0
    assert metrics.chosen([scored(-1000.0), scored(-900.0)]) == 0  # both perplexities overflow, as in the reference


def test_standard_error_and_interval() -> None:
    outcomes = [1.0] * 30 + [0.0] * 10
    assert metrics.standard_error(outcomes) == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    low, high = metrics.interval(outcomes)
    assert (low, high) == pytest.approx((0.598, 0.858), abs=1e-3)  # Wilson's for 30 of 40
    assert all(f"{metrics.interval([0.0] * n)[0]:.1%}" == "0.0%" for n in range(1, 100))  # never -0.0 %
    assert all(metrics.interval([1.0] * n)[1] <= 1 for n in range(1, 100))
    low, high = metrics.interval([0.0] * 20)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.1611, abs=1e-4)
    low, high = metrics.interval([0.5, 1.5, 1.0, 2.0])
    assert (low + high) / 2 == pytest.approx(1.25)
