"""JSONL into a tokenizer (`data_prep.tokenizer`) and into MDS shards (`data_prep.pretrain`, `data_prep.verify`).

One subject a file, none of which imports torch, transformers or streaming, so that every command starts at once:

    plan.py             what a run will do, and how that stands to what is there
    sources.py          which files are the input, and what identifies them
    reading.py          bytes on disk -> documents, or the reason a row is not one
    rejects.py          what becomes of such rows
    holdout.py          which documents are kept out of training
    tokenising.py       documents -> token ids, by an engine that can be swapped
    tokenizer_files.py  where a tokenizer is
    windows.py          token ids -> sequences of one length
    splits.py           one split while it is made, out of the two above and the one below
    writing.py          sequences -> MDS shards
    manifest.py         what a finished split says about itself
    publishing.py       one run at a time, and nothing half-written under the final name
    progress.py         the bar on a terminal
    errors.py           what the user did, in words, instead of a traceback
"""
