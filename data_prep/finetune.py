"""Instruction data (JSON Lines) into MDS shards for LLM Foundry's finetuning loader.

    python -m data_prep.finetune chats.jsonl --out shards/ --tokenizer tokenizer/ --seq-len 2048 --holdout 0.02

A row has prompt and response, or messages, which the tokenizer's chat template puts into text; rows of Alpaca's form
(instruction, input, output) and of ShareGPT's (conversations) become these. Each row is one sample of turns: a prompt,
and the answer that the loss is on. In the recipe, `target_prompts: none` and `target_responses: all` put the loss on
every answer and on nothing else (LLM Foundry's default is the last answer).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.conversations import NOT_VARIABLES, ConversationTokenizer, count_tokens, trained_on, truncated
from data_prep.errors import PrepError, changed_meanwhile, exit_status, refuse_not_utf8
from data_prep.holdout import checked_fraction, is_held_out
from data_prep.instruction_forms import BadExample, in_trained_form
from data_prep.instruction_split import CUT, LEFT_OUT, SplitWriter, fragment
from data_prep.manifest import ROLE_HELD_OUT, ROLE_MAIN, Manifest, SourceRecord
from data_prep.options import add_common_options
from data_prep.plan import Plan, checked_common_options, held_option, is_finished, what_to_replace
from data_prep.progress import ProgressBar
from data_prep.publishing import exclusive, fresh_staging, publish
from data_prep.reading import SourceReader
from data_prep.rejects import REFUSED, REJECTED
from data_prep.rows import Rejected, parse_object
from data_prep.sources import find_sources, recorded_path, sha256_of_file
from data_prep.split_manifest import BuiltSplit, write_manifest
from data_prep.staging import refuse_unfinished, remove_leftovers
from data_prep.storage import local_output
from data_prep.tokenising import Separators, load_tokenizer
from data_prep.tokenizer_files import SETTINGS, TOKENIZER_FILE

HOLD_MB = 4  # of a row, as options.py says; a conversation takes a hundred times its size while it is encoded
TOO_LONG = ("truncate", "drop", "stop")
# With torch, and what it finds installed beside it, transformers takes ten times the memory and the time to import.
_TOKENIZERS_ALONE = {"USE_TORCH": "0", "USE_TF": "0", "USE_FLAX": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}


def run(arguments: argparse.Namespace) -> None:
    """The whole command: plan, compare with what is there, make, publish."""
    start = time.perf_counter()
    if arguments.seq_len < 1:
        raise PrepError(f"--seq-len {arguments.seq_len}: expected the most tokens a sample, 1 or more (2048).")
    checked_common_options(arguments)
    if not 0 < arguments.hold_mb <= 1e6:
        raise PrepError(f"--hold-mb {arguments.hold_mb:g}: expected megabytes of a row, above 0 ({HOLD_MB}).")
    out = local_output(arguments.out)
    sources = find_sources(arguments.inputs)
    for source in sources:  # before anything is read
        if source.name.endswith((".parquet", ".txt")):
            raise PrepError(f"{source.path}: expected JSON lines: .jsonl or .json, or .gz or .zst of these.")
    _, facts = load_tokenizer(arguments.tokenizer)
    folder = Path(facts.path).parent
    if Path(facts.path).name != TOKENIZER_FILE:
        raise PrepError(
            f"--tokenizer {facts.path}: expected a folder, whose {TOKENIZER_FILE} and chat template are taken."
        )
    named = "split seq_len too_long on_error max_rejected"
    options = {
        **{name: getattr(arguments, name) for name in named.split()},
        "format": "turns",
        "holdout": checked_fraction(arguments.holdout),
        "holdout_split": arguments.holdout_split if arguments.holdout else None,
        "holdout_by": "what is trained on" if arguments.holdout else None,  # earlier versions took the whole line
        "tokenizer_settings": _settings_of(folder),
        "template_values": dict(_named_value(word) for word in arguments.template_value),
        **held_option(arguments, HOLD_MB),
    }
    plan = Plan(sources, facts, Separators([], []), "json", options)
    reads = fragment(str(out), plan.splits)
    if not arguments.overwrite and is_finished(out, plan):
        remove_leftovers(out, plan.made_from)
        print(f"{out}: already done with the same input and options; nothing to do.")
        return
    with exclusive(out):
        replaced = what_to_replace(out, plan, arguments.overwrite)
        refuse_unfinished(out, arguments.overwrite)
        with fresh_staging(out) as staging:
            manifests = make(plan, staging, out, round(arguments.hold_mb * 1e6))
            publish(out, staging, plan.splits, replaced)
        (out / REFUSED).unlink(missing_ok=True)
    for manifest in reversed(manifests):
        print(
            f"{out / manifest.split}: {manifest.documents:,} samples, {manifest.tokens:,} tokens, "
            f"{manifest.loss_tokens:,} of them with loss; {len(manifest.shards)} shards"
        )
    counts = {**manifests[-1].left_out, "rejected": manifests[-1].rejected}
    told = "".join(f"; {count:,} {reason}" for reason, count in sorted(counts.items()) if count)
    print(f"{time.perf_counter() - start:.1f} s{told}")
    print(f"in a recipe that includes yamls/data/instructions-*.yaml, or beside the loaders' other keys:\n{reads}")


def make(plan: Plan, staging: Path, out: Path, most: int) -> list[Manifest]:
    """Read every row once and write every split, with its manifest, below `staging`. `most`: bytes of a row."""
    options = plan.options
    conversations = ConversationTokenizer(_load_with_transformers(plan), options["template_values"])
    writers = {
        name: SplitWriter(staging / name, ROLE_MAIN if name == options["split"] else ROLE_HELD_OUT)
        for name in plan.splits
    }
    counts = {CUT: 0, LEFT_OUT: 0, "rejected": 0}
    rows_seen = done_bytes = 0
    records = []
    with ProgressBar(sum(source.bytes for source in plan.sources), options["split"]) as bar:
        for source in plan.sources:
            reader = SourceReader(source, "")
            for row in reader.lines(most):
                rows_seen += 1
                place = f"{recorded_path(source.path)}:{reader.rows_read}"
                try:
                    if isinstance(row, Rejected):
                        raise BadExample(row.reason)
                    value = parse_object(reader.rows_read, row)
                    if isinstance(value, Rejected):
                        raise BadExample(value.reason)
                    value = in_trained_form(value)
                    turns = conversations.turns(value)
                except BadExample as error:
                    _reject(staging, place, str(error), options["on_error"] == "skip")
                    counts["rejected"] += 1
                    continue
                length = count_tokens(turns)
                if length > options["seq_len"]:
                    turns = _shortened(turns, length, place, options, counts)
                    if not turns:
                        continue
                held = options["holdout"] and is_held_out(trained_on(value), options["holdout"])
                writers[options["holdout_split"] if held else options["split"]].add(turns, row, "messages" in value)
                if bar.is_due():
                    tokens = sum(writer.tokens for writer in writers.values())
                    bar.update(done_bytes + reader.bytes_read, rows_seen, tokens, counts["rejected"])
            done_bytes += source.bytes
            records.append(SourceRecord(**asdict(source), sha256=reader.sha256))
    _check_rejected(staging, out, counts["rejected"], rows_seen, options)
    missing = {LEFT_OUT: counts[LEFT_OUT], "rejected": counts["rejected"]}
    built = {name: writer.finish(missing) for name, writer in writers.items()}
    _tell_of_forms(built.values(), conversations)
    if counts["rejected"]:
        (staging / REJECTED).rename(writers[options["split"]].folder / REJECTED)
    rejected = counts.pop("rejected")
    left_out = {reason: count for reason, count in counts.items() if count}
    return [write_manifest(plan, staging / name, built[name], records, rejected, left_out) for name in plan.splits]


def _tell_of_forms(splits: Collection[BuiltSplit], tokenizer: ConversationTokenizer) -> None:
    """Notes of what a model that learns these samples would do, and is seldom meant."""
    rows, messages = (sum(getattr(split, name) or 0 for split in splits) for name in ("documents", "conversations"))
    if 0 < messages < rows:
        told = f"{messages:,} (messages) went through the chat template, {rows - messages:,} (prompt and response) not"
        print(f"note: of the rows {told}: the model learns two forms.")
    end = tokenizer.end_without_a_token() if messages else None
    if end is not None:
        print(
            f"note: the chat template ends an answer with {end!r}, none of which is a token that ends a generation: a "
            "server goes on behind it. `python -m data_prep.chat_tokenizer` makes a tokenizer with a template that "
            "ends with EOS."
        )


def _settings_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the files beside tokenizer.json, by name."""
    return {name: sha256_of_file(folder / name) for name in SETTINGS if (folder / name).is_file()}


