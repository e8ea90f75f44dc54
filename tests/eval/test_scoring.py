"""The core against one forward pass a request, without a cache, prefixes or batches."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eval.backbone import Backbone
from eval.cache import AnswerCache
from eval.generation import generate
from eval.harness_results import _seeded
from eval.questions import Prompt, Request, ScoringError
from eval.samples import continued
from eval.scoring import score
from eval.vocabulary import BLOCK, answers_at

from ..tiny import RWKV, build
from .twins import CONTEXT, Twins

TOLERANCE = 1e-4  # of a log-likelihood, in float32


def requests_like_a_task(vocabulary: int = 500) -> list[Request]:
    """Questions with several answers, some of which begin alike, some twice, of all lengths."""
    chosen = random.Random(5)
    made = []
    for question in range(14):
        context = tuple(chosen.randrange(vocabulary) for _ in range(chosen.randrange(1, 60)))
        start = tuple(chosen.randrange(vocabulary) for _ in range(chosen.randrange(0, 4)))
        for _ in range(chosen.randrange(1, 5)):
            answer = start + tuple(chosen.randrange(vocabulary) for _ in range(chosen.randrange(1, 7)))
            made.append(Request(context, answer, f"question {question}"))
    return made + made[:5]


def one_by_one(causal: Any, request: Request) -> tuple[list[float], bool, float]:
    with torch.no_grad():
        logits = causal(input_ids=torch.tensor([request.inputs])).logits[0].float()
    logprobs = logits[-len(request.continuation) :].log_softmax(-1)
    targets = torch.tensor(request.continuation)
    wanted = logprobs.gather(1, targets[:, None])[:, 0].tolist()
    return wanted, bool((logprobs.argmax(1) == targets).all()), float(logprobs.max(1).values.min().exp())


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_key_value_heads=2, max_position_embeddings=128, **sizes))


def with_a_sliding_window() -> Any:
    """What its layers keep is not every token, so that nothing can be shared."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(vocab_size=512, num_key_value_heads=2, sliding_window=16, **sizes))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("family", ["composer", "mpt", "llama", "sliding", "rwkv"])
def test_answers_are_those_of_one_pass_a_request(twins: Twins, family: str, batch_size: int) -> None:
    makers = {"llama": llama, "sliding": with_a_sliding_window, "rwkv": lambda: build(RWKV)}
    model = makers[family]() if family in makers else {"composer": twins.composer, "mpt": twins.transformers}[family]
    backbone = Backbone(model, 128)
    requests = requests_like_a_task()
    answers = score(lambda: backbone, requests, batch_size, 128)
    for request, answer in zip(requests, answers, strict=True):
        wanted, greedy, confidence = one_by_one(backbone.causal, request)
        assert answer.logprobs == pytest.approx(wanted, abs=TOLERANCE)
        assert answer.greedy == greedy
        assert answer.confidence == pytest.approx(confidence, abs=TOLERANCE)
    assert backbone.shares == (family not in ("sliding", "rwkv"))


def test_long_answers_are_as_exact_as_short_ones(twins: Twins) -> None:
    """Against float64: a sum in float32, as the harness's `hf` model takes it, is off by up to 1e-4 at 1,000 nats."""
    chosen = random.Random(6)
    requests = [Request((1, i), tuple(chosen.randrange(500) for _ in range(220))) for i in range(6)]
    backbone, exact = Backbone(twins.composer, CONTEXT), copy.deepcopy(twins.composer.model).double()
    for request, answer in zip(requests, score(lambda: backbone, requests, 4, CONTEXT), strict=True):
        with torch.no_grad():
            logprobs = exact(input_ids=torch.tensor([request.inputs])).logits[0, -220:].log_softmax(-1)
        total = float(logprobs.gather(1, torch.tensor(request.continuation)[:, None]).sum())
        assert total < -1000
        assert answer.total == pytest.approx(total, abs=TOLERANCE)


