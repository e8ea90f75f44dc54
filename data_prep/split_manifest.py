"""What a finished split holds, and its manifest."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_prep.durable import write_durably
from data_prep.manifest import MANIFEST, ROLE_HELD_OUT, ROLE_MAIN, FileRecord, Manifest, SourceRecord
from data_prep.plan import Plan
from data_prep.rejects import REJECTED
from data_prep.sources import recorded_path, sha256_of_file
from data_prep.writing import INDEX

DOCUMENTS = "documents.jsonl"


@dataclass(frozen=True)
class BuiltSplit:
    """What a finished split holds."""

    documents: int
    text_bytes: int  # in UTF-8
    sequences: int
    tokens: int  # in the sequences
    dropped_tokens: int  # at the end, fewer than one sequence
    shards: list[FileRecord]
    loss_tokens: int | None = None  # of instruction data: those that the loss is on
    conversations: int | None = None  # of instruction data: samples that a chat template wrote


def write_manifest(
    plan: Plan,
    folder: Path,
    built: BuiltSplit,
    sources: list[SourceRecord],
    rejected: int,
    left_out: dict[str, int],
) -> Manifest:
    """Record a finished split beside its index.

    Args:
        left_out: by reason, the documents of the whole input that are in no split.
    """
    others = [folder / name for name in (DOCUMENTS, INDEX, REJECTED) if (folder / name).exists()]
    manifest = Manifest(
        **vars(built),
        split=folder.name,
        splits=plan.splits,
        role=ROLE_MAIN if folder.name == plan.options["split"] else ROLE_HELD_OUT,
        seq_len=plan.options["seq_len"],
        dtype=plan.dtype,
        rejected=rejected,
        tokenizer=plan.tokenizer,
        separators=asdict(plan.separators),
        options=plan.options,
        sources=[replace(source, path=recorded_path(source.path)) for source in sources],
        left_out=left_out,
        files=[FileRecord(path.name, path.stat().st_size, sha256_of_file(path)) for path in others],
    )
    write_durably(folder / MANIFEST, manifest.to_json().encode())
    return manifest