def _load_with_transformers(plan: Plan) -> Any:
    """The tokenizer that the plan names.

    Raises:
        PrepError: transformers cannot load it.
        Interrupted: its files changed since the plan was made, which transformers may have read already.
    """
    from transformers import AutoTokenizer  # only here: seconds

    folder = Path(plan.tokenizer.path).parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # whatever transformers says of a configuration
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PrepError(f"--tokenizer {folder}: transformers cannot load it: {reason}") from error
    found = (sha256_of_file(plan.tokenizer.path), _settings_of(folder))
    if found != (plan.tokenizer.sha256, plan.options["tokenizer_settings"]):
        raise changed_meanwhile(f"--tokenizer {folder}")
    return tokenizer


def _shortened(turns: list[Any], length: int, place: str, options: dict[str, Any], counts: dict[str, int]) -> list[Any]:
    """What is left of a sample that is too long; nothing: it is left out.

    Raises:
        PrepError: such samples are not to pass.
    """
    if options["too_long"] == "stop":
        raise PrepError(
            f"{place}: {length:,} tokens, more than --seq-len {options['seq_len']:,}. "
            "(--too-long truncate cuts such rows, --too-long drop leaves them out.)"
        )
    kept = truncated(turns, options["seq_len"]) if options["too_long"] == "truncate" else []
    counts[CUT if kept else LEFT_OUT] += 1
    return kept


