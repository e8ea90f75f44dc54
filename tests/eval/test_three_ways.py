"""The same questions three ways: LLM Foundry's in-context learning, the harness's `hf` model, and the core here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.backbone import Backbone
from eval.generation import generate
from eval.harness_chat import Asking
from eval.questions import Prompt
from eval.suite import gauntlet_scores, logged, run_tasks, subsets, tasks_of

from .twins import CONTEXT, Twins

LENGTH, BATCH = 96, 8
HARNESS = Path(__file__).resolve().parents[2] / "yamls" / "eval" / "harness"


@pytest.fixture(scope="module")
def entries(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every type of task, zero-shot and few-shot, of the tasks that the project generates."""
    folder = tmp_path_factory.mktemp("tasks")
    cloze = [json.loads(line) for line in (suite / "cloze.jsonl").read_text().splitlines()]
    texts, questions = folder / "lm.jsonl", folder / "questions.jsonl"
    with texts.open("w") as lm, questions.open("w") as asked:
        for index, row in enumerate(cloze[:12]):
            words = row["query"].split()
            kind = "even" if index % 2 else "odd"
            lm.write(json.dumps({"context": " ".join(words[:20]), "continuation": "the of", "category": kind}) + "\n")
            answer, other, *_ = (
                word for word in words[15:] if word.strip(".,;:").lower() not in ("a", "an", "the", "")
            )
            question = {"context": " ".join(words[:15]), "answer": answer, "aliases": [f"the {other}"]}
            asked.write(json.dumps(question) + "\n")
    choice = "InContextLearningMultipleChoiceAccuracy"
    return [
        {
            "label": "cloze",
            "dataset_uri": str(suite / "cloze.jsonl"),
            "icl_task_type": "multiple_choice",
            "num_fewshot": [0, 2],
            "continuation_delimiter": ": ",
            "metric_names": [choice, "InContextLearningMCExpectedCalibrationError"],
        },
        {
            "label": "next_sentence",
            "dataset_uri": str(suite / "next_sentence.jsonl"),
            "icl_task_type": "schema",
            "num_fewshot": [0, 1],
        },
        {
            "label": "words",
            "dataset_uri": str(texts),
            "icl_task_type": "language_modeling",
            "num_fewshot": [0, 1],
            "has_categories": True,
            "prompt_string": "Go on.\n",
            "metric_names": ["InContextLearningLMAccuracy", "InContextLearningLMExpectedCalibrationError"],
        },
        {
            "label": "questions",
            "dataset_uri": str(questions),
            "icl_task_type": "generation_task_with_answers",
            "num_fewshot": [0, 2],
            "question_prelimiter": "Q: ",
            "continuation_delimiter": "\nA: ",
            "early_stopping_criteria": ["\n", "\\."],
        },
    ]


GAUNTLET = {
    "weighting": "LOG_SAMPLE_SZ",
    "subtract_random_baseline": True,
    "rescale_accuracy": True,
    "categories": [
        {
            "name": "reading",
            "benchmarks": [
                {"name": "cloze", "num_fewshot": 0, "random_baseline": 0.25},
                {"name": "next_sentence", "num_fewshot": 1, "random_baseline": 0.25},
            ],
        },
        {"name": "words", "benchmarks": [{"name": "words", "num_fewshot": 0, "random_baseline": 0.0}]},
    ],
    "averages": {"all": ["reading", "words"]},
}


