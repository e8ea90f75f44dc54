"""The programs that prepare text: ours, LLM Foundry's, and the bare tokenizer."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

SEQ_LEN = 2048
EOS = "<|endoftext|>"
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
