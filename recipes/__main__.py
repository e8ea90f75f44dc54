"""The project's own commands. Each module is imported only by the command that needs it.

python -m recipes check RECIPE [key=value …]     everything wrong with a recipe, and what this machine lacks
python -m recipes summary RUN_FOLDER             what a finished run came to
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="everything wrong with a recipe, and what this machine lacks for it")
    check.add_argument("recipe")
    check.add_argument("overrides", nargs="*", metavar="key=value")
    summary = commands.add_parser("summary", help="what a finished run came to")
    summary.add_argument("run_folder", type=Path)
    chosen = parser.parse_args(arguments)
    return {"check": _check, "summary": _summary}[chosen.command](chosen)


def _check(chosen: argparse.Namespace) -> int:
    from recipes.batches import plan_batches
    from recipes.check import load_checked
    from recipes.config import RecipeError
    from recipes.preflight import preflight
    from recipes.screen import print_plan, print_problems

    try:
        recipe = load_checked(chosen.recipe, [*chosen.overrides, "dry_run=true"])
    except RecipeError as error:
        return print_problems("this recipe cannot be trained", error.problems)
    print_plan(recipe, plan_batches(recipe), preflight(recipe))
    return 0


def _summary(chosen: argparse.Namespace) -> int:
    from recipes.report import print_summary

    try:
        print_summary(chosen.run_folder)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