def _reject(staging: Path, place: str, reason: str, skip: bool) -> None:
    if not skip:
        raise PrepError(f"{place}: {reason}. (--on-error skip leaves such rows out and lists them.)")
    with open(staging / REJECTED, "a", encoding="utf-8") as file:
        file.write(json.dumps({"place": place, "reason": reason}, ensure_ascii=False) + "\n")


def _check_rejected(staging: Path, out: Path, rejected: int, rows: int, options: dict[str, Any]) -> None:
    if rejected and rejected / rows > options["max_rejected"]:
        (staging / REJECTED).rename(out / REFUSED)
        raise PrepError(
            f"{rejected:,} of {rows:,} rows were rejected ({rejected / rows:.2%}), more than --max-rejected "
            f"{options['max_rejected']:g}; {out / REFUSED} lists them. Mend the input, or allow more."
        )


def _named_value(word: str) -> tuple[str, str]:
    refuse_not_utf8("--template-value ", word)
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise PrepError(f"--template-value {word}: expected NAME=VALUE, such as date_string='26 Jul 2024'.")
    if name in NOT_VARIABLES:
        raise PrepError(f"--template-value {word}: expected a variable of the chat template, and {name} is none.")
    return name, value


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, HOLD_MB)
    add = parser.add_argument
    add(
        "--seq-len", required=True, metavar="N", type=int, help="the most tokens a sample, prompts and answers together"
    )
    help_text = "what becomes of a longer sample: cut its end, leave it out, or fail (%(default)s)"
    add("--too-long", default=TOO_LONG[0], choices=TOO_LONG, help=help_text)
    help_text = "a variable of the chat template, such as date_string='26 Jul 2024'; may be repeated"
    add("--template-value", default=[], action="append", metavar="NAME=VALUE", help=help_text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":  # and not in a process that has imported this, and may need torch
    for name, value in _TOKENIZERS_ALONE.items():
        os.environ.setdefault(name, value)
    sys.exit(main())
