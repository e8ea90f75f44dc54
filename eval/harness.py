"""lm-evaluation-harness on a Composer checkpoint as it is, with its own kernels, or on a Hugging Face folder.

    python -m eval.harness runs/mpt-quickstart --tasks sotu_cloze --include yamls/eval/harness
    python -m eval.harness runs/mpt-7b/checkpoints/ep0-ba9000 --tasks arc_easy piqa --num-fewshot 5
    composer -n 2 -m eval.harness exports/mpt-7b --tasks mmlu
    python -m eval.harness runs/mpt-7b-instruct --tasks ifeval --apply-chat-template

MODEL is a run folder, a checkpoint (full, or the folder of a sharded one) or a Hugging Face folder. A task is a
name that the harness knows, or one from YAML files of your own (--include FOLDER), which need no network.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval import results
from eval.cache import SCORING, AnswerCache
from eval.digests import data_versions, file_digest, model_digest
from eval.harness_chat import PLAIN, Asking, check_template
from eval.harness_file import refuse_fewer_examples, refuse_other_models, with_earlier_tasks
from eval.harness_index import YAML, files_of
from eval.questions import ScoringError
from eval.tasks.rows import TaskError
from recipes.config.keys import RecipeError
from recipes.preflight.gpu import has_gpu
from recipes.preflight.machine import can_be_written
from recipes.ranks import is_first_rank, local_world_size, world_size
from recipes.run_files import HARNESS, RUNS
from recipes.screen import exit_status
from recipes.training.startup import light_imports
from recipes.weights.trained import find_trained, is_hf_folder

PRECISIONS = ("fp32", "amp_bf16", "amp_fp16")
# seconds that processes wait for another: for checksums of a large checkpoint, for the slowest batch that generates
DIST_TIMEOUT = 3600.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="names, or YAML files")
    parser.add_argument("--include", nargs="*", type=Path, default=[], metavar="FOLDER", help="with task YAML files")
    parser.add_argument("--num-fewshot", type=int, help="examples before each question (default: the task's own)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a batch (default 32)")
    parser.add_argument("--limit", type=int, help="examples of each task, from the first (default: all)")
    parser.add_argument("--apply-chat-template", action="store_true", help="ask as the user's turn of a conversation")
    parser.add_argument("--system-instruction", metavar="TEXT", help="stands first, in a conversation as its own turn")
    parser.add_argument(
        "--fewshot-as-multiturn",
        action=argparse.BooleanOptionalAction,
        help="examples before a question are turns of their own (default in a conversation)",
    )
    parser.add_argument("--max-length", type=int, help="tokens that the model reads (default: its own context)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: amp_bf16 on a GPU, else fp32")
    parser.add_argument("--tokenizer", help="default: the model's own")
    parser.add_argument("--recipe", type=Path, help="of a checkpoint that is not in its run folder")
    parser.add_argument(
        "--out", type=Path, help="the results (default: harness.json in the run folder or runs/eval-MODEL)"
    )
    parser.add_argument("--show-prompts", action="store_true", help="print the first example of each task, and stop")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except (RecipeError, TaskError, ScoringError, ValueError) as error:
        if is_first_rank():
            print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        print(
            "error: lm-evaluation-harness is not installed: `make setup` has it; with pip: pip install lm-eval==0.4.13",
            file=sys.stderr,
        )
        return 1


def _run(chosen: argparse.Namespace) -> int:
    for name, value in (
        ("--batch-size", chosen.batch_size),
        ("--limit", chosen.limit),
        ("--max-length", chosen.max_length),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    if chosen.fewshot_as_multiturn and not chosen.apply_chat_template:
        raise ValueError("--fewshot-as-multiturn: there are turns in a conversation alone: give --apply-chat-template")
    if chosen.num_fewshot is not None and chosen.num_fewshot < 0:
        raise ValueError(f"--num-fewshot: got {chosen.num_fewshot}, expected 0 or more")
    digest, checkpoint, out = _identify(chosen)
    asked = _digest_of_question(chosen, digest)
    found = None if chosen.show_prompts else results.finished(out, asked)
    if not chosen.show_prompts and _is_done(found):
        if found is not None and is_first_rank():
            print("evaluated before: same model, same tasks")
            results.show(out, found)
        return 0

    if not chosen.show_prompts:
        refuse_other_models(out, digest, _version())
        if not can_be_written(out):
            raise ValueError(f"--out: {out} cannot be written; name a file in a folder of yours")
        out.parent.mkdir(parents=True, exist_ok=True)
    with light_imports():
        import lm_eval.evaluator  # noqa: F401

        from eval import harness_results, harness_tasks
        from recipes.talking.loading import load_model, load_words

    _quiet()
    asking = Asking.of(vars(chosen))
    words = load_words(chosen.model, chosen.tokenizer, chosen.recipe) if asking.apply_chat_template else None
    if asking.apply_chat_template:
        check_template(words, "--apply-chat-template")
    loaded = harness_tasks.load_tasks(chosen.tasks, chosen.include, chosen.num_fewshot)
    if chosen.show_prompts:
        for name, prompt, answer in harness_tasks.prompts(loaded, asking, words) if is_first_rank() else []:
            print(f"--- {name}, example 1\n{prompt}⏎{answer}")
        return 0
    refuse_fewer_examples(out, harness_results.examples_of(loaded, asking), chosen.limit)
    rank = _join_processes()
    start = time.monotonic()
    model = load_model(chosen.model, chosen.tokenizer, chosen.recipe)
    length = chosen.max_length or model.max_seq_len
    if length > model.max_seq_len:
        raise ValueError(f"--max-length: got {length}, expected at most the {model.max_seq_len} that the model reads")
    lm = language_model(
        model.model,
        model.tokenizer,
        length,
        chosen.batch_size,
        chosen.precision,
        functools.partial(AnswerCache, out.parent, digest, rank=rank),
        asking.apply_chat_template,
    )
    tasks, examples = harness_results.evaluate(lm, loaded, chosen.limit, asking)
    if is_first_rank():
        entry = {
            "name": chosen.model.name,
            "checkpoint": str(checkpoint),
            "digest": digest,
            "tasks": tasks,
            "seconds": round(time.monotonic() - start, 3),
        }
        data = {name: data_versions(name) for name in harness_tasks.hub_data(loaded)}
        content = {"digest": asked, "harness": _version(), "data": data, "models": [entry]}
        records = [{"model": entry["name"], **example} for example in examples]
        content, all_records = with_earlier_tasks(out, content, records)
        results.write(out, content, all_records)
        results.show(out, content)
    return 0


def language_model(
    model: Any,
    tokenizer: Any,
    max_length: int,
    batch_size: int,
    precision: str | None = None,
    cache: Any = lambda digest: None,
    chats: bool = False,
) -> Any:
    """The harness's `LM` over a causal model in memory; precision: one of PRECISIONS, by default that of the device."""
    import torch

    from eval.backbone import Backbone
    from eval.harness_lm import ScoringLM
    from eval.progress import bar

    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, which the harness begins an empty context with")
    device = next(model.parameters()).device.type
    precision = precision or ("amp_bf16" if device == "cuda" else "fp32")
    kinds = {"fp32": None, "amp_bf16": torch.bfloat16, "amp_fp16": torch.float16}
    dtype = kinds[precision]
    autocast = functools.partial(torch.autocast, device, dtype=dtype, enabled=dtype is not None)
    backbone = Backbone(model, max_length, autocast)
    return ScoringLM(lambda: backbone, tokenizer, max_length, batch_size, cache, bar, chats)


