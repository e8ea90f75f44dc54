"""The text to prepare, and the programs that prepare it: ours, LLM Foundry's, and the bare tokenizer."""

import hashlib
import json
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SEQ_LEN = 2048
EOS = "<|endoftext|>"
SUFFIXES = (".py", ".md", ".rst", ".txt")
CONVERTERS = ("LLM Foundry convert_dataset_json", "LLM Foundry convert_text_to_mds")
WIDTHS = (("int32", "1"), ("uint16", "1"), ("uint16", "2"))  # of ids, and workers
Build = Callable[[Path, Path, Path], tuple[list[str], Path]]
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


class Text(NamedTuple):
    """The same documents as JSONL and as a folder of .txt files, and what tells this text from another."""

    jsonl: Path
    folder: Path
    facts: dict[str, Any]


def write_texts(texts: Iterator[str], folder: Path, size: int) -> Text:
    """The first `size` bytes of texts, in whole documents."""
    as_text = folder / "texts"
    as_text.mkdir(parents=True)
    path = folder / "corpus.jsonl"
    number = written = 0
    with open(path, "w", encoding="utf-8") as file:
        for number, text in enumerate(texts, 1):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            (as_text / f"{number:06}.txt").write_text(text, encoding="utf-8")
            written += len(text.encode())
            if written >= size:
                break
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Text(path, as_text, {"bytes": written, "documents": number, "sha256": digest})


def tokenizer_folder(tokenizer_json: Path, folder: Path) -> Path:
    """The tokenizer with the configuration that transformers wants."""
    folder.mkdir()
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    special = {"bos_token": EOS, "eos_token": EOS, "unk_token": EOS}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def programs(tokenizer: Path) -> dict[str, Build]:
    """By name: (JSONL, folder of texts, output) -> the command and the folder that gets index.json."""

    def ours(encoder: str, dtype: str, workers: str) -> Build:
        def build(jsonl: Path, texts: Path, out: Path) -> tuple[list[str], Path]:
            common = ["--out", str(out), "--tokenizer", str(tokenizer), "--seq-len", str(SEQ_LEN)]
            options = ["--encoder", encoder, "--dtype", dtype, "--workers", workers, "--allow-special"]  # as they do
            return [sys.executable, "-m", "data_prep.pretrain", str(jsonl), *common, *options], out / "train"

        return build

    def theirs(program: str, from_texts: bool) -> Build:
        code = program.format(seq_len=SEQ_LEN, eos=EOS)

        def build(jsonl: Path, texts: Path, out: Path) -> tuple[list[str], Path]:
            return [sys.executable, "-c", code, str(texts if from_texts else jsonl), str(out), str(tokenizer)], out

        return build

    cases = [("gigatoken", dtype, workers) for dtype, workers in WIDTHS]
    return {
        CONVERTERS[0]: theirs(JSON_CONVERTER, False),
        CONVERTERS[1]: theirs(TEXT_CONVERTER, True),
        **{
            f"ours, {encoder}, {dtype}, {workers} worker{'s' * (workers != '1')}": ours(encoder, dtype, workers)
            for encoder, dtype, workers in (*cases, ("fastokens", "int32", "1"))
        },
    }


def bare_rate(corpus: Path, tokenizer: Path) -> tuple[float, float]:
    """gigatoken alone on texts in memory, one thread: tokens per CPU-second at the first and at the second pass."""
    from gigatoken.gigatoken_rs import load_hf_json

    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").rstrip("\n").split("\n")]
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


def digest_of(folder: Path) -> str:
    """The beginning of the SHA-256 of all shards of a folder."""
    digest = hashlib.sha256()
    for shard in sorted(folder.glob("*.mds")):
        digest.update(shard.read_bytes())
    return digest.hexdigest()[:12]
