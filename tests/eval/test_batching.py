from __future__ import annotations

import random

import pytest

from eval.batching import WASTE, common_prefix, families_of, passes, plan
from eval.cache import AnswerCache, missing
from eval.questions import Request, Scored, ScoringError, refuse_unusable


def choices(context: tuple[int, ...], *answers: tuple[int, ...]) -> list[Request]:
    return [Request(context, answer) for answer in answers]


def test_common_prefix() -> None:
    assert common_prefix((1, 2, 3, 4), (1, 2, 9, 4)) == 2
    assert common_prefix((1, 2), (1, 2, 3)) == 2
    assert common_prefix((), (1,)) == 0
    chosen = random.Random(0)
    for _ in range(200):
        a, b = ([chosen.randrange(2) for _ in range(chosen.randrange(12))] for _ in range(2))
        expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == expected


def test_choices_of_a_question_are_one_family_and_questions_are_not() -> None:
    first, second = tuple(range(100, 130)), tuple(range(200, 220))
    requests = choices(first, (1, 2), (3, 4, 5), (6,)) + choices(second, (1, 2), (3,))
    families = families_of(requests, rows=8)
    assert sorted((f.shared, f.members) for f in families) == [(20, (3, 4)), (30, (1, 0, 2))]
    assert sorted(f.rest for f in families) == [1, 2]


def test_few_shot_examples_that_all_questions_share_are_one_family() -> None:
    shots = tuple(range(300))
    requests = [Request((*shots, 1000 + q, 2000 + q), (a,)) for q in range(6) for a in (1, 2)]
    (family,) = families_of(requests, rows=64)
    assert family.shared == 300


def test_every_request_is_in_one_batch_of_bounded_size() -> None:
    chosen = random.Random(1)
    requests = []
    for _ in range(60):
        context = tuple(chosen.randrange(50) for _ in range(chosen.randrange(1, 90)))
        for _ in range(chosen.randrange(1, 5)):
            requests.append(Request(context, tuple(chosen.randrange(50) for _ in range(chosen.randrange(1, 12)))))
    requests = list(dict.fromkeys(requests))
    batches = plan(requests, rows=8, max_len=100)
    members = [m for batch in batches for family in batch for m in family.members]
    assert sorted(members) == list(range(len(requests)))
    for batch in batches:
        assert sum(len(f.members) for f in batch) <= 8
        assert max(f.shared for f in batch) + max(f.rest for f in batch) <= 100
        for family in batch:
            starts = {requests[m].inputs[: family.shared] for m in family.members}
            assert len(starts) == 1
    assert plan(requests, rows=8, max_len=100) == batches


def test_passes_read_every_request_once_and_pad_little() -> None:
    chosen = random.Random(2)
    requests = []
    for _ in range(200):
        context = tuple(chosen.randrange(9000) for _ in range(chosen.randrange(5, 60)))
        requests += choices(context, *((a, *range(chosen.randrange(1, 30))) for a in range(chosen.randrange(1, 4))))
    for batch in plan(requests, rows=128, max_len=200):
        whole, branches = passes(batch, requests, rows=32, enough=64)
        rows = [row for group in (*whole, *branches) for row in group]
        assert len(set(rows)) == len(rows)
        assert [m for _, m in (row for group in whole for row in group)] == sorted(
            (family.members[0] for family in batch), key=lambda m: -len(requests[m].inputs)
        )
        unread = {m for family in batch for m in family.members} - {m for _, m in rows}
        assert all(len(requests[m].inputs) == family.shared for family in batch for m in family.members if m in unread)
        for group in whole:
            lengths = [len(requests[m].inputs) for _, m in group]
            assert len(group) <= 32
            assert len(group) * max(lengths) <= max(WASTE * sum(lengths), 64 + max(lengths))


def test_equal_requests_are_one_whoever_asks() -> None:
    assert Request((1,), (2,), "a") == Request((1,), (2,), "b")
    assert Request((1,), (2,)).key != Request((1, 2), ()).key


def test_requests_that_nobody_can_answer_are_named() -> None:
    for request, words in (
        (Request((1,), (), "task, example 3"), "task, example 3: the answer has no tokens"),
        (Request((), (1,), "task, example 4"), "task, example 4: nothing comes before"),
        (Request((1,) * 9, (1,) * 3, "task, example 5"), "task, example 5: 11 tokens are to be read"),
        (Request((1,), (1,) * 30, "task, example 6"), "the answer alone has 30 tokens"),
    ):
        with pytest.raises(ScoringError, match=words):
            refuse_unusable([request], max_len=10)


def test_answers_survive_a_kill(tmp_path) -> None:  # type: ignore[no-untyped-def]
    answer = Scored((-0.1234567890123, -2.5), True, 0.75)
    AnswerCache(tmp_path, "m" * 64, "t" * 64, rank=0).add({"one": answer})
    AnswerCache(tmp_path, "m" * 64, "t" * 64, rank=1).add({"two": "a text\nof two lines"})
    (torn,) = tmp_path.rglob("*.1.txt")
    whole = torn.read_text()
    damaged = whole.replace("two", "ten").replace("text", "test")
    torn.write_text(whole + damaged + "\n" + whole[:30])
    cache = AnswerCache(tmp_path, "m" * 64, "t" * 64)
    assert cache.read() == {"one": answer, "two": "a text\nof two lines"}
    assert missing(cache.read(), [["one"], ["two", "three"], ["two"]]) == [1]
    assert AnswerCache(tmp_path, "m" * 64, "u" * 64).read() == AnswerCache(tmp_path, "n" * 64, "t" * 64).read() == {}
    blocked = AnswerCache(tmp_path, "m" * 64, "v" * 64)
    (blocked.folder / f"{blocked.name}.0.txt").mkdir()
    assert blocked.read() == {}
    with pytest.raises(ScoringError, match=r"answers cannot be kept in .*Is a directory"):
        blocked.add({"one": answer})


def test_the_longest_prefix_and_the_longest_rest_of_a_batch_fit_the_model_together() -> None:
    long, short = tuple(range(80)), tuple(range(200, 205))
    requests = choices(long, (1,), (2,)) + choices(short, tuple(range(300, 360)), (400,))
    assert len(plan(requests, rows=8, max_len=100)) == 2
    assert len(plan(requests, rows=8, max_len=200)) == 1


def test_a_family_is_no_larger_than_a_batch() -> None:
    requests = choices(tuple(range(20)), *((answer,) for answer in range(10)))
    assert sorted(len(family.members) for family in families_of(requests, rows=4)) == [2, 4, 4]
