"""A mixture of prepared sources as a data/ fragment of a recipe: LLM Foundry's streams, with proportions.

    python -m data_prep.mixture shards/web=0.7 shards/code=0.3 --tokens 20e9 --out yamls/data/web-code.yaml

Each SOURCE is the --out of a data_prep.pretrain run and its share of the tokens trained on; shares are made to sum to
1. What a source has less than its share is repeated: the epochs of each are told and written into the file.
"""

import argparse
import contextlib
import itertools
import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.durable import write_whole
from data_prep.errors import PrepError, exit_status, refuse_not_utf8
from data_prep.manifest import MANIFEST, ROLE_MAIN, Manifest, shard_problems
from data_prep.plan import read_manifest
from data_prep.storage import local_output

_MANY_EPOCHS = 4  # Muennighoff et al. 2023 (arXiv 2305.16264): up to 4 epochs are about as good as new text


@dataclass(frozen=True)
class Stream:
    """One source of a mixture: `share` of all tokens (0..1), `tokens` of it that a run reads."""

    folder: str
    name: str
    manifest: Manifest
    share: float
    tokens: float

    @property
    def epochs(self) -> float:
        return self.tokens / self.manifest.tokens


def plan_mixture(sources: Sequence[str], tokens: float | None) -> list[Stream]:
    """The streams; without `tokens`, as many are read as let no source be repeated.

    Raises:
        PrepError: a source that is not prepared, or that does not fit to the others.
    """
    given = [_parse(source) for source in sources]
    total = math.fsum(share for _, share in given)
    found = [(folder, _main_split(Path(folder)), share / total) for folder, share in given]
    _refuse_differences([(folder, manifest) for folder, manifest, _ in found])
    most = min(manifest.tokens / share for _, manifest, share in found)
    run_tokens = most if tokens is None else tokens
    names = _names([folder for folder, _, _ in found])
    return [
        Stream(folder, name, manifest, share, share * run_tokens)
        for name, (folder, manifest, share) in zip(names, found, strict=True)
    ]


def fragment(streams: Sequence[Stream], command: str) -> str:
    """The YAML of the fragment. Its epoch is the whole run: `epoch_size` samples, drawn anew in each."""
    first = streams[0].manifest
    samples = round(sum(stream.tokens for stream in streams) / first.seq_len)
    if samples < 1:
        raise PrepError(f"the tokens of the run are fewer than a sequence of {first.seq_len:,}; give more --tokens.")
    lines = [
        f"# {' + '.join(f'{stream.share:.3g} {stream.name}' for stream in streams)}: "
        f"{samples * first.seq_len:,} tokens in sequences of {first.seq_len:,}.",
        f"# Made with: {command}",
        "tokenizer:",
        f"  name: {quoted(_tokenizer_name(first))}",
        "  kwargs:",
        "    model_max_length: ${max_seq_len}",
        "",
        "train_loader:",
        "  name: text",
        "  dataset:",
        "    streams:",
    ]
    for stream in streams:
        epochs = f"{stream.tokens:,.0f} of {stream.manifest.tokens:,} tokens: {stream.epochs:.2f} epochs"
        lines += [
            f"      {quoted(stream.name)}: # {epochs}",
            f"        local: {quoted(stream.folder)}",
            f"        split: {quoted(stream.manifest.split)}",
            f"        proportion: {stream.share:.6g}",
        ]
    lines += [
        f"    epoch_size: {samples} # sequences",
        "    shuffle: true",
        "    shuffle_seed: ${seed}",
        "    max_seq_len: ${max_seq_len}",
        "  drop_last: true",
        "  num_workers: 8",
    ]
    return "\n".join([*lines, *_eval_loaders(streams)]) + "\n"


def _eval_loaders(streams: Sequence[Stream]) -> list[str]:
    """A loader for each source that has something held out: of one loader of all, some batches would be the first's."""
    lines = []
    for stream in streams:
        if len(stream.manifest.splits) > 1:
            lines += [
                f"  - label: {quoted(stream.name)}",
                "    name: text",
                "    dataset:",
                f"      local: {quoted(stream.folder)}",
                f"      split: {quoted(stream.manifest.splits[0])}",
                "      shuffle: false",
                "      max_seq_len: ${max_seq_len}",
                "    drop_last: false",
                "    num_workers: 8",
            ]
    return ["", "eval_loader: # metrics/eval/LABEL/… of each", *lines] if lines else []


def run(arguments: argparse.Namespace) -> None:
    """Plan, tell, write."""
    out = local_output(arguments.out)
    if out.suffix not in (".yaml", ".yml"):
        raise PrepError(f"--out {arguments.out}: expected a file named .yaml, which a recipe can include.")
    if out.exists() and not arguments.overwrite:
        raise PrepError(f"{out} is there already; give another --out, or --overwrite.")
    if arguments.tokens is not None and not 1 <= arguments.tokens < math.inf:
        raise PrepError(f"--tokens {arguments.tokens:g}: expected the tokens of a run, such as 20e9.")
    streams = plan_mixture(arguments.sources, arguments.tokens)
    words = [*arguments.sources, *([] if arguments.tokens is None else ["--tokens", f"{arguments.tokens:g}"])]
    command = " ".join(["python -m data_prep.mixture", *map(_in_a_comment, [*words, "--out", str(out)])])
    write_whole(out, fragment(streams, command))
    for stream in streams:
        note = (
            f"  (more than {_MANY_EPOCHS} epochs: repeated text teaches less)" if stream.epochs > _MANY_EPOCHS else ""
        )
        print(
            f"{stream.name}: {stream.share:.1%} = {stream.tokens:,.0f} tokens of {stream.manifest.tokens:,}: "
            f"{stream.epochs:.2f} epochs{note}"
        )
    if note := _note_of_holdouts(streams):
        print(note)
    print(f"{out}: {sum(stream.tokens for stream in streams):,.0f} tokens; include it in a recipe's include list")


