"""Text into a tokenizer (`data_prep.tokenizer`), into MDS shards (`pretrain`, `finetune`) and into what is told of them
(`inspect`, `verify`, `mixture`).

One subject a file. No command imports torch or, but for copies to s3:// and the like, streaming; finetune alone imports
transformers, and keeps it from importing torch: commands start at once.

    options.py          what the commands ask for in common
    plan.py             what a run will do, and how that stands to what is there
    sources.py          which files are the input, and what identifies them
    storage.py          files here and behind URLs
    parts.py            the input cut into parts
    readers.py          the reader of each format: reading.py for lines, formats.py for parquet and text
    reading.py          bytes on disk -> rows; rows.py: the document in one, or the reason that there is none
    long_rows.py        rows that are too long to hold
    rejects.py          what becomes of such rows
    holdout.py          which documents are kept out of training
    curation.py         which are left out; near_duplicates.py finds those that are alike
    tokenising.py       what a tokenizer is, and the reference engine
    engines.py          the fast engines and the check of their ids; newer_characters.py: where one of them is not exact
    sampling.py         the documents that they are checked on
    long_texts.py       long documents in pieces
    tokenizer_files.py  where a tokenizer is
    windows.py          documents' ids joined end to end
    part_task.py        one part tokenised; part_files.py: what it leaves on the disk
    ordering.py         which documents go into a split, in which order; sorting.py: what it sorts, on the disk
    extents.py          the stream of a split
    splits.py           the splits made out of finished parts; split_manifest.py: what each holds, and its manifest
    tasks.py            the kinds of tasks; workers.py: who does them here; cluster.py: a Ray cluster does them
    carrying_out.py     a plan carried out
    writing.py          sequences -> MDS shards; mds.py reads them
    instruction_forms.py  the forms that instruction data is published in; instruction_split.py: a split of it
    conversations.py    instruction data -> turns of ids; chat_tokenizer.py: a tokenizer that has a template for them
    manifest.py         what a finished split says about itself
    staging.py          what a run that was cut off leaves, for the next to go on from
    durable.py          files that are on the disk, and files replaced as a whole
    publishing.py       one run at a time, and nothing half-written under the final name
    uploading.py        a finished output in an object store
    progress.py         the bar on a terminal
    errors.py           what the user did, in words, instead of a traceback
"""

import os
import sys

# While Python looks for the module of `python -m data_prep.…`, and never when the package is imported. NumPy's BLAS,
# which nothing here uses, would start a thread a core in each worker too, and they spin for 0.05 s each.
if sys.argv[:1] == ["-m"]:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
