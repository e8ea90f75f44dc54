"""What the commands print for a person: problems, the resolved recipe, the plan. Pure Python, quick to import."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from recipes.config.evaluation_rules import evaluation_notes
from recipes.config.keys import Problem, RecipeError
from recipes.config.load import Recipe
from recipes.cost.architecture import OURS
from recipes.cost.parameters import count_parameters
from recipes.planning.budget import EXIT_BUDGET
from recipes.preflight.gpu import has_gpu, unusable
from recipes.preflight.resuming import resume_notes
from recipes.ranks import end_with_launcher, is_first_of_machine, is_first_rank
from recipes.reports.runs import run_folder, run_name
from recipes.training.batches import Batches, longest_sample, sequences_per_epoch
from recipes.training.learning_rate import warmup_is_longer
from recipes.weights.hf_architecture import CLASSES, family_of
from recipes.weights.hf_refusals import refusals

FIRST_RANK_SPEAKS_S = 20  # within this long of another rank, on a loaded machine


def usage(documentation: str | None, arguments: Sequence[str]) -> int:
    """Print a script's documentation; 0 when it was asked for, 2 when the arguments were missing."""
    asked = bool(arguments)
    print((documentation or "").strip(), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def print_problems(title: str, problems: Sequence[Problem]) -> int:
    """Print problems to stderr, once for all ranks; the exit code is 1.

    The launcher ends the first rank when another one fails before it has spoken. So the others wait for their end, and
    speak themselves if it does not come: then the first rank has no such problem.
    """
    if not is_first_rank():
        time.sleep(FIRST_RANK_SPEAKS_S)
    count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
    print(f"\nerror: {title}: {count}", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)
    sys.stderr.flush()
    return 1


def print_stop(text: str, code: int) -> int:
    """Say on stderr, once for all ranks, why a run ended before its time; its exit code.

    Only the first rank of a node has it: the launcher takes the first code that is not 0, and ends a process that has
    not yet written what it has to when another exits with one.
    """
    if is_first_rank():
        print(f"\n{text}", file=sys.stderr, flush=True)
    return code if is_first_of_machine() else 0


def print_too_dear(why: str) -> int:
    return print_stop(f"budget guard: this run may not start: {why}", EXIT_BUDGET)


def print_recipe(recipe: Recipe) -> None:
    print(f"# {recipe.path}, resolved")
    print(recipe.to_yaml())


def exit_status(main: Callable[[list[str]], int], goes_on: str) -> int:
    """Of a program: what `main` gives, or 130 with words after Ctrl-C, 143 after SIGTERM; it ends with its launcher.

    goes_on: what the same command then does.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as Composer has it, once imported
    try:
        end_with_launcher()
        code = main(sys.argv[1:])
        sys.stdout.flush()
        return code
    except RecipeError as error:  # of the environment
        return print_problems("this cannot begin", error.problems)
    except BaseException as end:
        if isinstance(end, BrokenPipeError) and _nobody_reads():
            return 1
        stopped = _code_of(end)
        if stopped is None:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # said again, it would break off what ends
        if is_first_rank():
            print(f"\nstopped; the same command {goes_on}", file=sys.stderr)
        return stopped


def _nobody_reads() -> bool:
    """Whether what this program prints goes into a pipe whose reader has had enough, as `head`; then it is let go."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its exit
        return True
    return False


def _code_of(end: BaseException) -> int | None:
    """130 after Ctrl-C, also where what it broke off fails in ending, as torch's writer does; 143 after SIGTERM."""
    if isinstance(end, SystemExit):
        return end.code if end.code in (130, 143) else None  # type: ignore[return-value]
    behind: BaseException | None = end
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            return 130
        behind = behind.__cause__ or behind.__context__
    return None


def tell(say: Callable[[Any], Any], about: Any) -> None:
    """Call `say(about)` at the end of a run, which is done whatever cannot be said of it."""
    try:
        say(about)
    except (OSError, ValueError) as error:
        print(f"note: {error}", file=sys.stderr)


def print_plan(recipe: Recipe, batches: Batches, missing: Sequence[Problem]) -> None:
    """What would run: model, tokens, steps, batch arithmetic, and what this machine lacks for it."""
    rows = [("run", run_name(recipe)), ("model", _model(recipe)), ("step", str(batches))]
    each = batches.tokens_per_step // batches.sequences_per_step
    most = "" if recipe.get("train_loader.name") == "text" else "up to "  # others pad
    arithmetic = f"{batches.sequences_per_step} {batches.items} × {most}{each:,}"
    rows.append(("", f"{arithmetic} = {most}{batches.tokens_per_step:,} tokens a step"))
    if batches.steps is None:
        rows.append(("length", f"{recipe['max_duration']}; steps depend on the data, which is not here"))
    else:
        rows.append(("length", f"{recipe['max_duration']} = {batches.steps:,} steps = {most}{batches.tokens:,} tokens"))
        sequences = sequences_per_epoch(recipe)
        if sequences:
            epochs = batches.steps * batches.sequences_per_step / sequences
            packed = recipe.get("train_loader.dataset.packing_ratio")
            of = f" ({packed:g} examples each)" if packed else ""
            rows.append(("data", f"{sequences:,} {batches.items}{of}, so {epochs:,.3g} epochs"))
            there, read = longest_sample(recipe.get("train_loader.dataset", {})), int(recipe["max_seq_len"])
            if there is not None and there > read:
                rows.append(("", f"of each the first {read:,} tokens; the other {there - read:,} are never read"))
    if warmup_is_longer(recipe):
        text = f"the warm-up of {recipe['scheduler']['t_warmup']} is longer: the learning rate stays below optimizer.lr"
        rows.append(("", text))
    rows.append(("device", "GPU" if has_gpu() else f"CPU ({unusable() or 'no GPU on this machine'})"))
    rows.append(("files", str(run_folder(recipe))))
    if recipe["model"]["name"] in OURS:
        refused = [f"{key}: {why}" for key, why in refusals(recipe["model"])]
        rows.append(("export", f"none: {refused[0]}" if refused else CLASSES[family_of(recipe["model"])]))
    for name, text in rows:
        print(f"{name:>8}  {text}")
    if missing and recipe.get("dry_run"):
        print("\nThe recipe is sound. On this machine a run would stop at:")
        for problem in missing:
            print(f"  {problem}")
    elif recipe.get("dry_run"):
        print("\nThe recipe is sound, and this machine has what it needs.")
    sys.stdout.flush()


def print_notes(recipe: Recipe, of_budget: str | None) -> None:
    """What a run of this recipe may do, and somebody may not expect."""
    for note in (*resume_notes(recipe), *evaluation_notes(recipe.values), *([of_budget] if of_budget else [])):
        print(f"\nnote: {note}")


def _model(recipe: Recipe) -> str:
    model = recipe["model"]
    if model["name"] not in OURS:
        return f"{model['name']} {model.get('pretrained_model_name_or_path', '')}".strip()
    try:
        count = count_parameters(model)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{model['name']}; parameters of this kind of layer are not counted here"
    return f"{model['name']}, {count.total:,} parameters ({count.non_embedding:,} without embeddings)"