def _identify(chosen: argparse.Namespace) -> tuple[str, Path, Path]:
    """The model's digest, the folder or the checkpoint that it is, and where its results go."""
    path = chosen.model
    default = "amp_bf16" if has_gpu() else "fp32"  # as _language_model chooses
    more = {"precision": chosen.precision or default, "max_length": chosen.max_length, "tokenizer": chosen.tokenizer}
    if path.is_dir() and is_hf_folder(path):
        weights, folder = path, Path(RUNS) / f"eval-{path.name}"
        tokenizer = None
    else:
        trained = find_trained(path, chosen.recipe)
        weights, more["model"] = trained.checkpoint, dict(trained.model)
        folder = trained.run or Path(RUNS) / f"eval-{path.stem}"
        tokenizer = Path(str(trained.recipe.get("tokenizer.name")))
    tokenizer = Path(chosen.tokenizer) if chosen.tokenizer else tokenizer
    digest = model_digest(weights, more, tokenizer if tokenizer is not None and tokenizer.is_dir() else None)
    return digest, weights, chosen.out or folder / HARNESS


def _digest_of_question(chosen: argparse.Namespace, model: str) -> str:
    """Over the model, the options and, for tasks of one's own, the files that say what is asked."""
    files = [path for folder in chosen.include if folder.is_dir() for path in sorted(folder.rglob("*"))]
    files += [Path(name) for name in chosen.tasks]
    named = {path for task in files if task.suffix in YAML for path in files_of(task)}
    contents = {str(path): file_digest(path) for path in {*files, *named} if path.is_file()}
    options = [chosen.tasks, chosen.num_fewshot, chosen.limit, chosen.batch_size, _version(), SCORING]
    if Asking.of(vars(chosen)) != PLAIN:
        options.append(asdict(Asking.of(vars(chosen))))
    return hashlib.sha256(json.dumps([model, options, contents], sort_keys=True).encode()).hexdigest()


def _is_done(found: Mapping[str, Any] | None) -> bool:
    """Whether these results, if there are any, still hold, as rank 0 sees it: its data is what was scored."""
    is_done = found is not None and _is_of_data_here(found)
    if world_size() == local_world_size():
        return is_done
    with light_imports():
        from recipes.training.processes import as_first_rank_sees
    _join_processes()
    return as_first_rank_sees(is_done)


def _is_of_data_here(found: Mapping[str, Any]) -> bool:
    """Whether no other version of the hub's data has come into the cache since these results were made."""
    known = found.get("data")  # older results have none
    return isinstance(known, Mapping) and all(set(data_versions(n)) <= set(versions) for n, versions in known.items())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"lm_eval {version('lm_eval')}"
    except PackageNotFoundError:
        return "lm_eval is not installed"


def _join_processes() -> int:
    """Join the group that a launcher started, if one did; this process's number."""
    if world_size() < 2:
        return 0
    from composer.utils import dist, get_device

    dist.initialize_dist(get_device(None), timeout=DIST_TIMEOUT)
    return dist.get_global_rank()


def _quiet() -> None:
    import logging

    import datasets

    datasets.disable_progress_bars()
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(exit_status(main, "goes on behind the answers that are kept"))
