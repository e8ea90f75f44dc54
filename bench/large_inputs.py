"""What large inputs take: two gigabytes of documents, one line of many megabytes, millions of short documents."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bench.converters import SEQ_LEN, tokens_of
from bench.measured import figures, measured
from bench.texts import installed_texts, write_texts

LINES = (25_000_000, 100_000_000, 200_000_000)  # characters
HELD = 11_900_000  # characters: what --hold-mb allows
DOCUMENTS = (500_000, 2_000_000)
TRAINED_CHARACTERS = 10_000_000


def large(work: Path, tokenizer: Path, gigabytes: float) -> dict[str, Any]:
    """Peak memory and rate on a large input: the corpus repeated, each copy with words of its own."""
    jsonl, _, _ = write_texts(installed_texts(), work / "large-part", 160_000_000)
    big = work / "big.jsonl"
    with open(big, "wb") as file:
        copy = 0
        while file.tell() < gigabytes * 1e9:
            with open(jsonl, "rb") as lines:
                file.writelines(line.replace(b"the ", b"the%d " % copy) for line in lines)
            copy += 1
    found: dict[str, Any] = {}
    for encoder, workers in (("gigatoken", "1"), ("gigatoken", "2"), ("fastokens", "1"), ("fastokens", "2")):
        found[f"{encoder}, {workers}"] = prepared(work, tokenizer, big, "--workers", workers, "--encoder", encoder)
    return {"bytes": big.stat().st_size, "runs": found}


def large_table(section: dict[str, Any]) -> list[str]:
    lines = [
        f"{section['bytes'] / 1e9:.2f} GB of JSONL, uint16. Memory of all processes together (PSS).",
        "",
        "| encoder, workers | wall s | CPU-s | M tokens per CPU-s | M tokens per s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in section["runs"].items():
        rate, whole = (one["tokens"] / one[key] / 1e6 for key in ("cpu_s", "wall_s"))
        wall, cpu = one["wall_s"], one["cpu_s"]
        lines.append(f"| {name} | {wall:.1f} | {cpu:.1f} | {rate:.2f} | {whole:.2f} | {one['peak_mb']:,.0f} |")
    return lines


def bounded(work: Path, tokenizer: Path) -> dict[str, Any]:
    """Single lines and numbers of documents of several sizes, under what could make memory grow with them."""
    jsonl, _, _ = write_texts(installed_texts(), work / "texts", 160_000_000)
    with open(jsonl, encoding="utf-8") as lines:
        text = "\n".join(json.loads(row)["text"] for row in lines)
    llama = llama_like(text[:TRAINED_CHARACTERS], work / "llama-like")
    predicate = work / "predicate.py"
    predicate.write_text("def good(row):\n    return len(row['text']) > 0\n")
    rows: list[dict[str, Any]] = []

    def add(what: str, kind: str, source: Path, folder: Path, *options: str | Path) -> None:
        words = [str(option) for option in options]
        took = prepared(work, folder, source, "--workers", "1", *words)
        shown = " ".join(word if not word.startswith(str(work)) else word.rpartition("/")[2] for word in words)
        rows.append({"input": what, "tokenizer": kind, "options": shown, **took})

    for characters in LINES:
        line = work / "line.jsonl"
        row = {"text": (text + text)[:characters]}
        line.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
        size = f"a line of {line.stat().st_size / 1e6:,.0f} MB"
        add(size, "GPT-NeoX's", line, tokenizer)
        add(size, "like LLaMA's", line, llama)
        add(size, "GPT-NeoX's", line, tokenizer, "--near-dedup", "0.8", "--dedup")
        add(size, "GPT-NeoX's", line, tokenizer, "--filter", f"{predicate}:good", "--hold-mb", "250")
        column = work / "line.parquet"
        pyarrow.parquet.write_table(pyarrow.table({key: [value] for key, value in row.items()}), column)
        add(f"the same in parquet ({column.stat().st_size / 1e6:,.0f} MB)", "GPT-NeoX's", column, tokenizer)
    letters = random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=HELD)
    for what, held, options in (
        ("a line of nearly 12 MB", text[: HELD * 12 // 13], ["--filter", f"{predicate}:good"]),
        ("one word of nearly 12 MB", "".join(letters), []),
    ):
        with open(work / "line.jsonl", "w", encoding="utf-8") as file:
            for one in (held, text[:100_000]):
                file.write(json.dumps({"text": one}, ensure_ascii=False) + "\n")
        add(what, "GPT-NeoX's", work / "line.jsonl", tokenizer, *options)
    words = text[:TRAINED_CHARACTERS].split()
    for count in DOCUMENTS:
        short = work / "short.jsonl"
        rng = random.Random(count)
        with open(short, "w", encoding="utf-8") as file:
            for number in range(count):
                start = rng.randrange(len(words) - 9)
                file.write(json.dumps({"text": " ".join([*words[start : start + 8], str(number)])}) + "\n")
        size = f"{count / 1e6:,.1f} million documents, {short.stat().st_size / 1e6:,.0f} MB"
        add(size, "GPT-NeoX's", short, tokenizer)
        add(size, "GPT-NeoX's", short, tokenizer, "--dedup", "--shuffle-seed", "1")
        add(size, "GPT-NeoX's", short, tokenizer, "--near-dedup", "0.8")
    return {"rows": rows}


def bounded_table(section: dict[str, Any]) -> list[str]:
    lines = [
        "One worker, gigatoken. Arrow decodes a value of a parquet file as a whole, and a filter's function is given",
        "the row, where `--hold-mb` lets it: these two grow. What else grows is the engine's cache of words, which is",
        "emptied at 160 MiB.",
        "",
        "| input | tokenizer | options | wall s | CPU-s | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in section["rows"]:
        lines.append(
            f"| {row['input']} | {row['tokenizer']} | {row['options']} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} | "
            f"{row['peak_mb']:,.0f} |"
        )
    return lines


def llama_like(text: str, folder: Path) -> Path:
    """A tokenizer as LLaMA's is: ▁ for spaces and one in front of the text, BPE on all of it, bytes for the rest."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=8192, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replaced]}
    config = {**json.loads(tokenizer.to_str()), "normalizer": normalizer, "pre_tokenizer": None}
    config["added_tokens"] = config["added_tokens"][:3]  # the bytes are tokens of the vocabulary only
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def prepared(work: Path, tokenizer: Path, source: Path, *options: str) -> dict[str, float]:
    """The figures of one run of ours."""
    shutil.rmtree(work / "out", ignore_errors=True)
    common = ["--out", str(work / "out"), "--tokenizer", str(tokenizer), "--seq-len", str(SEQ_LEN)]
    run = measured([sys.executable, "-m", "data_prep.pretrain", str(source), *common, *options])
    print(f"{source.name}, {' '.join(options)}: {run.wall_s:.1f} s, {run.peak_mb:.0f} MB", flush=True)
    return {**figures(run), "tokens": tokens_of(work / "out" / "train")}