def _in_a_comment(word: str) -> str:
    """A word of the command line, quoted where a shell wants it, without what ends a line or is none of YAML's."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in shlex.quote(word))
    return "".join(escaped)


def _parse(source: str) -> tuple[str, float]:
    refuse_not_utf8("", source)
    folder, equals, share = source.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if not equals or not folder or not (0 < value < 1e9):
        raise PrepError(f"{source}: expected FOLDER=SHARE with a share above 0, such as shards/web=0.7.")
    return folder.rstrip("/") or folder, value


def _main_split(folder: Path) -> Manifest:
    candidates = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    manifests = [(path.name, manifest) for path in candidates if (manifest := read_manifest(path))]
    found = [manifest for name, manifest in manifests if manifest.role == ROLE_MAIN and manifest.stands_at(name, name)]
    if len(found) != 1:
        names = ", ".join(manifest.split for manifest in found) or "none"
        raise PrepError(f"{folder}: expected the --out of one data_prep.pretrain run; its main splits: {names}.")
    problems = shard_problems(folder / found[0].split, found[0])
    if problems or not found[0].tokens:
        raise PrepError("\n  ".join([f"{folder} cannot be trained on:", *(problems or ["it has no tokens"])]))
    for name in found[0].splits[:-1]:
        held_out = read_manifest(folder / name)
        if held_out is None or (problems := shard_problems(folder / name, held_out)):
            what = problems or [f"{folder / name}/{MANIFEST}: missing"]
            raise PrepError("\n  ".join([f"{folder / name}, which is held out, is damaged:", *what]))
    if found[0].loss_tokens is not None:
        raise PrepError(f"{folder}: instruction data, which has no place in a mixture for pretraining.")
    return found[0]


def _refuse_differences(found: Sequence[tuple[str, Manifest]]) -> None:
    """Raises PrepError where sources were made with different tokenizers, lengths or separators."""
    first_folder, first = found[0]
    seen: set[Path] = set()
    for folder, manifest in found:
        if Path(folder).resolve() in seen:
            raise PrepError(f"{folder} is given twice.")
        seen.add(Path(folder).resolve())
        for what, one, other in (
            ("tokenizer", first.tokenizer.sha256[:12], manifest.tokenizer.sha256[:12]),
            ("--seq-len", str(first.seq_len), str(manifest.seq_len)),
            ("separator of documents", str(first.separators), str(manifest.separators)),
        ):
            if one != other:
                raise PrepError(f"{folder} and {first_folder} were made with another {what}: {other} and {one}.")


def _note_of_holdouts(streams: Sequence[Stream]) -> str:
    """That a document may be held out of one source and trained on in another; "": all hold out the same share."""
    fractions = [float(stream.manifest.options.get("holdout") or 0) for stream in streams]
    least, most = min(fractions), max(fractions)
    if least == most:
        return ""
    one, other = (streams[fractions.index(fraction)].name for fraction in (most, least))
    return (
        f"note: {one} was made with --holdout {most:g} and {other} with {least:g}: documents that are in both may be "
        "held out of the one and trained on in the other; give all sources the same."
    )


def _names(folders: Sequence[str]) -> list[str]:
    """A short name for each: its last part, with a number where two have the same."""
    names: list[str] = []
    for folder in folders:
        last = Path(folder).resolve().name or "root"
        base = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in last)
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([base], numbered) if name not in names))
    return names


def quoted(text: str) -> str:
    """A string as YAML has it: as it is where nothing in it means something else.

    Raises:
        PrepError: a recipe would put the value of a variable into it.
    """
    if "${" in text:
        raise PrepError(f"{text}: recipes take ${{...}} for a variable; give a name without it.")
    plain = re.fullmatch(r"[\w./-]+", text) and not text.startswith("-") and yaml.safe_load(text) == text
    with contextlib.suppress(ValueError):
        float(text)  # 1e5 is text to PyYAML and a number to others
        plain = False
    return text if plain else yaml.safe_dump(text, default_style='"', width=math.inf).rstrip("\n")


def _tokenizer_name(manifest: Manifest) -> str:
    path = Path(manifest.tokenizer.path)
    return str(path.parent if path.name == "tokenizer.json" else path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.mixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="FOLDER=SHARE", help="a prepared source and its share of the tokens")
    add("--out", required=True, metavar="FILE.yaml", help="the fragment to write")
    add("--tokens", type=float, metavar="N", help="tokens of the whole run (as many as need no repetition)")
    add("--overwrite", action="store_true", help="replace a file that is there")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