def test_llm_foundry_has_the_same_scores_and_averages(
    twins: Twins, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    from composer import Trainer
    from llmfoundry.callbacks import EvalGauntlet
    from llmfoundry.utils import builders

    evaluators, keys = builders.build_icl_evaluators(
        copy.deepcopy(entries), twins.tokenizer, LENGTH, BATCH, destination_dir=str(tmp_path)
    )
    sizes = {e.label: e.dataloader.num_samples for e in evaluators}
    averages = EvalGauntlet(**copy.deepcopy(GAUNTLET), logger_keys=keys, benchmark_sizes=sizes)
    trainer = Trainer(model=twins.composer, progress_bar=False)
    trainer.eval(eval_dataloader=evaluators)
    reference = {
        label: {name: float(metric.compute()) for name, metric in metrics.items()}
        for label, metrics in trainer.state.eval_metrics.items()
    }
    tasks = tasks_of(entries, twins.tokenizer, LENGTH, BATCH, tmp_path, None)
    backbone = Backbone(twins.composer, CONTEXT)
    judged = run_tasks(tasks, lambda: backbone, twins.tokenizer, CONTEXT, BATCH)
    assert {j.task.label for j in judged} == set(reference)
    assert len(judged) == 10
    for j in judged:
        for name, value in j.outcome.scores.items():
            assert value == pytest.approx(reference[j.task.label][name], abs=1e-6), f"{j.task.label} {name}"
    assert any(j.task.truncated for j in judged), "few-shot prompts are longer than the context here"
    expected = averages.eval_after_all(trainer.state, None)  # type: ignore[arg-type]
    ours = gauntlet_scores(copy.deepcopy(GAUNTLET), judged)
    assert ours == pytest.approx({name.rpartition("/")[2]: value for name, value in expected.items()}, abs=1e-6)
    assert set(ours) == {"reading", "words", "all"}


@pytest.mark.parametrize(("of_all", "own", "taken"), [(1, 2, [2, 4, 4]), (-1, 2, [4, 6, 6])])
def test_llm_foundry_takes_as_many_batches(
    of_all: int, own: int, taken: list[int], twins: Twins, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    from composer import Trainer
    from llmfoundry.utils import builders

    cloze, _, words, _ = ({**entry, "num_fewshot": [0], "batch_size": 8} for entry in entries)
    words["batch_size"] = 4
    evaluators, _ = builders.build_icl_evaluators(
        copy.deepcopy([cloze, words]),
        twins.tokenizer,
        LENGTH,
        BATCH,
        destination_dir=str(tmp_path),
        icl_subset_num_batches=own,
    )
    trainer = Trainer(model=twins.composer, progress_bar=False)
    trainer.eval(eval_dataloader=evaluators, subset_num_batches=of_all)
    reference = {
        f"metrics/{label}/{name}": float(metric.compute())
        for label, metrics in trainer.state.eval_metrics.items()
        for name, metric in metrics.items()
    }
    settings = {"eval_subset_num_batches": of_all, "icl_subset_num_batches": own}
    tasks = tasks_of([cloze, words], twins.tokenizer, LENGTH, BATCH, tmp_path, **subsets(settings, trains=False))
    assert [len(task.examples) for task in tasks] == taken
    judged = run_tasks(tasks, lambda: Backbone(twins.composer, CONTEXT), twins.tokenizer, CONTEXT, BATCH)
    assert logged(judged) == pytest.approx(reference, abs=1e-6)


def test_while_it_trains_a_tasks_own_number_of_batches_comes_first() -> None:
    for of_all, own, wanted in ((1, 2, 2), (1, -1, -1), (1, None, 1), (-1, 2, 2)):
        settings = {"eval_subset_num_batches": of_all, "icl_subset_num_batches": own}
        assert subsets(settings, trains=True) == {"subset_batches": wanted, "subset_of_category": of_all}


def test_the_harness_has_the_same_log_likelihoods(twins: Twins, suite: Path, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from eval.harness_lm import ScoringLM
    from eval.harness_results import evaluate
    from eval.harness_tasks import load_tasks

    for path in HARNESS.glob("*.yaml"):
        text = path.read_text().replace("shards/sotu/tasks", str(suite))
        (tmp_path / path.name).write_text(text)
    names = ["sotu_cloze", "sotu_next_sentence", "sotu_dates"]
    hf = HFLM(
        pretrained=twins.transformers, tokenizer=twins.tokenizer, batch_size=BATCH, max_length=LENGTH, device="cpu"
    )
    backbone = Backbone(twins.composer, CONTEXT)
    ours = ScoringLM(lambda: backbone, twins.tokenizer, LENGTH, BATCH)
    for shots in (0, 2):
        loaded = [load_tasks(names[: 3 if shots == 0 else 1], [tmp_path], shots) for _ in range(2)]
        (theirs, examples), (found, ours_examples) = evaluate(hf, loaded[0]), evaluate(ours, loaded[1])
        assert len(examples) == len(ours_examples) > 0
        for a, b in zip(examples, ours_examples, strict=True):
            assert (a["task"], a["index"], a["gold"]) == (b["task"], b["index"], b["gold"])
            assert b["logprobs"] == pytest.approx(a["logprobs"], abs=1e-4)
        for a, b in zip(theirs, found, strict=True):
            assert b["metrics"] == pytest.approx(a["metrics"], abs=1e-9)
            assert (a["label"], a["digest"], a["examples"]) == (b["label"], b["digest"], b["examples"])
            assert b["chance"] == 0.25
            assert b["low"] <= b["score"] <= b["high"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


@pytest.mark.parametrize(
    ("template", "asking", "shown"),
    [
        (CHATML, Asking(True), "<|im_start|>user\n"),
        (CHATML, Asking(True, "Be short.", False), "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n"),
        (NO_SYSTEM, Asking(True, "Be short."), "<|im_start|>user\n"),
        (CHATML, Asking(False, "Be short."), "Be short."),
    ],
)
def test_conversations_are_the_harness_s(
    twins: Twins, suite: Path, tmp_path: Path, template: str, asking: Asking, shown: str
) -> None:
    from lm_eval.models.huggingface import HFLM

    from eval.harness_lm import ScoringLM
    from eval.harness_results import evaluate
    from eval.harness_tasks import load_tasks, prompts

    text = (HARNESS / "sotu_cloze.yaml").read_text().replace("shards/sotu/tasks", str(suite))
    (tmp_path / "sotu_cloze.yaml").write_text(text)
    tokenizer = copy.deepcopy(twins.tokenizer)
    tokenizer.chat_template = template
    hf = HFLM(pretrained=twins.transformers, tokenizer=tokenizer, batch_size=BATCH, max_length=CONTEXT, device="cpu")
    backbone = Backbone(twins.composer, CONTEXT)
    ours = ScoringLM(lambda: backbone, tokenizer, CONTEXT, BATCH, chats=asking.apply_chat_template)
    loaded = [load_tasks(["sotu_cloze"], [tmp_path], 2) for _ in range(3)]
    _, theirs = evaluate(hf, loaded[0], 6, asking)
    (entry,), found = evaluate(ours, loaded[1], 6, asking)
    assert entry["label"] == "sotu_cloze/2-shot" + ("/chat" if asking.apply_chat_template else "")
    for a, b in zip(theirs, found, strict=True):
        assert a["prompt"] == b["prompt"]
        assert b["logprobs"] == pytest.approx(a["logprobs"], abs=1e-4)
    assert found[0]["prompt"].startswith(shown)
    turns = found[0]["prompt"].count("<|im_start|>assistant")
    assert turns == (3 if asking.fewshot_as_multiturn else 1) * asking.apply_chat_template
    ((_, prompt, _),) = prompts(loaded[2], asking, tokenizer)
    assert prompt == found[0]["prompt"]


def test_an_answer_ends_where_its_turn_does() -> None:
    from lm_eval.api.instance import Instance

    from eval.harness_lm import ScoringLM

    model, tokenizer = a_chain("<|im_end|>")
    tokenizer.chat_template = CHATML
    for chats, expected in ((True, "A4"), (False, "A499999")):
        lm = ScoringLM(lambda: Backbone(model, 64), tokenizer, 64, 2, chats=chats)
        asked = Instance("generate_until", {}, ("Q", {"until": [], "max_gen_toks": 8}), 0, metadata=("t", 0, 1))
        assert lm.generate_until([asked]) == [expected]


def test_rolling_and_generated_text_are_the_harness_s(twins: Twins) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from eval.harness_lm import ScoringLM

    hf = HFLM(pretrained=twins.transformers, tokenizer=twins.tokenizer, batch_size=2, max_length=40, device="cpu")
    backbone = Backbone(twins.composer, CONTEXT)
    ours = ScoringLM(lambda: backbone, twins.tokenizer, 40, 2)
    long = "We hold that the people of the United States must work together for peace. " * 8
    rolling = [
        Instance("loglikelihood_rolling", {}, (text,), i, metadata=("rolling", i, 1))
        for i, text in enumerate((long, "Peace and work."))
    ]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(hf.loglikelihood_rolling(rolling), abs=1e-3)
    settings = {"until": ["."], "max_gen_toks": 8, "do_sample": False}
    asked = [
        Instance("generate_until", {}, (text, dict(settings)), i, metadata=("text", i, 1))
        for i, text in enumerate(("The Congress", "We must work for", long))
    ]
    assert ours.generate_until(asked) == hf.generate_until(asked)
    assert ours.truncated["text"] == 1


def a_chain(end: str = "<|end|>") -> tuple[Any, Any]:
    """A model that writes A, 4, end after Q, and then 9 or 8 for ever; and its tokenizer of single characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<|eos|>", end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    table = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    table.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|eos|>", "pad_token": "<|eos|>", "additional_special_tokens": [end]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=table, **special)
    size = 264
    sizes = {"hidden_size": size, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=size, eos_token_id=0, bos_token_id=None, pad_token_id=0, **sizes)
    model = LlamaForCausalLM(config).eval()
    follows = [("Q", "A", 1), ("A", "4", 1), ("4", end, 1), (end, "9", 1), ("9", "9", 1), ("9", "8", 0.9)]
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(torch.randn(size, size) * 0.01)
        for before, after, weight in follows:
            i, j = (tokenizer.convert_tokens_to_ids(word) for word in (before, after))
            model.lm_head.weight[j, i] = weight
    return model, tokenizer


def test_generated_text_ends_and_is_chosen_as_the_harness_s() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from eval.harness_lm import ScoringLM

    model, tokenizer = a_chain()
    hf = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=64)
    backbone = Backbone(model, 64)
    ours = ScoringLM(lambda: backbone, tokenizer, 64, 2)

    def written(lm: Any, text: str, settings: dict[str, Any]) -> str:
        asked = {"max_gen_toks": 8, "do_sample": False, **copy.deepcopy(settings)}
        return lm.generate_until([Instance("generate_until", {}, (text, asked), 0, metadata=("t", 0, 1))])[0]

    for text, settings, expected in (
        ("Q", {"until": ["<|end|>"]}, "A4"),  # a special token, which is no text
        ("Q", {"until": ["\n", "4<|end|>9"]}, "A"),
        ("Q", {"until": ["\n"]}, "A499999"),
        ("9", {"until": ["\n"], "repetition_penalty": 5.0}, None),
        ("9", {"until": ["\n"], "no_repeat_ngram_size": 1}, None),
    ):
        found = written(ours, text, settings)
        if (
            expected != "A"
        ):  # the harness looks for one stop string within few tokens, and cuts without the special ones
            assert found == written(hf, text, settings)
        assert expected in (found, None)
        assert found != "99999999"
    model.generation_config.eos_token_id = [0, 1]
    assert written(ours, "Q", {"until": ["\n"]}) == written(hf, "Q", {"until": ["\n"]}) == "A4"
    prompt = Prompt(tuple(tokenizer("Q")["input_ids"]), 8, ("<|end|>",))
    assert generate(lambda: backbone, [prompt], tokenizer, 1) == ["A499999"]  # as LLM Foundry has it
