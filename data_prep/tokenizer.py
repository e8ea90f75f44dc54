"""Train a byte-level BPE tokenizer on text: JSON Lines, parquet, .txt.

    python -m data_prep.tokenizer corpus.jsonl --out tokenizer/ --vocab-size 4096 --holdout 0.05

writes a folder that `AutoTokenizer.from_pretrained` loads without a network. Give the --holdout that data_prep.pretrain
gets: it is trained on the same documents. The same input and options give the same bytes.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data_prep.durable import write_durably
from data_prep.errors import PrepError, exit_status
from data_prep.holdout import checked_fraction, is_held_out
from data_prep.long_texts import BETWEEN_WORDS, pieces_of
from data_prep.progress import ProgressBar
from data_prep.publishing import exclusive, fresh_staging, publish
from data_prep.readers import open_reader
from data_prep.rows import Document, Rejected
from data_prep.sources import Source, find_sources, sha256_of_file
from data_prep.storage import local_output
from data_prep.tokenising import MOST_IDS
from data_prep.tokenizer_files import CONFIG_FILES, TOKENIZER_FILE

END_OF_TEXT = "<|endoftext|>"  # BOS, EOS and unknown, as in GPT-NeoX
PADDING = "<|padding|>"  # GPT-NeoX's too; packed sequences never hold it
SMALLEST = 256 + 2  # every byte, and the two special tokens
TRAINING = "training.json"  # what the folder was made from
VERSION = 1  # of training.json, and of what the same options produce
_MEASURED_BYTES = 1 << 24  # of text, from the start of the input, that bytes/token is measured on
_PIECE_CHARACTERS = 1 << 16


@dataclass
class Counts:
    """Documents and their UTF-8 bytes."""

    documents: int = 0
    bytes: int = 0


def run(arguments: argparse.Namespace) -> None:
    """The whole command: compare with what is there, train, measure, publish."""
    if not SMALLEST <= arguments.vocab_size < MOST_IDS:
        raise PrepError(
            f"--vocab-size {arguments.vocab_size}: expected {SMALLEST} or more (256 bytes and 2 "
            "special tokens), and less than 2^24."
        )
    out = local_output(arguments.out).resolve()
    sources = find_sources(arguments.inputs)
    made_from = {
        "holdout": checked_fraction(arguments.holdout),
        "sources": [{"bytes": source.bytes, "sha256": sha256_of_file(source.path)} for source in sources],
        "text_key": arguments.text_key,
        "version": VERSION,
        "vocab_size": arguments.vocab_size,
    }
    if not arguments.overwrite and is_finished(out, made_from):
        print(f"{arguments.out}: already done with the same input and options; nothing to do.")
        return
    with exclusive(out.parent, f".{out.name}.lock"), fresh_staging(out.parent, f".{out.name}.preparing") as staging:
        refuse_foreign(out)
        counts = Counts()
        tokenizer = train(documents(sources, arguments.text_key, made_from["holdout"], counts), arguments.vocab_size)
        if not counts.documents:
            raise PrepError("no document is left to train on; give more text or a smaller --holdout.")
        result = measure(tokenizer, documents(sources, arguments.text_key, made_from["holdout"]))
        made = {
            "documents": counts.documents,
            "text_bytes": counts.bytes,
            "vocab_size": tokenizer.get_vocab_size(),
            **result,
        }
        save(tokenizer, staging / out.name, {"made": made, "made_from": made_from})
        publish(out.parent, staging, [out.name], [out.name])
    print_summary(arguments.out, made, arguments.vocab_size)


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's splitting into words; nothing is normalised, so decoding is exact."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _beside_main_thread(lambda: tokenizer.train_from_iterator(texts, trainer=trainer))
    return tokenizer


def _beside_main_thread(work: Callable[[], None]) -> None:
    """Do work that looks at no signals, while the main thread waits for them: else Ctrl-C would wait for its end."""
    failed: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=do, daemon=True)  # a daemon ends with the program
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.1)  # s
    if failed:
        raise failed[0]


def documents(sources: list[Source], text_key: str, holdout: float, counts: Counts | None = None) -> Iterator[str]:
    """The texts of the training part, in order and in pieces; with `counts`, counted and shown on a terminal.

    Raises:
        PrepError: the first row that is no document.
    """
    total_bytes = sum(source.bytes for source in sources) if counts else 0
    done_bytes = 0
    with ProgressBar(total_bytes, "reading", quiet=counts is None) as bar:
        for source in sources:
            reader = open_reader(source, text_key)
            for row in reader.rows():
                if isinstance(row, Rejected):
                    raise PrepError(f"{source.path}:{row.line}: {row.reason}.")
                assert isinstance(row, Document)  # without a spool
                if is_held_out(row.text, holdout):
                    continue
                if counts:
                    counts.documents += 1
                    counts.bytes += len(row.text.encode("utf-8"))
                    if bar.is_due():
                        bar.update(done_bytes + reader.bytes_read, counts.documents)
                # The trainer takes 200 bytes and more a character of what it gets at once; no word is cut.
                yield from pieces_of([row.text], _PIECE_CHARACTERS, BETWEEN_WORDS)
            done_bytes += source.bytes


def measure(tokenizer: Tokenizer, texts: Iterator[str]) -> dict[str, int]:
    """Bytes of text and tokens of the first 16 MiB, or of all if there is less; no separators counted."""
    tokenizer.encode_special_tokens = True
    measured_bytes = measured_tokens = 0
    for text in texts:
        measured_bytes += len(text.encode("utf-8"))
        measured_tokens += len(tokenizer.encode_batch_fast([text])[0].ids)
        if measured_bytes >= _MEASURED_BYTES:
            break
    tokenizer.encode_special_tokens = False
    return {"measured_bytes": measured_bytes, "measured_tokens": measured_tokens}


def save(tokenizer: Tokenizer, folder: Path, training: dict[str, Any]) -> None:
    """Write the folder: the tokenizer, the two files that name its special tokens, and what it was made from."""
    folder.mkdir()
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING, "unk_token": END_OF_TEXT}
    config = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast", **special}
    write_durably(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())
    for name, value in zip(CONFIG_FILES, (config, special), strict=True):
        write_durably(folder / name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    files = {name: sha256_of_file(folder / name) for name in (TOKENIZER_FILE, *CONFIG_FILES)}
    content = json.dumps({**training, "files": files}, indent=1, sort_keys=True) + "\n"
    write_durably(folder / TRAINING, content.encode())


def is_finished(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether the folder is there, made from the same and as it was written.

    Raises:
        PrepError: it was made from something else, or a file of it was changed or is missing.
    """
    old = _made_from(out)
    if old is None:
        return False
    # An earlier version noted no digests.
    digests = json.loads((out / TRAINING).read_bytes()).get("files", {TOKENIZER_FILE: None})
    others = sorted({path.name for path in out.iterdir()} - {*digests, *CONFIG_FILES, TRAINING})
    instead = "give another --out, or --overwrite" + (f", which also removes {', '.join(others)}" if others else "")
    names = {"sources": "input", "holdout": "--holdout", "text_key": "--text-key", "vocab_size": "--vocab-size"}
    changed = [names.get(name, name) for name in sorted(made_from) if old.get(name) != made_from[name]]
    if changed:
        raise PrepError(f"{out} was made with another {', another '.join(changed)}; {instead}.")
    states = {name: _state(out / name, digest) for name, digest in sorted(digests.items())}
    if problems := [f"{name} {state}" for name, state in states.items() if state]:
        raise PrepError(f"{out} is not as it was written: {', '.join(problems)}; {instead}.")
    return True


