"""Text into MDS shards for pretraining: documents tokenised, joined end to end and cut into sequences.

    python -m data_prep.pretrain corpus.jsonl --out shards/ --tokenizer tokenizer/ --seq-len 2048 --holdout 0.05

takes JSON Lines, parquet and .txt, and writes shards/train and, from the held-out documents, shards/val: MDS shards,
index.json, manifest.json, and for the held-out part a copy of its documents. Nothing appears under those names before
all of it is written. The same command again does nothing; other options or input are refused until --overwrite is
given.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from data_prep.carrying_out import make_splits
from data_prep.cluster import RayTasks, connected
from data_prep.engines import NAMES, EngineSettings, choose_engine
from data_prep.errors import PrepError, exit_status
from data_prep.manifest import Manifest
from data_prep.options import add_common_options
from data_prep.part_task import PartSettings
from data_prep.parts import PART_BYTES, cut_into_parts
from data_prep.plan import Plan, checked_options, is_finished, what_to_replace
from data_prep.progress import RunProgress
from data_prep.publishing import exclusive, publish
from data_prep.rejects import REFUSED
from data_prep.sampling import sample_texts
from data_prep.sources import find_sources
from data_prep.splits import told_left_out
from data_prep.staging import remove_leftovers, resumable_staging
from data_prep.storage import is_remote, local_output
from data_prep.tasks import Worker
from data_prep.tokenising import choose_dtype, choose_separators, load_tokenizer
from data_prep.uploading import MADE_TO_COPY, RemoteOutput, marked_to_copy, remove_work, work_folder
from data_prep.workers import Executor, InProcess, WorkerProcesses, worth_starting
from data_prep.writing import ShardFormat


@dataclass
class Made:
    """What a run did, for its summary."""

    manifests: list[Manifest]
    progress: RunProgress
    engine: str
    workers: int
    resumed_parts: int


def run(arguments: argparse.Namespace) -> None:
    """The whole command: plan, compare with what is there, make, publish."""
    start = time.perf_counter()
    sources = find_sources(arguments.inputs)
    options = checked_options(arguments)
    tokenizer, facts = load_tokenizer(arguments.tokenizer)
    dtype = choose_dtype(arguments.dtype, facts.vocab_size)
    separators = choose_separators(
        tokenizer, facts, options["bos_text"], options["eos_text"], options["add_special_tokens"]
    )
    plan = Plan(sources, facts, separators, dtype, {**options, "dtype": dtype})
    ShardFormat(options["seq_len"], dtype)  # raises where a sequence is too long

    remote = RemoteOutput(arguments.out) if is_remote(arguments.out) else None
    out = work_folder(arguments.out, arguments.work) if remote else local_output(arguments.out)
    if remote is not None and not arguments.overwrite and remote.is_finished(plan):
        if (out / MADE_TO_COPY).exists():  # a run was killed when it had copied everything
            with exclusive(out):
                remove_work(out, plan.splits)
        print(f"{arguments.out}: already done with the same input and options; nothing to do.")
        return
    if remote is not None:
        remote.refuse_foreign(out, plan.splits)
    if _is_made(out, plan, arguments.overwrite, remote is not None):
        remove_leftovers(out, plan.made_from)
        if remote is None:
            print(f"{out}: already done with the same input and options; nothing to do.")
            return
    else:
        with exclusive(out), marked_to_copy(out, plan.splits) if remote else nullcontext():
            made = make(arguments, plan, tokenizer, out)
        print_summary(out, made, time.perf_counter() - start, arguments.usd_per_hour)
    if remote is not None:
        with exclusive(out):
            copied = remote.upload(out, plan.splits)
            remove_work(out, plan.splits)
        with suppress(OSError):  # the user keeps something else there
            out.rmdir()
        print(f"{arguments.out}: {copied / 1e6:,.1f} MB copied there, the manifest of {options['split']!r} last")


def _is_made(out: Path, plan: Plan, overwrite: bool, to_be_copied: bool) -> bool:
    """Whether the output is there. Where it is yet to be copied, --overwrite is about the copy."""
    if not overwrite:
        return is_finished(out, plan)
    try:
        return to_be_copied and is_finished(out, plan)
    except PrepError:
        return False


def make(arguments: argparse.Namespace, plan: Plan, tokenizer: Tokenizer, out: Path) -> Made:
    """Make and publish what the plan says in `out`, which this process holds."""
    sources, options = plan.sources, plan.options
    replaced = what_to_replace(out, plan, arguments.overwrite)
    sample = sample_texts(sources, options["text_key"])
    wanted = EngineSettings("", plan.tokenizer.path, plan.tokenizer.sha256, options["allow_special"])
    chosen, engine = choose_engine(arguments.encoder, wanted, tokenizer, sample, arguments.strict)
    settings = PartSettings(
        sources=sources,
        engine=chosen,
        separators=plan.separators,
        dtype="uint16" if plan.tokenizer.vocab_size <= 1 << 16 else "int32",  # of the parts: half the bytes
        text_key=options["text_key"],
        skip_bad_rows=options["on_error"] == "skip",
        holdout=options["holdout"],
        filters=plan.filters,
        most_held=round(arguments.hold_mb * 1e6),
    )
    part_bytes = round(arguments.part_mb * 1e6)
    parts = cut_into_parts(sources, part_bytes)
    total_bytes = sum(part.bytes for part in parts)
    with ExitStack() as stack:
        if arguments.engine == "ray":
            stack.enter_context(connected(arguments.ray_address))
        staging = stack.enter_context(resumable_staging(out, plan.made_from, part_bytes, arguments.overwrite))
        progress = stack.enter_context(RunProgress(total_bytes, options["split"]))
        executor: Executor
        workers = min(arguments.workers or worth_starting(total_bytes), len(parts))
        if arguments.engine == "ray":
            executor = RayTasks(settings, staging, progress.report, arguments.workers)
            workers = executor.cores
        elif workers > 1:
            del engine, tokenizer  # each worker has its own
            executor = WorkerProcesses(workers, settings, staging, progress.report)
            stack.callback(executor.close)
        else:
            executor = InProcess(Worker(settings, staging, engine), progress.report)
        manifests, resumed = make_splits(plan, parts, staging, out, executor, progress)
        publish(out, staging, plan.splits, replaced)
    (out / REFUSED).unlink(missing_ok=True)
    return Made(manifests, progress, chosen.name, workers, resumed)


def print_summary(out: Path, made: Made, seconds: float, usd_per_hour: float | None) -> None:
    """What was made, a line a split, and how fast."""
    for manifest in made.manifests:
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        print(
            f"{out / manifest.split}: {manifest.documents:,} documents, {manifest.text_bytes:,} bytes of text -> "
            f"{manifest.sequences:,} sequences of {manifest.seq_len:,} tokens = {manifest.tokens:,} tokens; "
            f"{len(manifest.shards)} shards, {megabytes:,.1f} MB of {manifest.dtype}; "
            f"{manifest.dropped_tokens:,} tokens left over at the end"
        )
    main = made.manifests[0]
    if told := told_left_out(main.left_out):
        print(told)
    tokens = sum(manifest.tokens + manifest.dropped_tokens for manifest in made.manifests)
    text_bytes = sum(manifest.text_bytes for manifest in made.manifests)
    rejected = f"; {main.rejected:,} rows rejected" if main.rejected else ""
    resumed = f"; {made.resumed_parts:,} parts were finished before" if made.resumed_parts else ""
    rate = made.progress.done.tokens / seconds
    print(
        f"{text_bytes / tokens:.2f} bytes/token; {seconds:.1f} s with {made.engine}, {made.workers} workers: "
        f"{rate:,.0f} tokens/s{rejected}{resumed}"
    )
    if usd_per_hour is not None and rate:
        dollars = usd_per_hour / 3600 / rate * 1e12
        print(f"${dollars:,.2f} per trillion tokens at ${usd_per_hour:g} an hour for this machine, at this rate")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    add = parser.add_argument
    add("--seq-len", required=True, metavar="N", type=int, help="tokens a sequence")
    add("--text-key", default="text", metavar="KEY", help="of the text in each object, or its column (%(default)s)")
    add("--eos-text", metavar="TEXT", help="its tokens go behind each document; '' for none (the tokenizer's EOS)")
    add("--bos-text", metavar="TEXT", help="its tokens go in front of each document (none)")
    add("--add-special-tokens", action="store_true", help="apply the tokenizer's own template to each document")
    add("--allow-special", action="store_true", help="let text that spells a special token become that token")
    help_text = "of the ids in the shards (%(default)s: uint16 where the vocabulary has at most 65,536 ids)"
    add("--dtype", default="auto", choices=("auto", "uint16", "int32"), help=help_text)
    add("--shuffle-seed", type=int, metavar="N", help="shuffle the documents of --split, the same way for the same N")
    add("--dedup", action="store_true", help="leave out documents whose text was there before")
    help_text = (
        "leave out texts that share with one before this part of the 5-word shingles that the two have together, "
        "such as 0.8 (off)"
    )
    add("--near-dedup", type=float, metavar="F", help=help_text)
    add("--min-chars", type=int, default=0, metavar="N", help="leave out shorter documents (%(default)s)")
    add("--max-chars", type=int, default=0, metavar="N", help="leave out longer documents (%(default)s: no limit)")
    help_text = "leave out documents for which this function of the row's object returns False"
    add("--filter", metavar="FILE.py:FUNCTION", help=help_text)
    add("--workers", type=_count, default=0, metavar="N", help="processes (one a core); same bytes for all")
    help_text = "who works: processes here, or the nodes of a Ray cluster, which must share the storage (%(default)s)"
    add("--engine", default="local", choices=("local", "ray"), help=help_text)
    help_text = "of the cluster (RAY_ADDRESS, or the one that this machine is a node of)"
    add("--ray-address", metavar="HOST:PORT", help=help_text)
    help_text = "what encodes; auto: the first of these that gives the ids of tokenizers on a sample (%(default)s)"
    add("--encoder", default="auto", choices=("auto", *NAMES), help=help_text)
    add("--strict", action="store_true", help="fail where a fast encoder gives other ids, instead of another encoder")
    add(
        "--part-mb",
        type=float,
        default=PART_BYTES / 1e6,
        metavar="N",
        help="input a task, and what a cut-off run loses (%(default).1f)",
    )
    help_text = "where the output of an --out that is a URL is made before it is copied (a folder in ~/.cache)"
    add("--work", metavar="DIR", help=help_text)
    add("--usd-per-hour", type=float, metavar="R", help="the machine's price, for dollars per trillion tokens")
    return parser


def _count(text: str) -> int:
    """A number of the command line, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    return exit_status(lambda: run(arguments), "goes on from what is finished")


if __name__ == "__main__":
    sys.exit(main())
