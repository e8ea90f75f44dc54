"""A plan carried out: parts tokenised, put in order, and written as splits with their manifests."""

from dataclasses import asdict
from pathlib import Path

from data_prep.errors import PrepError
from data_prep.manifest import Manifest, SourceRecord
from data_prep.ordering import Ordered, order_by_document, order_by_part
from data_prep.part_files import HELD, MAIN, DocumentTables, PartFacts, load_part, table_type
from data_prep.part_task import BadRow
from data_prep.parts import Part, whole_sources
from data_prep.plan import Plan
from data_prep.progress import RunProgress
from data_prep.rejects import REJECTED, RowNumbers, list_rejected
from data_prep.split_manifest import write_manifest
from data_prep.splits import build_splits, shard_bytes
from data_prep.tasks import ORDERS, PARTS, HashTask, PartTask, Task, read_record, source_digests
from data_prep.workers import Executor


def make_splits(
    plan: Plan, parts: list[Part], staging: Path, out: Path, executor: Executor, progress: RunProgress
) -> tuple[list[Manifest], int]:
    """Tokenise the parts that are not finished, then write every split, with its manifest, below `staging`.

    Returns:
        the manifests, and how many parts an earlier run had finished.
    """
    options = plan.options
    numbers = RowNumbers(plan.sources, parts)
    facts, resumed = tokenise(plan, parts, staging, executor, progress, numbers)
    rejected_rows = list_rejected(staging, staging / PARTS, numbers, facts, options["max_rejected"], out)
    ordered = order(plan, staging, facts)
    names = {MAIN: options["split"], **({HELD: options["holdout_split"]} if options["holdout"] else {})}
    left_out: dict[str, int] = dict(ordered.left_out)
    for part in facts:
        for reason, count in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    progress.begin_writing(shard_bytes(names, ordered, plan.dtype))
    built = build_splits(staging, names, ordered, options["seq_len"], plan.dtype, executor, left_out)
    if rejected_rows is not None:
        rejected_rows.rename(staging / names[MAIN] / REJECTED)
    digests = source_digests(staging, facts, len(plan.sources))
    records = [SourceRecord(**asdict(source), sha256=digests[number]) for number, source in enumerate(plan.sources)]
    rejected = sum(part.rejected for part in facts)
    manifests = [
        write_manifest(plan, staging / names[split], content, records, rejected, left_out)
        for split, content in built.items()
    ]
    return manifests, resumed


def tokenise(
    plan: Plan, parts: list[Part], staging: Path, executor: Executor, progress: RunProgress, numbers: RowNumbers
) -> tuple[list[PartFacts], int]:
    """Do the parts that are not finished, and the hashes of the sources that are cut.

    Raises:
        PrepError: the first row of the input that is no document, and what the tasks raise.
    """
    finished = [load_part(staging / PARTS, part.number) for part in parts]
    tasks: list[Task] = [PartTask(part) for part, facts in zip(parts, finished, strict=True) if facts is None]
    hashed = whole_sources(parts, plan.sources)
    tasks += [
        HashTask(number)
        for number in range(len(plan.sources))
        if number not in hashed and read_record(staging, f"source.{number}") is None
    ]
    progress.skip(sum(part.bytes for part, facts in zip(parts, finished, strict=True) if facts is not None))
    try:
        executor.run(tasks)
    except BadRow as row:
        for number in range(row.part):
            facts = load_part(staging / PARTS, number)
            assert facts is not None  # parts are begun in their order, and what is begun is ended
            numbers.pass_part(number, facts)
        place = numbers.place(row.part, row.segment, row.line)
        raise PrepError(f"{place}: {row.reason}. (--on-error skip leaves such rows out and lists them.)") from None
    loaded = [load_part(staging / PARTS, part.number) for part in parts]
    found = [facts for facts in loaded if facts is not None]
    assert len(found) == len(parts)
    return found, sum(facts is not None for facts in finished)


def order(plan: Plan, staging: Path, facts: list[PartFacts]) -> Ordered:
    """Which documents go into the splits, in which order."""
    similarity, seed = plan.options.get("near_dedup"), plan.options.get("shuffle_seed")
    dedup = plan.options.get("dedup", False)
    if not dedup and similarity is None and seed is None:
        return order_by_part(facts, staging / ORDERS)
    tables = DocumentTables(staging / PARTS, len(facts), table_type(dedup, similarity is not None))
    return order_by_document(tables, staging / ORDERS, dedup, similarity, seed)
