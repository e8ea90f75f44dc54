"""What the names of files and folders in a recipe may look like."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Mapping
from typing import Any

from recipes.config.keys import KeyPath, walk

RUN_NAMES = ("RUN_NAME", "COMPOSER_RUN_NAME")  # in the environment: what a recipe without a run_name is called
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of Linux
# Where checkpoints can be read and written: Composer's object stores (of MLflow, dbfs:/databricks/mlflow-tracking).
CHECKPOINT_SCHEMES = ("s3", "gs", "oci", "azure", "dbfs")
PATHS = {
    *("cache_dir", "data_dir", "dataset_uri", "local", "load_path", "prices_file", "pretrained_model_name_or_path"),
    *("remote", "results", "run_name", "save_folder", "save_filename", "save_latest_filename", "split"),
    *("code_paths", "data_files", "hf_name", "pretrained", "shards", "icl_tasks", "eval_gauntlet"),
}
# Those that Composer knows when it looks for files that a run would write over, where it may not.
_RANKS = {"rank", "local_rank", "world_size", "local_world_size", "node_rank"}
_MLFLOW = {"mlflow_experiment_id", "mlflow_run_id"}  # filled in where that logger runs
_COUNTS = {"epoch", "batch", "sample", "token", "batch_in_epoch", "sample_in_epoch", "token_in_epoch"}
_PLACEHOLDERS = {"run_name", "rank", "local_rank", "world_size", "local_world_size", "node_rank"}
_TIMES = {"epoch", "batch", "sample", "token", "iteration", "total_wct", "epoch_wct", "batch_wct"}
_TIMES |= {f"{name}_in_epoch" for name in ("batch", "sample", "token")}


def is_remote(path: Any) -> bool:
    """Whether a path leads into an object store; Databricks' own form, dbfs:/Volumes/…, has one slash."""
    text = str(path)
    return "://" in text or text.startswith("dbfs:/")


def names_of_files(recipe: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Names that no file can have, and places that no checkpoint can be put in."""
    for key, value in walk(recipe):
        name = key[-2] if isinstance(key[-1], int) and len(key) > 1 else key[-1]  # of a list, the list's
        if isinstance(value, str) and (name in PATHS or key[-2:] == ("tokenizer", "name")):
            yield from ((key, text) for text in _impossible(value))
    for name in ("save_folder", "load_path"):
        scheme, is_uri, rest = str(recipe.get(name) or "").partition(":/")
        if is_uri and (scheme not in CHECKPOINT_SCHEMES or not (rest.startswith("/") or scheme == "dbfs")):
            schemes = ", ".join(f"{known}://" for known in CHECKPOINT_SCHEMES)
            yield (name,), f"got {recipe[name]!r}, expected a folder of this machine, or one of {schemes}"
    for text in _leaving(str(recipe.get("run_name") or "")):
        yield ("run_name",), text
    of_files = _PLACEHOLDERS | _TIMES if recipe.get("save_overwrite") else _RANKS | _COUNTS
    of_folder = {"run_name"}  # in which a run looks for what it goes on from
    if is_remote(recipe.get("save_folder")):
        of_folder = _PLACEHOLDERS | (_MLFLOW if "mlflow" in (recipe.get("loggers") or {}) else set())
    named = {"save_folder": of_folder, "save_filename": of_files, "save_latest_filename": _PLACEHOLDERS}
    for name, known in named.items():
        if isinstance(recipe.get(name), str):
            yield from (((name,), text) for text in _placeholders(recipe[name], known))


def name_of_environment(recipe: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with the name that a launcher gives to a recipe without one, by the environment's variable."""
    given = [variable for variable in RUN_NAMES if os.environ.get(variable)]
    if given and not recipe.get("run_name"):
        name = os.environ[given[0]]
        yield from (((given[0],), text) for text in (*_impossible(name), *_leaving(name)))


def _leaving(name: str) -> Iterator[str]:
    if name.startswith("/") or ".." in name.split("/"):
        yield f"got {name!r}, which would leave the folder of the runs"


def _impossible(path: str) -> Iterator[str]:
    if path.startswith("~"):
        yield f"got {path!r}: ~ is the shell's; write the whole path"
    if "\0" in path:
        yield f"got {path!r}: no file name has a zero byte"
    longest = max((len(os.fsencode(part)) for part in path.split("/")), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        yield f"got a name of {longest:,} bytes in a path of {len(os.fsencode(path)):,}; {LONGEST_NAME} are possible"


def _placeholders(name: str, known: set[str]) -> Iterator[str]:
    try:
        parts = [part for part in string.Formatter().parse(name) if part[1] is not None]
        used = {str(field) for _, field, _, _ in parts}
    except ValueError as error:
        yield f"got {name!r}: {error}"
        return
    for _, field, form, conversion in parts:
        if form or conversion:
            yield f"got {name!r}: {{{field}}} alone is known, without a format"
    for unknown in sorted(used - known):
        names = ", ".join(f"{{{k}}}" for k in sorted(known))
        yield f"{{{unknown}}} is no placeholder; {names} {'are' if len(known) > 1 else 'is'}"
