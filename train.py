"""Train the model that a recipe describes.

    composer train.py yamls/pretrain/mpt-quickstart.yaml optimizer.lr=2e-4
    composer -n 8 train.py yamls/pretrain/mpt-7b-8k.yaml dry_run=true

The recipe is checked whole before anything is built. `dry_run=true` stops after that and prints what would run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.durable import write_whole
from recipes import screen
from recipes.config.check import load_checked
from recipes.config.keys import RecipeError
from recipes.config.load import Recipe
from recipes.planning.budget import verdict
from recipes.preflight.gpu import has_gpu
from recipes.preflight.training import preflight
from recipes.ranks import is_first_of_machine, is_first_rank, spans_machines
from recipes.reports.page import write_page
from recipes.reports.runs import run_folder
from recipes.reports.summary import is_finished, print_summary, read_json, write_summary
from recipes.run_files import RECIPE, SUMMARY
from recipes.training.batches import plan_batches
from recipes.training.data_record import is_as_recorded, record_data, refuse_damage
from recipes.training.full_disk import full_disk_in_words
from recipes.training.run_lock import claim
from recipes.training.startup import light_imports

GOES_ON = "goes on from the newest whole checkpoint, where the recipe has a save_folder"


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        return screen.usage(__doc__, arguments)
    try:
        recipe = load_checked(arguments[0], arguments[1:])
        missing = preflight(recipe)
        folder = run_folder(recipe)
        finished = is_finished(folder, recipe) and is_as_recorded(folder, recipe)
        too_dear, note = (None, None) if finished else verdict(recipe, folder)
    except RecipeError as error:
        return screen.print_problems("this recipe cannot be trained", error.problems)

    code: int | None
    if finished and not recipe.get("dry_run"):
        code = _say_finished(folder)
    else:
        if is_first_rank():
            screen.print_recipe(recipe)
            screen.print_plan(recipe, plan_batches(recipe), missing)
            screen.print_notes(recipe, note)
        code = screen.print_too_dear(too_dear) if too_dear else None
        if recipe.get("dry_run"):
            return code or 0
        if code is None and missing:
            code = screen.print_problems("this machine lacks what the recipe needs", missing)
            if not has_gpu() and recipe.get("precision") != "fp32":  # it could not tell machines that have GPUs
                return code
        if code is None:
            code = _refused(folder, recipe)
    if code is not None and not spans_machines():
        return code

    with light_imports():
        from recipes.build import agree, build
        from recipes.training.processes import free_memory, quiet

    if spans_machines() and (end := agree(recipe, code)) is not None:
        if end and code is None:
            print("error: another machine cannot begin this run, and its output says why", file=sys.stderr)
        return end
    quiet()
    try:
        run = build(recipe)
    except RecipeError as error:
        return screen.print_problems("this recipe cannot be built", error.problems)
    if is_first_rank():
        print(f"\n{run.resumed_from}")
        before = read_json(folder / SUMMARY)
        keeps = bool(before and recipe.get("only_hf_checkpoint"))  # what the run came to, which it does not change
        changed = "" if keeps else record_data(folder, recipe)
        if changed and run.has_begun:
            print(f"note: data or code is not what this run began with; samples are counted on: {changed}")
        if not keeps:
            write_whole(folder / RECIPE, recipe.to_yaml())
            (folder / SUMMARY).unlink(missing_ok=True)  # of a run that now goes on
    free_memory()
    with run.stopper.listening():
        try:
            with full_disk_in_words(recipe, folder, f"the same command {GOES_ON}"):
                run.train(eval_first=bool(recipe.get("eval_first")))
                run.trainer.close()
        except RecipeError as error:
            return screen.print_problems("this run has stopped", error.problems)

        if is_first_rank() and not keeps:
            ended = run.ended_early(before.get("ended_early"))
            stopped = run.stopped.words if run.stopped else None
            write_summary(folder, recipe, run.cost.summary(), *run.end(), stopped=stopped, ended=ended)
            screen.tell(print_summary, folder)
            screen.tell(write_page, [folder])
        if run.stopped:
            run.wait_for_all()
            return screen.print_stop(f"stopped early: {run.stopped.words}; {run.goes_on}", run.exit_code())
    return 0


def _say_finished(folder: Path) -> int:
    if is_first_rank():
        print(f"finished before, nothing to do (delete {folder} to train anew)")
        screen.tell(print_summary, folder)
    return 0


def _refused(folder: Path, recipe: Recipe) -> int | None:
    """The exit code of a run that cannot begin: another one uses the folder, or its shards are damaged."""
    try:
        if is_first_rank():
            claim(folder, recipe)
        if is_first_of_machine():
            refuse_damage(folder, recipe)
    except RecipeError as error:
        return screen.print_problems("this run cannot begin", error.problems)
    return None


if __name__ == "__main__":
    sys.exit(screen.exit_status(main, GOES_ON))
