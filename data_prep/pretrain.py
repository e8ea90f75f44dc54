"""JSONL into MDS shards for pretraining: documents tokenised, joined end to end and cut into sequences.

    python -m data_prep.pretrain corpus.jsonl --out shards/ --tokenizer tokenizer/ --seq-len 2048 --holdout 0.05

writes shards/train and, from the held-out documents, shards/val: MDS shards, index.json, manifest.json, and for the
held-out part a copy of its documents. Nothing appears under those names before all of it is written. The same command
again does nothing; other options or input are refused until --overwrite is given.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_prep.errors import exit_status
from data_prep.holdout import is_held_out
from data_prep.manifest import MANIFEST, FileRecord, Manifest, SourceRecord, TokenizerRecord
from data_prep.plan import HELD_OUT, MAIN, Plan, checked_options, is_finished, what_to_replace
from data_prep.progress import ProgressBar
from data_prep.publishing import exclusive, fresh_staging, publish, remove_leftovers
from data_prep.reading import Rejected, SourceReader
from data_prep.rejects import REJECTED, RejectedRows
from data_prep.sources import find_sources, sha256_of_file
from data_prep.splits import DOCUMENTS, BuiltSplit, SplitBuilder
from data_prep.tokenising import Engine, HuggingFaceEngine, choose_dtype, choose_separators, load_tokenizer
from data_prep.writing import INDEX, write_durably


def run(arguments: argparse.Namespace) -> None:
    """The whole command: plan, compare with what is there, make, publish."""
    out = Path(arguments.out).expanduser()
    sources = find_sources(arguments.inputs)
    options = checked_options(arguments)
    tokenizer, facts = load_tokenizer(arguments.tokenizer)
    dtype = choose_dtype(arguments.dtype, facts.vocab_size)
    add_special = options["add_special_tokens"]
    separators = choose_separators(tokenizer, facts, options["bos_text"], options["eos_text"], add_special)
    plan = Plan(sources, facts, separators, dtype, {**options, "dtype": dtype})

    if not arguments.overwrite and is_finished(out, plan):
        remove_leftovers(out)
        print(f"{out}: already done with the same input and options; nothing to do.")
        return
    with exclusive(out):
        replaced = what_to_replace(out, plan, arguments.overwrite)
        engine = HuggingFaceEngine(tokenizer, dtype, options["allow_special"], add_special)
        start = time.perf_counter()
        with fresh_staging(out) as staging:
            manifests = make_splits(plan, engine, staging, out)
            publish(out, staging, plan.splits, replaced)
        (out / REJECTED).unlink(missing_ok=True)  # the list of a run that failed
    print_summary(out, manifests, time.perf_counter() - start)


def make_splits(plan: Plan, engine: Engine, staging: Path, out: Path) -> list[Manifest]:
    """Read every source once and write every split, with its manifest, below `staging`."""
    options = plan.options
    builders = {
        name: SplitBuilder(
            staging / name, engine, plan.separators, options["seq_len"], plan.dtype, keep_rows=name != options["split"]
        )
        for name in plan.splits
    }
    main, held_out = builders[options["split"]], builders.get(options["holdout_split"])
    rejected = RejectedRows(staging, options["on_error"] == "skip", options["max_rejected"])
    records: list[SourceRecord] = []
    documents = done_bytes = 0
    with ProgressBar(sum(source.bytes for source in plan.sources), options["split"]) as bar:
        for source in plan.sources:
            reader = SourceReader(source, options["text_key"])
            for row in reader.rows():
                if isinstance(row, Rejected):
                    rejected.add(source.path, row)
                    continue
                documents += 1
                if held_out is not None and is_held_out(row.text, options["holdout"]):
                    held_out.add(row)
                else:
                    main.add(row)
                if bar.is_due():
                    tokens = sum(builder.tokens for builder in builders.values())
                    bar.update(done_bytes + reader.bytes_read, documents, tokens)
            done_bytes += source.bytes
            records.append(SourceRecord(**asdict(source), sha256=reader.sha256))
    rejected.finish(documents, main.folder, out)
    return [
        write_manifest(plan, builder.folder, builder.finish(), records, rejected.count) for builder in builders.values()
    ]


def write_manifest(plan: Plan, folder: Path, built: BuiltSplit, sources: list[SourceRecord], rejected: int) -> Manifest:
    """Record a finished split beside its index."""
    others = [folder / name for name in (DOCUMENTS, INDEX, REJECTED) if (folder / name).exists()]
    manifest = Manifest(
        split=folder.name,
        splits=plan.splits,
        role=MAIN if folder.name == plan.options["split"] else HELD_OUT,
        seq_len=plan.options["seq_len"],
        dtype=plan.dtype,
        documents=built.documents,
        text_bytes=built.text_bytes,
        sequences=built.sequences,
        tokens=built.tokens,
        dropped_tokens=built.dropped_tokens,
        rejected=rejected,
        tokenizer=TokenizerRecord(**asdict(plan.tokenizer)),
        separators=asdict(plan.separators),
        options=plan.options,
        sources=sources,
        shards=built.shards,
        files=[FileRecord(path.name, path.stat().st_size, sha256_of_file(path)) for path in others],
    )
    write_durably(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def print_summary(out: Path, manifests: Sequence[Manifest], seconds: float) -> None:
    """What was made, a line a split."""
    for manifest in reversed(manifests):
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        print(
            f"{out / manifest.split}: {manifest.documents:,} documents, {manifest.text_bytes:,} bytes of text -> "
            f"{manifest.sequences:,} sequences of {manifest.seq_len:,} tokens = {manifest.tokens:,} tokens; "
            f"{len(manifest.shards)} shards, {megabytes:,.1f} MB of {manifest.dtype}; "
            f"{manifest.dropped_tokens:,} tokens left over at the end"
        )
    tokens = sum(manifest.tokens + manifest.dropped_tokens for manifest in manifests)
    text_bytes = sum(manifest.text_bytes for manifest in manifests)
    rejected = f"; {manifests[-1].rejected:,} rows rejected" if manifests[-1].rejected else ""
    print(f"{text_bytes / tokens:.2f} bytes/token; {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s{rejected}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="a .jsonl, .jsonl.gz or .jsonl.zst file, a folder of them or a glob")
    add("--out", required=True, metavar="DIR", help="the folder that gets DIR/<split>")
    add(
        "--tokenizer",
        required=True,
        metavar="T",
        help="a folder with tokenizer.json, that file, or a Hugging Face name",
    )
    add("--seq-len", required=True, metavar="N", type=int, help="tokens a sequence")
    add("--split", default="train", metavar="NAME", help="the folder below --out (%(default)s)")
    help_text = "the share of documents kept out of --split, chosen by the SHA-256 of their text (%(default)s)"
    add("--holdout", default=0.0, metavar="F", type=float, help=help_text)
    add("--holdout-split", default="val", metavar="NAME", help="the folder for those (%(default)s)")
    add("--text-key", default="text", metavar="KEY", help="the key of the text in each object (%(default)s)")
    add("--eos-text", metavar="TEXT", help="its tokens go behind each document; '' for none (the tokenizer's EOS)")
    add("--bos-text", metavar="TEXT", help="its tokens go in front of each document (none)")
    add("--add-special-tokens", action="store_true", help="apply the tokenizer's own template to each document")
    add("--allow-special", action="store_true", help="let text that spells a special token become that token")
    help_text = "of the ids in the shards (%(default)s: uint16 where the vocabulary has at most 65,536 ids)"
    add("--dtype", default="auto", choices=("auto", "uint16", "int32"), help=help_text)
    help_text = "a row that is no document: stop, or leave it out and list it in rejected.jsonl (%(default)s)"
    add("--on-error", default="stop", choices=("stop", "skip"), help=help_text)
    add("--max-rejected", default=0.01, metavar="F", type=float, help="fail above this share of rows (%(default)s)")
    add("--overwrite", action="store_true", help="replace what an earlier run of this command made there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
