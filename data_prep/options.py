"""The options that the commands which write shards have in common."""

import argparse

HOLD_MB = 12  # of a row, where it has to be in memory as a whole; a word of so many letters takes 0.3 GB


def add_common_options(parser: argparse.ArgumentParser, hold_mb: float = HOLD_MB) -> None:
    """What is read and written, what is held out, and what becomes of bad rows."""
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="files, folders of them, globs or URLs of these; see the README")
    add("--out", required=True, metavar="DIR", help="the folder that gets DIR/<split>")
    help_text = "a folder with tokenizer.json, that file, or a Hugging Face name"
    add("--tokenizer", required=True, metavar="T", help=help_text)
    add("--split", default="train", metavar="NAME", help="the folder below --out (%(default)s)")
    help_text = "the share of the input kept out of --split, chosen by the SHA-256 of each document (%(default)s)"
    add("--holdout", default=0.0, metavar="F", type=float, help=help_text)
    add("--holdout-split", default="val", metavar="NAME", help="the folder for those (%(default)s)")
    help_text = "a row that cannot be trained on: stop, or leave it out and list it in rejected.jsonl (%(default)s)"
    add("--on-error", default="stop", choices=("stop", "skip"), help=help_text)
    add("--max-rejected", default=0.01, metavar="F", type=float, help="fail above this share of rows (%(default)s)")
    help_text = "the longest row that may be in memory as a whole where it has to be; longer ones are bad (%(default)s)"
    add("--hold-mb", default=hold_mb, metavar="N", type=float, help=help_text)
    add("--overwrite", action="store_true", help="replace what an earlier run of this command made there")
