"""Instruction data: the bytes that LLM Foundry's converter writes, and what its loader makes of them."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_prep.conversations import NOT_VARIABLES, ConversationTokenizer, Turn, count_tokens, truncated
from data_prep.errors import PrepError
from data_prep.finetune import main
from data_prep.holdout import is_held_out
from data_prep.instruction_forms import BadExample
from data_prep.mds import read_index, read_samples
from tests.conftest import Command
from tests.data_prep.conftest import tree

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
COMMAND = """
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *sorted({"torch", "sklearn", "pandas"} & sys.modules.keys())))
runpy.run_module("data_prep.finetune", run_name="__main__")
"""
SCRIPT = Path(__file__).with_name("foundry_finetuning.py")


def chat(*contents: str, system: str = "") -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


@pytest.fixture(scope="module")
def chats(texts: list[str]) -> list[dict[str, Any]]:
    rows = [chat(*(text[:120] for text in texts[n : n + 2 + 2 * (n % 3)])) for n in range(0, 120, 4)]
    return [*rows, chat("Héllo 😀", "Yes.", "<|endoftext|>?", "No.", system="Be brief.")]


@pytest.fixture(scope="module")
def pairs(texts: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": a[:150], "response": b[:80]} for a, b in zip(texts[::2], texts[1::2], strict=True)]


@pytest.fixture(scope="module")
def with_template(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """The tokenizer with a chat template of its own."""
    folder = Path(shutil.copytree(tokenizer, tmp_path_factory.mktemp("template") / "tokenizer"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return folder


@pytest.fixture
def finetune(tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command in this process, which has imported transformers already."""

    def run(*words: str | Path) -> Any:
        capsys.readouterr()
        status = main([str(word) for word in ("--tokenizer", tokenizer, "--seq-len", "400", *words)])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, status, said.out, said.err)

    return run


def turns_in(folder: Path) -> list[list[dict[str, list[int]]]]:
    return [json.loads(sample["turns"]) for entry in read_index(folder) for sample in read_samples(entry)]


def test_same_bytes_as_llmfoundry_and_read_by_its_loader(
    chats: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    tokenizer: Path,
    with_template: Path,
    jsonl: Callable[..., Path],
    finetune: Callable[..., Any],
    run_command: Command,
    tmp_path: Path,
) -> None:
    jobs = []
    for name, rows, used in (
        ("chats", chats, tokenizer),
        ("template", chats, with_template),
        ("pairs", pairs, with_template),
    ):
        source = jsonl(rows, f"{name}.jsonl")
        words = ("--out", tmp_path / "ours" / name, "--tokenizer", used, "--seq-len", "4000")
        result = finetune(source, *words) if jobs else run_command("python", "-c", COMMAND, source, *words)
        assert (result.returncode, result.stderr) == (0, "")
        if not jobs:
            assert result.stdout.endswith("\nimported:\n")  # transformers takes a gigabyte and half a minute with them
        jobs.append({"name": name, "source": str(source), "tokenizer": str(used), "root": str(tmp_path)})
    instructions = tmp_path / "jobs.json"
    instructions.write_text(json.dumps(jobs))
    result = run_command("python", SCRIPT, instructions, env={"HF_DATASETS_CACHE": str(tmp_path / "cache")})
    assert result.returncode == 0, result.stderr
    batches = json.loads(result.stdout.splitlines()[-1])
    for job in jobs:
        name = str(job["name"])
        ours = tree(tmp_path / "ours" / name / "train")
        manifest = json.loads(ours.pop("manifest.json"))
        assert manifest["conversations"] == (0 if name == "pairs" else manifest["documents"])
        assert ours == tree(tmp_path / "theirs" / name / "train"), name
        loaded = AutoTokenizer.from_pretrained(job["tokenizer"])
        for ids, labels, turns in zip(*batches[name], turns_in(tmp_path / "ours" / name / "train"), strict=True):
            stream = [token for turn in turns for token in (*turn["input_ids"], *turn["labels"])]
            learned = [
                token
                for turn in turns
                for token in (*(-100 for _ in turn["input_ids"]), *turn["labels"])  # the loss is on answers alone
            ]
            if stream[-1] != loaded.eos_token_id:  # the loader ends a sample with EOS
                stream, learned = [*stream, loaded.eos_token_id], [*learned, loaded.eos_token_id]
            assert ids == stream
            assert labels == learned


