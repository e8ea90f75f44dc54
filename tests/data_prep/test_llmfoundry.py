"""The shards against LLM Foundry's own: the same bytes where the options are the same, readable where they are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from data_prep.writing import ShardFormat
from recipes.training.loaders_lock import loaders_lock
from tests.conftest import Command, write_jsonl
from tests.data_prep.conftest import tree

SEQ_LEN = 64
SIZE_LIMIT = 5000  # bytes a shard: a few sequences, so that there are many shards
LENGTHS = (1, 255, 256, 300)  # the length of a sequence takes 1 byte up to 255, then 2
SPECIAL = "one<|endoftext|>two <|padding|> three"

# (name, LLM Foundry's arguments, our options)
CONVERSIONS: list[tuple[str, dict[str, str], list[str]]] = [
    ("eos", {"eos_text": "<|endoftext|>"}, []),
    ("eos-text", {"eos_text": "<|endoftext|>"}, ["--eos-text", "<|endoftext|>"]),
    (
        "bos-and-eos",
        {"bos_text": "<|padding|>", "eos_text": "\n\n"},
        ["--bos-text", "<|padding|>", "--eos-text", "\n\n"],
    ),
    ("bos-only", {"bos_text": "<|endoftext|>"}, ["--bos-text", "<|endoftext|>", "--eos-text", ""]),
]


@dataclass
class Reference:
    """Folders that both wrote, and what LLM Foundry read from ours."""

    root: Path
    read: dict[str, Any]


def tokenizer_with_template(tokenizer: Path, folder: Path) -> Path:
    """A copy of the tokenizer that puts a token in front of each text and one behind it, by itself."""
    shutil.copytree(tokenizer, folder)
    changed = Tokenizer.from_file(str(folder / "tokenizer.json"))
    changed.post_processor = TemplateProcessing(
        single="<|padding|> $A <|endoftext|>", special_tokens=[("<|padding|>", 1), ("<|endoftext|>", 0)]
    )
    changed.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Path, run_command: Command
) -> Reference:
    root = tmp_path_factory.mktemp("foundry")
    special = write_jsonl(root / "special.jsonl", ({"text": f"{n} {SPECIAL} {n}" * 20} for n in range(20)))

    def ours(name: str, source: Path, *options: str) -> None:
        common = ("--out", root / "ours" / name, "--tokenizer", tokenizer, "--seq-len", str(SEQ_LEN))
        result = run_command("python", "-m", "data_prep.pretrain", source, *common, *options)
        assert result.returncode == 0, result.stderr

    def theirs(name: str, source: Path, **arguments: str) -> dict[str, Any]:
        common = {"path": str(source), "out_root": str(root / "theirs" / name), "tokenizer": str(tokenizer)}
        return {**common, "concat_tokens": SEQ_LEN, **arguments}

    convert, write = [], []
    for name, arguments, options in CONVERSIONS:
        ours(name, corpus, "--dtype", "int32", *options)
        convert.append(theirs(name, corpus, **arguments))
    ours("special", special, "--dtype", "int32", "--allow-special")
    convert.append(theirs("special", special, eos_text="<|endoftext|>"))
    template = tokenizer_with_template(tokenizer, root / "template")
    ours("template", corpus, "--dtype", "int32", "--tokenizer", str(template), "--add-special-tokens")
    convert.append(theirs("template", corpus, tokenizer=str(template)))
    ours("uint16", corpus, "--holdout", "0.1")

    for dtype in ("uint16", "int32"):
        for seq_len in LENGTHS:
            name = f"{dtype}-{seq_len}"
            sequences = np.random.default_rng(0).integers(0, 60_000, (101, seq_len)).astype(dtype)
            np.save(root / f"{name}.npy", sequences)
            (root / "ours" / name).mkdir()
            layout = ShardFormat(seq_len, dtype, SIZE_LIMIT)
            cuts = range(0, len(sequences), layout.samples_a_shard)
            pieces = [sequences[first : first + layout.samples_a_shard] for first in cuts]
            folder = root / "ours" / name
            shards = [layout.write(folder, n, len(p), np.split(p, (0, 1, 5))) for n, p in enumerate(pieces)]
            layout.write_index(folder, shards)
            out = {"array": str(root / f"{name}.npy"), "out": str(root / "theirs" / name)}
            write.append({**out, "dtype": dtype, "size_limit": SIZE_LIMIT})

    common = {"local": str(root / "ours" / "uint16"), "tokenizer": str(tokenizer), "max_seq_len": SEQ_LEN}
    read = [{**common, "split": split} for split in ("train", "val")]
    instructions = root / "instructions.json"
    instructions.write_text(json.dumps({"convert": convert, "write": write, "read": read}))
    script = Path(__file__).with_name("foundry_reference.py")
    with loaders_lock():
        result = run_command("python", script, instructions, env={"HF_DATASETS_CACHE": str(root / "cache")})
    assert result.returncode == 0, result.stderr
    return Reference(root, json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", [*(name for name, _, _ in CONVERSIONS), "special", "template"])
def test_same_bytes_as_convert_dataset_json(reference: Reference, name: str) -> None:
    ours = tree(reference.root / "ours" / name / "train")
    manifest = json.loads(ours.pop("manifest.json"))
    assert manifest["dtype"] == "int32"
    assert ours == tree(reference.root / "theirs" / name)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_same_bytes_as_mdswriter(reference: Reference, dtype: str, seq_len: int) -> None:
    ours = tree(reference.root / "ours" / f"{dtype}-{seq_len}")
    assert ours == tree(reference.root / "theirs" / f"{dtype}-{seq_len}")
    assert seq_len == 1 or len(ours) > 3  # several shards, and the index


@pytest.mark.parametrize("split", ["train", "val"])
def test_uint16_read_by_llmfoundry(reference: Reference, split: str, corpus: Path, tokenizer: Path) -> None:
    folder = reference.root / "ours" / "uint16"
    assert json.loads((folder / split / "manifest.json").read_text())["dtype"] == "uint16"
    rows = reference.read[f"{folder}/{split}"]
    assert rows["dtype"] == ["torch.int64"]

    held_out = set((folder / "val" / "documents.jsonl").read_text(encoding="utf-8").splitlines())
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    stream: list[int] = []
    for line in corpus.read_text(encoding="utf-8").splitlines():
        if (line in held_out) == (split == "val"):
            stream += [*encode(json.loads(line)["text"]).ids, 0]
    full = len(stream) // SEQ_LEN
    assert rows["tokens"] == [stream[n * SEQ_LEN : (n + 1) * SEQ_LEN] for n in range(full)]
