"""The project's own commands. Each module is imported only by the command that needs it.

python -m recipes check RECIPE [key=value …]     everything wrong with a recipe, and what this machine lacks
python -m recipes plan RECIPE [key=value …]      what it will take: hours, dollars, energy, memory, the loss to expect
python -m recipes list [WORD …]                  the recipes, or those that have every word
python -m recipes keys [KEY|WORD] [--eval]       what a recipe may say, such as model.attn_config; --eval: one for eval
python -m recipes summary RUN_FOLDER             what a finished run came to
python -m recipes bill RUN_FOLDER …              what was paid for, start by start
python -m recipes report RUN_FOLDER …            one HTML page of one run, or of several side by side
python -m recipes export MODEL OUT               a folder that transformers opens, with the same logits
python -m recipes chat MODEL                     talk to a model in the terminal
python -m recipes generate MODEL … --prompts F   what models write behind the prompts of a file

MODEL is a run folder, a checkpoint, or (for chat and generate) a Hugging Face folder of MPT, LLaMA or RWKV.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipes.cost.duration import hours_of
from recipes.cost.scaling import DEFAULT_LAW, SCALING_LAWS

Handler = Callable[[argparse.Namespace], int | None]  # None: 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Handler, text: str, **more: Any) -> argparse.ArgumentParser:
        made = subparsers.add_parser(name, help=text, **more)
        made.set_defaults(run=run)
        return made

    check = command("check", _check, "everything wrong with a recipe, and what this machine lacks for it")
    check.add_argument("recipe", metavar="RECIPE", help="a recipe for train.py, such as yamls/pretrain/mpt-1b.yaml")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="the same as for train.py")
    _plan_arguments(command("plan", _plan, "what a recipe will take, before it runs", allow_abbrev=False))
    summary = command("summary", _summary, "what a finished run came to")
    summary.add_argument("run_folder", type=Path, metavar="RUN_FOLDER", help="such as runs/mpt-quickstart")
    bill = command("bill", _bill, "what was paid for, start by start")
    bill.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    bill.add_argument("--json", action="store_true", help="for machines: one object, or a list for several runs")
    report = command("report", _report, "one HTML page of one run, or of several side by side")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    report.add_argument("--out", type=Path, help="the page (default: report.html in the run folder, or beside several)")
    listing = command("list", _list, "the recipes, or those that have every word")
    listing.add_argument("words", nargs="*", metavar="WORD", help="such as gqa, rope, 7b, lora, pretrain or 8192")
    listing.add_argument("--json", action="store_true", help="for machines: a list of objects")
    keys = command("keys", _keys, "what a recipe may say")
    keys.add_argument(
        "key",
        nargs="?",
        default="",
        metavar="KEY",
        help="such as model.attn_config, or a word such as dropout; default: the top",
    )
    keys.add_argument("--eval", action="store_true", help="of a recipe for eval/evaluate.py")
    export = command("export", _export, "a folder that transformers opens, with the same logits")
    chat = command("chat", _chat, "talk to a model in the terminal")
    generate = command("generate", _generate, "what models write behind the prompts of a file")
    _model_arguments(export, chat, generate)
    chosen, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if chosen.command not in ("plan", "check") or "=" not in word]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:  # key=value after an option
        chosen.overrides = [*chosen.overrides, *rest]
    try:
        return chosen.run(chosen) or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _plan_arguments(plan: argparse.ArgumentParser) -> None:
    add = plan.add_argument
    add("recipe", nargs="?", help="a recipe for train.py; with --budget alone, MPT-7B's is the start")
    add("overrides", nargs="*", metavar="key=value", help="the same as for train.py")
    add("--gpu", help="a name of recipes/cost/hardware.yaml, e.g. h100; default: a row for each")
    add("--gpus", type=int, metavar="N", help="how many; default: the fewest that meet --deadline, else one node of 8")
    add(
        "--rate",
        dest="usd_per_gpu_hour",
        type=float,
        metavar="USD",
        help="dollars an hour a GPU; beats --prices and the list prices",
    )
    add(
        "--prices",
        dest="prices_file",
        metavar="FILE",
        help="your prices: YAML or JSON of GPU names and dollars an hour",
    )
    add("--price-kind", metavar="KIND", help="on_demand (default), reserved or spot")
    add("--budget", dest="budget_usd", type=float, metavar="USD", help="is it enough, and the best model for the money")
    add("--deadline", dest="deadline_hours", metavar="TIME", help="such as 36h, 10d or 2w")
    add("--inference-tokens", type=float, metavar="N", help="tokens that the model will serve in its life")
    add("--inference-mfu", type=float, metavar="SHARE", help="of the peak when serving; default: that of training")
    add("--dataset-tokens", type=float, metavar="N", help="of one epoch, where the data is not on this machine")
    add("--law", default=DEFAULT_LAW, metavar="NAME", help=f"scaling law: {', '.join(SCALING_LAWS)}")
    add(
        "--pue",
        dest="power_usage_effectiveness",
        type=float,
        metavar="X",
        help="power usage effectiveness of the data centre",
    )
    add("--kg-co2e-per-kwh", type=float, metavar="X", help="carbon intensity of its electricity")
    add("--json", action="store_true", help="for machines: one object, or a list when GPUs are compared")


def _model_arguments(
    export: argparse.ArgumentParser, chat: argparse.ArgumentParser, generate: argparse.ArgumentParser
) -> None:
    export.add_argument("model", type=Path, metavar="MODEL", help="a run folder, a checkpoint, full or sharded")
    export.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    export.add_argument("--dtype", default="bf16", help="fp32, bf16 (default) or fp16")
    export.add_argument("--shard-gb", type=float, default=5.0, metavar="N", help="gigabytes a file at most (5)")
    export.add_argument("--unmerged", action="store_true", help="of a LoRA run the adapters alone, for peft")
    export.add_argument("--overwrite", action="store_true", help="replace an OUT that holds an export and nothing else")
    chat.add_argument("model", type=Path, metavar="MODEL")
    chat.add_argument("--system", metavar="TEXT", help="what the conversation starts from")
    generate.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    generate.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help='a prompt a line, or JSONL "prompt"'
    )
    generate.add_argument("--chat", action="store_true", help="each prompt is a message, put through the chat template")
    generate.add_argument("--out", type=Path, metavar="FILE.jsonl", help="write the same there")
    for command in (export, chat, generate):
        command.add_argument("--recipe", type=Path, metavar="FILE", help="of a checkpoint outside its run folder")
        command.add_argument("--tokenizer", metavar="NAME", help="instead of the recipe's or the folder's")
    for command in (chat, generate):
        add = command.add_argument
        add("--max-new-tokens", type=int, default=128, metavar="N", help="an answer at most (128)")
        add("--temperature", type=float, default=0.7, metavar="X", help="0.7; 0 takes the likeliest token always")
        add("--top-p", type=float, default=1.0, metavar="X", help="of the likeliest tokens that sum to this (1: all)")
        add("--top-k", type=int, default=0, metavar="N", help="of the N likeliest (0: all)")
        add("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1 against repeating (1)")
        add("--seed", type=int, metavar="N", help="the same text again")


def _check(chosen: argparse.Namespace) -> int:
    from recipes.config.check import load_checked
    from recipes.config.keys import RecipeError
    from recipes.planning.budget import verdict
    from recipes.preflight.training import preflight
    from recipes.reports.runs import run_folder
    from recipes.screen import print_notes, print_plan, print_problems, print_too_dear
    from recipes.training.batches import plan_batches

    try:
        recipe = load_checked(chosen.recipe, [*chosen.overrides, "dry_run=true"])
        missing = preflight(recipe)
        too_dear, note = verdict(recipe, run_folder(recipe))
    except RecipeError as error:
        return print_problems("this recipe cannot be trained", error.problems)
    print_plan(recipe, plan_batches(recipe), missing)
    print_notes(recipe, note)
    return print_too_dear(too_dear) if too_dear else 0


def _plan(chosen: argparse.Namespace) -> int | None:
    from recipes.config.keys import RecipeError
    from recipes.planning.plan import Options, load_recipe, make_plans
    from recipes.planning.plan_json import to_json
    from recipes.planning.plan_text import print_comparison, print_plan
    from recipes.screen import print_problems

    if chosen.recipe and "=" in chosen.recipe and not os.path.isfile(chosen.recipe):
        chosen.overrides.insert(0, chosen.recipe)
        chosen.recipe = None
    if chosen.recipe is None and chosen.budget_usd is None:
        raise ValueError("plan: got no recipe; name one, e.g. yamls/pretrain/mpt-7b.yaml, or a --budget to spend.")
    if chosen.deadline_hours is not None:
        chosen.deadline_hours = hours_of(chosen.deadline_hours, "--deadline")
    options = Options(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(Options)})
    try:
        recipe = load_recipe(chosen.recipe, chosen.overrides)
    except RecipeError as error:
        return print_problems("this recipe cannot be planned", error.problems)
    plans, left_out = make_plans(recipe, options)
    if chosen.json:
        _print_json([to_json(plan) for plan in plans])
    elif len(plans) == 1:
        print_plan(plans[0])
    else:
        print_comparison(plans, left_out)
    return None


def _print_json(objects: Sequence[Any]) -> None:
    print(json.dumps(objects[0] if len(objects) == 1 else objects, indent=2))


def _summary(chosen: argparse.Namespace) -> None:
    from recipes.reports.summary import print_summary

    print_summary(chosen.run_folder)


def _bill(chosen: argparse.Namespace) -> None:
    from recipes.reports.bill import print_bills, read_bill, to_json

    bills = [read_bill(run) for run in chosen.runs]
    if chosen.json:
        _print_json([to_json(bill) for bill in bills])
    else:
        print_bills(bills)


def _report(chosen: argparse.Namespace) -> None:
    from recipes.reports.page import write_page

    print(f"report: {write_page(chosen.runs, chosen.out)}")


def _keys(chosen: argparse.Namespace) -> None:
    from recipes.config.reference import print_keys

    print_keys(chosen.key, "eval" if chosen.eval else "train")


def _list(chosen: argparse.Namespace) -> None:
    from recipes.planning.listing import print_list

    print_list(chosen.words, chosen.json)


def _export(chosen: argparse.Namespace) -> None:
    if not chosen.unmerged:  # peft is built on torch; tokenizers are not, and without it all starts five times faster
        os.environ |= {"USE_TORCH": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    from recipes.weights.export import export

    more = {"shard_gb": chosen.shard_gb, "unmerged": chosen.unmerged, "overwrite": chosen.overwrite}
    print(export(chosen.model, chosen.out, chosen.dtype, chosen.recipe, chosen.tokenizer, **more))


def _chat(chosen: argparse.Namespace) -> None:
    from recipes.talking.chat import chat

    chat(chosen.model, _sampling(chosen), chosen.system, chosen.tokenizer, chosen.recipe)


def _generate(chosen: argparse.Namespace) -> None:
    from recipes.talking.generate import generate, read_prompts

    prompts = read_prompts(chosen.prompts)
    more = {"chat": chosen.chat, "tokenizer": chosen.tokenizer, "recipe": chosen.recipe, "out": chosen.out}
    generate(chosen.models, prompts, _sampling(chosen), **more)


def _sampling(chosen: argparse.Namespace) -> Any:
    from recipes.talking.generate import Sampling

    names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")
    return Sampling(**{name: getattr(chosen, name) for name in names}).checked()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