def test_blocks_of_words_and_rows_are_joined_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against log_softmax in float64; of equal logits the first is the likeliest, as argmax has it."""
    torch.manual_seed(4)
    words = torch.randint(-2, 3, (50, 3)).float()  # many are equal

    def logits_of(hidden: torch.Tensor, part: slice) -> torch.Tensor:
        return hidden @ words[part].T

    head = SimpleNamespace(most=int, divisible=True, vocabulary=50, logits=logits_of)
    monkeypatch.setitem(BLOCK, "cpu", (7 * 8, 8))  # blocks of 8 rows and 7 words
    vectors = torch.randint(-3, 4, (21, 3)).float()
    which, tokens = torch.randint(21, (300,)), torch.randint(50, (300,))
    logits = (vectors @ words.T).double()
    tokens[::3] = logits.argmax(1)[which[::3]]
    found = answers_at(head, vectors, which, tokens)  # type: ignore[arg-type]
    expected = logits.log_softmax(1)
    assert found.logprobs == pytest.approx(expected[which, tokens].tolist(), abs=1e-6)
    assert found.most == pytest.approx(expected.max(1).values[which].tolist(), abs=1e-6)
    assert found.greedy == (logits.argmax(1)[which] == tokens).tolist()
    assert sum(found.greedy) >= 100


def test_all_processes_of_a_sharded_model_have_as_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    words, vectors = torch.randn(50, 3), torch.randn(11, 3)
    which, tokens = torch.randint(11, (40,)), torch.randint(50, (40,))
    called: list[int] = []

    def logits_of(hidden: torch.Tensor, _: None) -> torch.Tensor:
        called.append(len(hidden))
        return hidden @ words.T

    head = SimpleNamespace(most=lambda _: 27, divisible=False, vocabulary=50, logits=logits_of)
    monkeypatch.setitem(BLOCK, "cpu", (2**20, 8))
    found = answers_at(head, vectors, which, tokens)  # type: ignore[arg-type]
    assert called == [8, 3, 0, 0]  # another process has 27 rows
    expected = (vectors @ words.T).double().log_softmax(1)
    assert found.logprobs == pytest.approx(expected[which, tokens].tolist(), abs=1e-6)


def test_learned_positions_and_the_plain_kernel(twins: Twins) -> None:
    from recipes import parts

    torch.manual_seed(3)
    tuned = {"attn_temperature_tuning": {"floor_scale": 8, "attn_scale": 0.5}}
    for attention, learned, more in (
        ("flash", True, {}),
        ("torch", True, {}),
        ("torch", False, {}),
        ("flash", False, tuned),  # LLM Foundry counts positions from the first new token
        ("torch", False, {"sliding_window_size": 16}),
    ):
        section = {
            "name": "mpt_causal_lm",
            "d_model": 32,
            "n_heads": 2,
            "n_layers": 2,
            "vocab_size": 512,
            "max_seq_len": 96,
            "learned_pos_emb": learned,
            "attn_config": {"attn_impl": attention, "alibi": not learned, **more},
        }
        model = parts.build_model(section, twins.tokenizer, None, None)
        backbone = Backbone(model, 96)
        requests = requests_like_a_task()
        for request, answer in zip(requests, score(lambda b=backbone: b, requests, 16, 96), strict=True):
            assert answer.logprobs == pytest.approx(one_by_one(backbone.causal, request)[0], abs=TOLERANCE)


def longrope() -> Any:
    """Whose angles are others for all rows of a pass as soon as one has more than 24 tokens."""
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    lengths = {"max_position_embeddings": 128, "original_max_position_embeddings": 24}
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Phi3Config(vocab_size=512, num_key_value_heads=2, rope_scaling=scaling, **sizes, **lengths, **ends)
    model = Phi3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # so that where a token stands is of weight
    return model


def test_a_long_row_does_not_change_how_others_are_turned(twins: Twins) -> None:
    backbone = Backbone(longrope(), 128)
    requests = requests_like_a_task()
    assert {len(request.inputs) > 24 for request in requests} == {True, False}
    for request, answer in zip(requests, score(lambda: backbone, requests, 16, 128), strict=True):
        assert answer.logprobs == pytest.approx(one_by_one(backbone.causal, request)[0], abs=TOLERANCE)
    prompts = [Prompt(tuple(range(5, 5 + length)), 4) for length in (4, 12, 40)]
    alone = [generate(lambda: backbone, [prompt], twins.tokenizer, 1)[0] for prompt in prompts]
    assert generate(lambda: backbone, prompts, twins.tokenizer, 3) == alone


def test_lengths_at_which_answers_depend_on_one_another_are_refused() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = LlamaConfig(vocab_size=64, rope_scaling=scaling, max_position_embeddings=24, **sizes)
    model = LlamaForCausalLM(config)
    assert Backbone(model, 24).max_len == 24
    with pytest.raises(ScoringError, match="max_seq_len: got 25; with dynamic RoPE, answers beyond 24 tokens depend"):
        Backbone(model, 25)


def test_samples_end_where_the_text_ends(twins: Twins) -> None:
    backbone = Backbone(copy.deepcopy(twins.composer), CONTEXT)
    wanted = {"prompts": ["The Congress"], "max_new_tokens": 8, "temperature": 0}
    (whole,) = continued(backbone, twins.tokenizer, wanted)
    asked: dict[str, Any] = {}
    generated = backbone.causal.generate
    backbone.causal.generate = lambda **options: asked.update(options) or generated(**options)
    first = twins.tokenizer(whole["text"])["input_ids"][0]
    assert backbone.causal.generation_config.eos_token_id is None
    assert continued(backbone, twins.tokenizer, wanted) == [whole]
    assert asked["eos_token_id"] == [twins.tokenizer.eos_token_id]
    backbone.causal.generation_config.eos_token_id = [first]
    (short,) = continued(backbone, twins.tokenizer, wanted)
    assert len(short["text"]) < len(whole["text"])


def test_a_killed_evaluation_goes_on_and_a_repeated_one_builds_no_model(twins: Twins, tmp_path: Path) -> None:
    backbone, requests = Backbone(twins.composer, CONTEXT), requests_like_a_task()
    whole = score(lambda: backbone, requests, 2, CONTEXT)
    cache = AnswerCache(tmp_path, "model", "task")

    class Killed(Exception):
        pass

    done: list[int] = []

    def kill_after_two(count: int) -> None:
        done.append(count)
        if len(done) == 4:  # the first call says what was known before
            raise Killed

    with pytest.raises(Killed):
        score(lambda: backbone, requests, 2, CONTEXT, cache, kill_after_two)
    known = len(cache.read())
    assert 0 < known < len(set(requests))
    assert score(lambda: backbone, requests, 2, CONTEXT, cache) == whole
    assert len(cache.read()) == len(set(requests))

    def no_model() -> Backbone:
        raise AssertionError("everything is known")

    assert score(no_model, requests, 2, CONTEXT, cache) == whole


def test_nan_is_an_error_that_names_the_example(twins: Twins) -> None:
    broken = copy.deepcopy(twins.transformers)
    with torch.no_grad():
        broken.transformer.norm_f.weight[0] = float("nan")
    backbone = Backbone(broken, CONTEXT)
    with pytest.raises(ScoringError, match=r"question \d+: the model's logits are not finite"):
        score(lambda: backbone, requests_like_a_task(), 8, CONTEXT)


def test_a_batch_that_memory_has_no_room_for_is_an_error_in_words(
    twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, requests = Backbone(twins.composer, CONTEXT), requests_like_a_task()
    run, runs = backbone.run, []

    def run_once(work: Any) -> Any:
        runs.append(work)
        if len(runs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(work)

    monkeypatch.setattr(backbone, "run", run_once)
    cache = AnswerCache(tmp_path, "model", "task")
    with pytest.raises(ScoringError, match=r"no room for a batch of \d+: set a smaller device_eval_batch_size"):
        score(lambda: backbone, requests, 2, CONTEXT, cache)
    assert len(runs) == 2
    assert cache.read()  # what was computed before
    monkeypatch.setattr(Backbone, "sharded", True)  # whose other processes wait for this one: a run must end
    with pytest.raises(torch.OutOfMemoryError):
        score(lambda: backbone, requests, 2, CONTEXT, cache)


def test_our_models_generate_with_what_they_have_read(twins: Twins) -> None:
    widths: list[int] = []
    backbone = Backbone(twins.composer, CONTEXT)
    handle = backbone.body.register_forward_pre_hook(
        lambda _, __, arguments: widths.append(arguments["input_ids"].shape[1]), with_kwargs=True
    )
    prompts = [Prompt(tuple(twins.tokenizer(text)["input_ids"]), 8) for text in ("The Congress", "Peace among the")]
    kept = generate(lambda: backbone, prompts, twins.tokenizer, 2)
    assert widths.count(1) == 7
    widths.clear()
    backbone._goes_on = False
    assert kept == generate(lambda: backbone, prompts, twins.tokenizer, 2)
    assert widths.count(1) == 0
    handle.remove()


def test_random_numbers_are_kept_of_this_process_gpu_alone(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Of a machine of eight torch would keep those of all, and warn in every process."""
    states = {3: torch.zeros(8, dtype=torch.uint8)}
    backbone = Backbone(twins.composer, CONTEXT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    prompts = [Prompt(tuple(twins.tokenizer("The Congress")["input_ids"]), 2)]
    generate(lambda: backbone, prompts, twins.tokenizer, 1)
    with _seeded():
        pass
    assert list(states) == [3]
    assert not [w for w in recwarn if "CUDA" in str(w.message)]


def test_a_prompt_without_tokens_is_named(twins: Twins) -> None:
    with pytest.raises(ScoringError, match="task, example 2: the question has no tokens"):
        generate(lambda: None, [Prompt((1,), 2), Prompt((), 2, name="task, example 2")], twins.tokenizer, 2)  # type: ignore[arg-type,return-value]


def test_generated_text_is_that_of_transformers(twins: Twins) -> None:
    texts = ["The Congress", "We must all work together for the", "Peace"]
    ids = [tuple(twins.tokenizer(text)["input_ids"]) for text in texts]
    prompts = [Prompt(i, 8) for i in (*ids, ids[0])]
    backbone = Backbone(twins.transformers, CONTEXT)
    written = generate(lambda: backbone, prompts, twins.tokenizer, 2)
    assert written[3] == written[0]
    for prompt, text in zip(prompts, written, strict=True):
        out = twins.transformers.generate(torch.tensor([prompt.tokens]), max_new_tokens=8, do_sample=False)
        alone = twins.tokenizer.decode(out[0, len(prompt.tokens) :], skip_special_tokens=True)
        assert text.strip() == alone.strip()