def test_what_the_samples_would_teach_is_told(
    chats: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    with_template: Path,
    jsonl: Callable[..., Path],
    finetune: Callable[..., Any],
    tmp_path: Path,
) -> None:
    mixed = finetune(jsonl([*chats[:3], pairs[0]]), "--out", tmp_path / "mixed", "--holdout", "0.5").stdout
    assert "note: of the rows 3 (messages) went through the chat template, 1 (prompt and response) not" in mixed
    assert "ends an answer with '<|im_end|>\\n', none of which is a token" in mixed
    assert "data_prep.chat_tokenizer" in mixed
    alone = finetune(jsonl(pairs[:3]), "--out", tmp_path / "pairs")
    assert (alone.returncode, "note" in alone.stdout) == (0, False)


def test_turns_are_text_and_answers(with_template: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(with_template)
    turns = ConversationTokenizer(tokenizer, {}).turns(chat("a", "b", "c", "d", system="s"))
    decoded = [(tokenizer.decode(turn.input_ids), tokenizer.decode(turn.labels)) for turn in turns]
    assert decoded == [
        ("<|endoftext|>[system] s\n[user] a\n[assistant] ", "b\n"),
        ("[user] c\n[assistant] ", "d\n"),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "expected prompt and response, messages, conversations, or instruction and output; its"),
        ({"prompt": "x", "response": ""}, "'response' is empty, expected text"),
        ({"prompt": 3, "response": "x"}, "'prompt' is int, expected text"),
        ({"messages": []}, "not a list of two messages or more"),
        (chat("a", "b", "c"), "the last message is of role 'user'; expected assistant"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "message 1 is not an object with"),
        ({"messages": [{"role": "human", "content": "x"}] * 2}, "message 1 has role 'human'; expected system, user"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "messages 1 and 2 are both of role 'user'"),
        ({"messages": [{"role": "user", "content": 1}] * 2}, "the content of message 1 is int, expected text"),
    ],
)
def test_bad_rows(row: dict[str, Any], said: str, tokenizer: Path) -> None:
    with pytest.raises(BadExample) as caught:
        ConversationTokenizer(AutoTokenizer.from_pretrained(tokenizer), {}).turns(row)
    assert said in str(caught.value)


def test_templates_that_refuse_or_rewrite(tokenizer: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    for template, said in (
        ("{{ raise_exception('only one turn') }}", "the chat template refuses it: only one turn"),
        ("{{ messages | length }}", "does not write message 2 behind the ones before it"),
    ):
        loaded.chat_template = template
        with pytest.raises(BadExample) as caught:
            ConversationTokenizer(loaded, {}).turns(chat("a", "b"))
        assert said in str(caught.value)
    loaded.chat_template = "{{ date }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    turns = ConversationTokenizer(loaded, {"date": "today"}).turns(chat("a", "b"))
    assert loaded.decode(turns[0].input_ids) == "todaya"


def test_what_decides_the_bytes_is_compared(
    chats: list[dict[str, Any]],
    with_template: Path,
    jsonl: Callable[..., Path],
    finetune: Callable[..., Any],
    tmp_path: Path,
) -> None:
    source = jsonl(chats)
    folder = Path(shutil.copytree(with_template, tmp_path / "tokenizer"))
    words = (source, "--out", tmp_path / "out", "--tokenizer", folder, "--seq-len", "4000")
    assert finetune(*words).returncode == 0
    assert "already done" in finetune(*words).stdout
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    changed = finetune(*words)
    assert changed.returncode == 1
    assert "--tokenizer: chat_template.jinja beside it changed" in changed.stderr
    other = Path(shutil.copy(folder / "tokenizer.json", folder / "other.json"))
    refused = finetune(source, "--out", tmp_path / "two", "--tokenizer", other)
    assert f"--tokenizer {other}: expected a folder" in refused.stderr
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "NoSuchTokenizer"}))
    unknown = finetune(source, "--out", tmp_path / "three", "--tokenizer", folder)
    assert unknown.returncode == 1
    assert f"--tokenizer {folder}: transformers cannot load it: " in unknown.stderr


