"""The project's own commands. Each module is imported only by the command that needs it.

python -m recipes check RECIPE [key=value …]     everything wrong with a recipe, and what this machine lacks
python -m recipes plan RECIPE [key=value …]      what it will take: hours, dollars, energy, memory, the loss to expect
python -m recipes summary RUN_FOLDER             what a finished run came to
python -m recipes bill RUN_FOLDER …              what was paid for, start by start
python -m recipes report RUN_FOLDER …            one HTML page of one run, or of several side by side
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from recipes.cost.duration import hours_of
from recipes.cost.scaling import DEFAULT_LAW, SCALING_LAWS


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="everything wrong with a recipe, and what this machine lacks for it")
    check.add_argument("recipe")
    check.add_argument("overrides", nargs="*", metavar="key=value")
    _plan_arguments(commands.add_parser("plan", help="what a recipe will take, before it runs", allow_abbrev=False))
    summary = commands.add_parser("summary", help="what a finished run came to")
    summary.add_argument("run_folder", type=Path)
    bill = commands.add_parser("bill", help="what was paid for, start by start")
    bill.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    bill.add_argument("--json", action="store_true", help="for machines: one object, or a list for several runs")
    report = commands.add_parser("report", help="one HTML page of one run, or of several side by side")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the run folder, or beside several)")
    chosen, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if chosen.command != "plan" or "=" not in word]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:  # key=value after an option
        chosen.overrides = [*chosen.overrides, *rest]
    run = {"check": _check, "plan": _plan, "summary": _summary, "bill": _bill, "report": _report}
    try:
        return run[chosen.command](chosen)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _plan_arguments(plan: argparse.ArgumentParser) -> None:
    add = plan.add_argument
    add("recipe", nargs="?", help="a recipe for train.py; with --budget alone, MPT-7B's is the start")
    add("overrides", nargs="*", metavar="key=value", help="the same as for train.py")
    add("--gpu", help="a name of recipes/cost/hardware.yaml, e.g. h100; default: a row for each")
    add("--gpus", type=int, metavar="N", help="how many; default: the fewest that meet --deadline, else one node of 8")
    add("--rate", type=float, metavar="USD", help="dollars an hour a GPU; beats --prices and the list prices")
    add("--prices", metavar="FILE", help="your prices: YAML or JSON of GPU names and dollars an hour")
    add("--price-kind", metavar="KIND", help="on_demand (default), reserved or spot")
    add("--budget", type=float, metavar="USD", help="is it enough, and the best model for the money")
    add("--deadline", metavar="TIME", help="such as 36h, 10d or 2w")
    add("--inference-tokens", type=float, metavar="N", help="tokens that the model will serve in its life")
    add("--inference-mfu", type=float, metavar="SHARE", help="of the peak when serving; default: that of training")
    add("--dataset-tokens", type=float, metavar="N", help="of one epoch, where the data is not on this machine")
    add("--law", default=DEFAULT_LAW, metavar="NAME", help=f"scaling law: {', '.join(SCALING_LAWS)}")
    add("--pue", type=float, metavar="X", help="power usage effectiveness of the data centre")
    add("--kg-co2e-per-kwh", type=float, metavar="X", help="carbon intensity of its electricity")
    add("--json", action="store_true", help="for machines: one object, or a list when GPUs are compared")


def _check(chosen: argparse.Namespace) -> int:
    from recipes.batches import plan_batches
    from recipes.check import load_checked
    from recipes.keys import RecipeError
    from recipes.preflight import preflight
    from recipes.screen import print_plan, print_problems

    try:
        recipe = load_checked(chosen.recipe, [*chosen.overrides, "dry_run=true"])
    except RecipeError as error:
        return print_problems("this recipe cannot be trained", error.problems)
    print_plan(recipe, plan_batches(recipe), preflight(recipe))
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from recipes.keys import RecipeError
    from recipes.plan import load_recipe, make_plans, options_from
    from recipes.plan_json import to_json
    from recipes.screen import print_problems

    overrides = list(chosen.overrides)
    if chosen.recipe and "=" in chosen.recipe:
        overrides.insert(0, chosen.recipe)
        chosen.recipe = None
    if chosen.recipe is None and chosen.budget is None:
        raise ValueError("plan: got no recipe; name one, e.g. yamls/pretrain/mpt-7b.yaml, or a --budget to spend.")
    options = options_from(chosen, None if chosen.deadline is None else hours_of(chosen.deadline, "--deadline"))
    try:
        recipe = load_recipe(chosen.recipe, overrides)
    except RecipeError as error:
        return print_problems("this recipe cannot be planned", error.problems)
    plans, left_out = make_plans(recipe, options)
    if chosen.json:
        objects = [to_json(plan) for plan in plans]
        print(json.dumps(objects[0] if len(objects) == 1 else objects, indent=2))
        return 0
    from recipes.plan_text import print_comparison, print_plan

    if len(plans) == 1:
        print_plan(plans[0])
    else:
        print_comparison(plans, left_out)
    return 0


def _summary(chosen: argparse.Namespace) -> int:
    from recipes.report import print_summary

    print_summary(chosen.run_folder)
    return 0


def _bill(chosen: argparse.Namespace) -> int:
    from recipes.bill import print_bills, read_bill, to_json

    bills = [read_bill(run) for run in chosen.runs]
    if chosen.json:
        objects = [to_json(bill) for bill in bills]
        print(json.dumps(objects[0] if len(objects) == 1 else objects, indent=2))
    else:
        print_bills(bills)
    return 0


def _report(chosen: argparse.Namespace) -> int:
    from recipes.report_page import write_page

    print(f"report: {write_page(chosen.runs, chosen.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
