"""What a budget buys, for a person: the model, what it takes, and the command that trains it."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.markup import escape

from recipes.cost.duration import in_words
from recipes.cost.figures import short, usd
from recipes.cost.spend import Purchase
from recipes.planning.plan import Plan

Row = tuple[str, str]


def bought_rows(name: str, bought: Purchase | None, plan: Plan) -> list[Row]:
    if bought is None:
        return [(name, f"no model that fits {plan.estimate.gpus} × {plan.estimate.gpu} can be had for the money")]
    serving = f" and {usd(bought.usd_serving)} of serving at the same rate" if bought.usd_serving else ""
    return [
        (
            name,
            f"{bought_briefly(bought)}: {in_words(bought.hours * 3600)}, {usd(bought.usd_training)} of "
            f"training{serving}; the {bought.limited_by} is the limit",
        ),
        ("", escape(_command(plan, bought))),
        ("", f"its learning rate and warm-up are those of {escape(plan.recipe)}: smaller models take a higher rate"),
    ]


def _command(plan: Plan, bought: Purchase) -> str:
    """What trains it, for a shell; only what to set where these GPUs are no whole nodes or do not share the batch."""
    gpus, node = plan.estimate.gpus, plan.estimate.hardware.gpus_per_node
    words = [plan.recipe, *_overridden(plan, bought)]
    if plan.estimate.setup.global_batch_sequences % gpus:
        return f"{gpus} GPUs do not share its batch evenly: {shlex.join(words)}"
    if gpus > node and gpus % node:
        return f"{gpus} GPUs are no whole nodes of {node}: {shlex.join(words)}"
    nodes = f" --world_size {gpus} --node_rank RANK --master_addr FIRST --master_port 7501" if gpus > node else ""
    return f"composer -n {min(gpus, node)}{nodes} train.py {shlex.join(words)}"


def _overridden(plan: Plan, bought: Purchase) -> list[str]:
    """What was asked for, over it what the budget has chosen, and a name that is not that of the recipe's own run."""
    chosen = {text.partition("=")[0] for text in bought.overrides}
    asked = [text for text in plan.options.overrides if text.partition("=")[0] not in chosen]
    named = [] if any(text.startswith("run_name=") for text in asked) else [f"run_name={_name(plan, bought)}"]
    return [*asked, *bought.overrides, *named]


def _name(plan: Plan, bought: Purchase) -> str:
    size = short(bought.params_total).replace(" ", "").lower()
    return f"{Path(plan.recipe).stem}-as-{size}"


def bought_briefly(bought: Purchase) -> str:
    return f"{short(bought.params_total)} parameters × {short(bought.tokens)} tokens, loss {bought.loss:.3f}"
