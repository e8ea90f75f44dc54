"""The recipes of this repository as a table: `python -m recipes list`, and yamls/README.md with what each will take.

python -m recipes.planning.listing            # write yamls/README.md
python -m recipes.planning.listing --check   # is it the one that the recipes and the estimator make now?
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config.load import Recipe, load
from recipes.console import console
from recipes.cost.architecture import ModelShape, model_shape
from recipes.cost.estimate import Estimate, estimate
from recipes.cost.figures import short
from recipes.cost.parameters import count_parameters
from recipes.cost.setup import tokens_of_run
from recipes.training.batches import plan_batches
from recipes.weights.hf_architecture import CLASSES, family_of
from recipes.weights.hf_refusals import refusals

YAMLS = Path(__file__).parents[2] / "yamls"
TABLE = YAMLS / "README.md"
KINDS = ("pretrain", "finetune")
GPU = "h100-sxm"
GPUS = (8, 16, 32, 64, 128, 256, 512)  # the first that holds the model and divides the batch
ONE_GPU = 50_000_000  # parameters below which one is enough
PRETRAIN_COLUMNS = (
    "recipe",
    "parameters",
    "context",
    "attention",
    "tokens",
    "FLOPs",
    "GPUs",
    "GPU-hours",
    "dollars",
    "GiB a GPU",
    "exports to",
    "trained here",
)
WHOLE = "whole"
SMALL = "a small copy"


@dataclass(frozen=True)
class Row:
    """One recipe: what it trains and for how long."""

    recipe: Recipe
    kind: str
    name: str
    shape: ModelShape
    parameters: int
    tokens: int | None

    @property
    def attention(self) -> str:
        if not self.shape.attends:
            return "RWKV"
        heads, kv = self.shape.n_heads, self.shape.kv_n_heads
        return "MHA" if kv == heads else "MQA" if kv == 1 else f"GQA {heads}/{kv}"

    @property
    def positions(self) -> str:
        attention = self.recipe.get("model.attn_config", {})
        if not self.shape.attends:
            return "decay"
        return "ALiBi" if attention.get("alibi") else "RoPE" if attention.get("rope") else "learned"

    @property
    def tuning(self) -> str:
        if self.recipe.get("dpo"):
            return "DPO, LoRA"
        if self.kind == "pretrain":
            return "continued" if self.recipe.get("pretrained") else "scratch"
        return "LoRA" if self.recipe.get("model.peft_config") else "full"

    @property
    def length(self) -> str:
        return short(self.tokens) if self.tokens else str(self.recipe["max_duration"])


def rows(folder: Path = YAMLS) -> list[Row]:
    """Every recipe for train.py, by kind and size. Raises RecipeError for one that cannot be read."""
    found = []
    for kind in KINDS:
        for path in sorted((folder / kind).glob("*.yaml")):
            recipe = load(path)
            model = {"max_seq_len": recipe["max_seq_len"], **recipe["model"]}
            tokens = tokens_of_run(recipe.values)
            shape, count = model_shape(model), count_parameters(model).total
            found.append(Row(recipe, kind, f"{kind}/{path.name}", shape, count, tokens))
    return sorted(found, key=lambda row: (KINDS.index(row.kind), row.parameters, row.name))


# --- in the terminal ----------------------------------------------------------------------------------------------


def print_list(words: Sequence[str], as_json: bool = False) -> None:
    """Print the recipes whose row has every word (of name, attention, positions, tuning, context).

    Raises ValueError where no recipe has them all.
    """
    chosen = [row for row in rows() if all(word.lower() in _searched(row) for word in words)]
    if not chosen:
        raise ValueError(f"no recipe has {' and '.join(words)}; `python -m recipes list` shows all of them")
    if as_json:
        import json

        print(json.dumps([_as_dict(row) for row in chosen], indent=2))
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in ("recipe", "size", "context", "heads", "position", "tokens", "training"):
        right = title in ("size", "context", "tokens")
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for row in chosen:
        size, context = short(row.parameters), f"{row.recipe['max_seq_len']:,}"
        table.add_row(
            row.name.removesuffix(".yaml"), size, context, row.attention, row.positions, row.length, row.tuning
        )
    out = console()
    out.print(table)
    out.print(f"{len(chosen)} recipe{'s' * (len(chosen) != 1)}, each in yamls/NAME.yaml")


def _searched(row: Row) -> str:
    context = row.recipe["max_seq_len"]
    said = (row.name, row.attention, row.positions, row.tuning, f"{context} {context:,}", short(row.parameters))
    return " ".join(said).lower()


def _as_dict(row: Row) -> dict[str, Any]:
    return {
        "recipe": f"yamls/{row.name}",
        "parameters": row.parameters,
        "max_seq_len": row.recipe["max_seq_len"],
        "attention": row.attention,
        "positions": row.positions,
        "tokens": row.tokens,
        "max_duration": row.recipe["max_duration"],
        "training": row.tuning,
    }


# --- yamls/README.md ----------------------------------------------------------------------------------------------


def table_text() -> str:
    """The text of yamls/README.md, from the recipes and the estimator."""
    found = rows()
    lines = [
        "# Recipes",
        "",
        "Made by `python -m recipes.planning.listing`; `make check` says when it is out of date. One recipe, with",
        "other GPUs and prices: `python -m recipes plan RECIPE --gpu a100-80gb --gpus 64`.",
        "",
        "FLOPs are LLM Foundry's count, 6 N + 12 n_layers d_model S a token (RWKV: 6 N). GPU-hours, dollars and memory",
        f"are estimates (recipes/cost/README.md) on {GPU}s at the median of the list prices, at the recipe's",
        "micro-batch, on as few GPUs as divide the batch and hold the model, from a node of eight up, the quickstarts",
        "on one. More GPUs take less time and, where each still has enough sequences, about as much money.",
        "",
        f"| {' | '.join(PRETRAIN_COLUMNS)} |",
        "|---" * len(PRETRAIN_COLUMNS) + "|",
        *(_line(row) for row in found if row.kind == "pretrain"),
        "",
        "Fine-tuning takes what your data takes: `python -m recipes plan RECIPE --dataset-tokens N`.",
        "",
        "| recipe | parameters | context | training | length | exports to | trained here |",
        "|---|---|---|---|---|---|---|",
        *(_tuning_line(row) for row in found if row.kind == "finetune"),
        "",
        "A length in tokens is of full sequences: shorter ones are padded, and the bill and the summary of a run count",
        "its tokens without padding.",
        "",
        "Exports to: the class of transformers that computes the same (`python -m recipes export`), or the first key",
        "that none of its classes computes. Such a model trains, chats and is evaluated here alone: change the key",
        "before you train what is to be served elsewhere.",
        "",
        "Trained here: every recipe's parameters are counted on the meta device and compared with the published number",
        f"where there is one, its batch arithmetic and every key are checked, and {SMALL} trains three steps on a",
        f'CPU (tests/test_zoo.py). Those with "{WHOLE}" were run to their end on two CPU cores; none at size on GPUs.',
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    plan = plan_of(row)
    context = f"{row.recipe['max_seq_len']:,}"
    start = f"| `{row.name}` | {row.parameters:,} | {context} | {row.attention}, {row.positions} | {row.length}"
    flops = f"{plan.flops_per_token * plan.tokens:.3g}" if plan.tokens else "not known"
    fits = "" if plan.fits else " (does not fit)"
    hours = _figure(plan.gpu_hours.mid) if plan.gpu_hours else "not known"
    usd = _figure(plan.usd.mid) if plan.usd else "not known"
    memory = f"{plan.memory.total_gib:.0f}{fits}"
    return f"{start} | {flops} | {plan.gpus} | {hours} | {usd} | {memory} | {_exports_to(row)} | {_trained(row)} |"


def _tuning_line(row: Row) -> str:
    start = f"| `{row.name}` | {row.parameters:,} | {row.recipe['max_seq_len']:,}"
    return f"{start} | {row.tuning} | {row.length} | {_exports_to(row)} | {_trained(row)} |"


def _figure(value: float) -> str:
    """Three digits, with commas: an estimate is not known better."""
    if value < 10:
        return f"{value:.2g}" if value >= 0.01 else "under 0.01"
    digits = max(0, len(str(int(value))) - 3)
    return f"{round(value, -digits):,.0f}"


def plan_of(row: Row) -> Estimate:
    """The plan of the table: on as few of `GPUS` as divide its batch and hold it."""
    values = _without_own_price(row.recipe.values)
    batch = plan_batches(row.recipe, 1).sequences_per_step
    choices = (1,) if row.parameters < ONE_GPU else tuple(n for n in GPUS if batch % n == 0) or (1,)
    for gpus in choices:
        plan = estimate(values, GPU, gpus)
        if plan.fits:
            return plan
    return plan


def _without_own_price(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "cost"}


def _exports_to(row: Row) -> str:
    model = row.recipe["model"]
    refused = [key.removeprefix("model.") for key, _ in refusals(model)]
    return f"no: `{refused[0]}`" if refused else f"`{CLASSES[family_of(model)]}`"


def _trained(row: Row) -> str:
    return WHOLE if "quickstart" in row.name else SMALL


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.planning.listing", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the table is out of date")
    only_checks = parser.parse_args(arguments).check
    text = table_text()
    if only_checks:
        if TABLE.is_file() and TABLE.read_text(encoding="utf-8") == text:
            return 0
        print(
            "error: yamls/README.md is not what the recipes make: run `python -m recipes.planning.listing`",
            file=sys.stderr,
        )
        return 1
    TABLE.write_text(text, encoding="utf-8")
    print(f"{TABLE}: {len(rows())} recipes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