def test_copies_with_other_fields_or_spelled_otherwise_are_on_one_side(
    chats: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    jsonl: Callable[..., Path],
    finetune: Callable[..., Any],
    tmp_path: Path,
) -> None:
    rows = [*chats, *pairs]
    lines = []
    for number, row in enumerate(rows):
        if "messages" in row:
            turned: dict[str, Any] = {"messages": [dict(reversed(message.items())) for message in row["messages"]]}
        else:
            turned = {"completion": row["response"], "prompt": row["prompt"]}
        for copy, is_ascii in ((row, False), (row, True), ({"id": number, **row}, False), (turned, True)):
            lines.append(json.dumps(copy, ensure_ascii=is_ascii).encode() + b"\n")
    assert finetune(jsonl(lines), "--out", tmp_path / "out", "--seq-len", "4000", "--holdout", "0.3").returncode == 0
    held = (tmp_path / "out" / "val" / "documents.jsonl").read_bytes().splitlines(keepends=True)
    plain = [json.dumps(row, ensure_ascii=False) for row in rows]
    expected = [number for number, text in enumerate(plain) if is_held_out(text, 0.3)]
    assert 20 < len(expected) < 60
    assert held == [line for number in expected for line in lines[4 * number : 4 * number + 4]]


def test_a_tokenizer_that_changed_meanwhile_is_refused(
    chats: list[dict[str, Any]],
    with_template: Path,
    jsonl: Callable[..., Path],
    finetune: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(with_template, tmp_path / "tokenizer"))
    load = AutoTokenizer.from_pretrained
    words = (jsonl(chats), "--out", tmp_path / "out", "--tokenizer", folder, "--seq-len", "4000")
    for changed in ("tokenizer.json", "tokenizer_config.json"):

        def edit_and_load(name: str, path: Path = folder / changed) -> Any:
            path.write_text(path.read_text() + "\n")
            return load(name)

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", edit_and_load)
        refused = finetune(*words)
        assert refused.returncode == 1
        assert f"--tokenizer {folder} changed while the run went on" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_arguments_of_transformers_are_no_variables(finetune: Callable[..., Any], tmp_path: Path) -> None:
    known = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"kwargs"}
    assert known <= NOT_VARIABLES
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    for word in ("tokenize=1", "messages=x"):
        refused = finetune(rows, "--out", tmp_path / "out", "--template-value", word)
        assert refused.returncode == 1
        assert f"--template-value {word}: expected a variable of the chat template" in refused.stderr


def test_cutting() -> None:
    turns = [Turn([1, 2], [3, 4]), Turn([5], [6, 7])]
    assert truncated(turns, 7) == turns
    assert truncated(turns, 6) == [Turn([1, 2], [3, 4]), Turn([5], [6])]
    assert truncated(turns, 5) == [Turn([1, 2], [3, 4])]
    assert truncated(turns, 3) == [Turn([1, 2], [3])]
    assert truncated(turns, 2) == []
    assert count_tokens(turns) == 7