def _state(path: Path, sha256: str | None) -> str:
    """What became of a file; "": nothing."""
    if not path.is_file():
        return "is missing"
    return "was changed" if sha256 and sha256_of_file(path) != sha256 else ""


def _made_from(out: Path) -> dict[str, Any] | None:
    """What a folder that this command made was made from; None: it made no such folder."""
    try:
        found = json.loads((out / TRAINING).read_bytes())["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def refuse_foreign(out: Path) -> None:
    """Refuse to replace a folder that this command did not make.

    Raises:
        PrepError: it did not.
    """
    if out.exists() and _made_from(out) is None and (not out.is_dir() or any(out.iterdir())):
        what = f"{out} holds something that this command did not write (no {TRAINING} of it there)"
        raise PrepError(f"{what}; move it away or give another --out.")


def print_summary(out: str, made: dict[str, int], asked: int) -> None:
    """What was made, in two lines, and a third where the text was too little for the vocabulary."""
    print(f"{out}: {made['vocab_size']:,} tokens, from {made['documents']:,} documents, {made['text_bytes']:,} bytes")
    ratio = made["measured_bytes"] / max(made["measured_tokens"], 1)
    print(f"{ratio:.3f} bytes/token on {made['measured_bytes']:,} bytes of them = {made['measured_tokens']:,} tokens")
    if made["vocab_size"] < asked:
        print(f"note: the text gives {made['vocab_size']:,} tokens, not {asked:,}: no other pair occurs twice.")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.tokenizer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders of them, globs or URLs of these; see the README")
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add(
        "--vocab-size", type=int, required=True, metavar="N", help="tokens, the 256 bytes and 2 special tokens included"
    )
    add(
        "--holdout",
        type=float,
        default=0.0,
        metavar="F",
        help="leave out the documents that data_prep.pretrain --holdout F does",
    )
    add("--text-key", default="text", metavar="KEY", help="of the text in each object, or its column (text)")
    add("--overwrite", action="store_true", help="replace what an earlier run of this command made there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # after Ctrl-C the training may still run, and must not find Python half taken down