def test_too_long(
    pairs: list[dict[str, Any]], jsonl: Callable[..., Path], finetune: Callable[..., Any], tmp_path: Path
) -> None:
    source = jsonl(pairs)
    assert finetune(source, "--out", tmp_path / "all", "--seq-len", "4000").returncode == 0
    every = turns_in(tmp_path / "all" / "train")
    lengths = [len(turns[0]["input_ids"]) + len(turns[0]["labels"]) for turns in every]
    limit = sorted(lengths)[len(lengths) // 2]

    def kept(choice: str) -> tuple[Any, list[Any]]:
        result = finetune(source, "--out", tmp_path / choice, "--too-long", choice, "--seq-len", str(limit))
        return result, turns_in(tmp_path / choice / "train") if result.returncode == 0 else []

    dropped, found = kept("drop")
    assert found == [turns for turns, length in zip(every, lengths, strict=True) if length <= limit]
    assert f"{len(every) - len(found)} too long, left out" in dropped.stdout
    _, cut = kept("truncate")
    assert max(len(turns[0]["input_ids"]) + len(turns[0]["labels"]) for turns in cut) == limit
    assert len(cut) > len(found)
    stopped, _ = kept("stop")
    first = next(number for number, length in enumerate(lengths, 1) if length > limit)
    assert f"{source}:{first}: {lengths[first - 1]} tokens, more than --seq-len {limit}" in stopped.stderr
    assert not (tmp_path / "stop").exists()
    none = finetune(source, "--out", tmp_path / "none", "--too-long", "drop", "--seq-len", "1")
    told = f"no row is left (left out: {len(every)} too long, left out); give more rows, or a larger --seq-len."
    assert told in none.stderr


def test_files_of_other_formats_are_refused_before_any_is_read(
    jsonl: Callable[..., Path], finetune: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    jsonl([b"no row\n"], "in/a.jsonl")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1")
    refused = finetune(tmp_path / "in", "--out", tmp_path / "out")
    assert refused.returncode == 1
    assert f"{tmp_path / 'in' / 'b.parquet'}: expected JSON lines" in refused.stderr


def test_holdout_bad_rows_again_and_overwrite(
    chats: list[dict[str, Any]],
    jsonl: Callable[..., Path],
    finetune: Callable[..., Any],
    tmp_path: Path,
    run_command: Any,
) -> None:
    rows = jsonl([*chats, {"text": "x"}])
    out = tmp_path / "out"
    stopped = finetune(rows, "--out", out)
    assert stopped.returncode == 1
    assert f"{rows}:{len(chats) + 1}: expected prompt and response" in stopped.stderr
    assert not out.exists()
    words = (rows, "--out", out, "--on-error", "skip", "--max-rejected", "0.1", "--holdout", "0.3")
    result = finetune(*words)
    assert (result.returncode, result.stderr) == (0, "")
    manifests = {name: json.loads((out / name / "manifest.json").read_text()) for name in ("train", "val")}
    assert sum(manifest["documents"] for manifest in manifests.values()) == len(chats)
    assert len((out / "val" / "documents.jsonl").read_text().splitlines()) == manifests["val"]["documents"] > 3
    assert manifests["train"]["rejected"] == len((out / "train" / "rejected.jsonl").read_text().splitlines()) == 1
    assert 0 < manifests["train"]["loss_tokens"] < manifests["train"]["tokens"]
    _, _, reads = result.stdout.partition("keys:\n")
    streams = {name: loader["dataset"]["streams"] for name, loader in yaml.safe_load(reads).items()}
    assert streams == {
        "train_loader": {"instructions": {"local": str(out), "split": "train"}},
        "eval_loader": {"instructions": {"local": str(out), "split": "val"}},
    }
    assert "already done" in finetune(*words).stdout
    refused = finetune(*words, "--too-long", "drop")
    assert "--too-long: 'truncate' -> 'drop'" in refused.stderr
    assert run_command("python", "-m", "data_prep.verify", out).returncode == 0
    shown = run_command("python", "-m", "data_prep.inspect", out)
    assert shown.returncode == 0, shown.stderr
    assert "»" in shown.stdout
    assert finetune(*words, "--too-long", "drop", "--overwrite").returncode == 0


def test_a_tokenizer_that_cannot_encode_is_words() -> None:
    class Broken:
        bos_token_id = None
        chat_template = None

        def __call__(self, **_: Any) -> Any:
            raise Exception("Unk token `q` not found in the vocabulary")  # as the tokenizers library raises it

    with pytest.raises(PrepError, match="cannot encode: Unk token `q` not found"):
        ConversationTokenizer(Broken(), {}).turns({"prompt": "a", "response": "b"})
