"""A plan for a person: where each figure comes from stands beside it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from recipes.console import console
from recipes.cost.duration import in_words
from recipes.cost.estimate import KG_CO2E_PER_KWH, NOT_ON_TPUS, WHOLE_RUN_HIGH, WHOLE_RUN_LOW, WHOLE_RUN_MID, Range
from recipes.cost.figures import number, short, usd
from recipes.cost.memory import parts_gib
from recipes.cost.scaling import FITTED_PARAMETERS, FITTED_TOKENS, SCALING_LAWS, is_extrapolated, scaling_law
from recipes.cost.setup import CHECKPOINTING
from recipes.planning.plan import MFU_COUNTS, Plan
from recipes.planning.purchase_text import Row, bought_briefly, bought_rows

ABOUT_THE_SAME = 0.02  # what norms and learned positions, in which no product is done, are of LLM Foundry's FLOPs


def print_plan(plan: Plan) -> None:
    """One GPU type in full."""
    out = console()
    e = plan.estimate
    out.print(f"[bold]{escape(plan.recipe)}[/bold] on {e.gpus} × {e.hardware.title}")
    for title, rows in (
        ("model", _model(plan)),
        ("time and money", [*_time(plan), *_money(plan)]),
        ("memory of a GPU", _memory(plan)),
        ("scaling law", _law(plan)),
        ("budget and deadline", [*_deadline(plan), *_budget(plan), *_guard(plan)]),
        ("assumed", [("", note) for note in (*plan.assumed, *e.notes)]),
    ):
        if rows:
            out.print(f"\n[bold]{title}[/bold]")
            out.print(_grid(rows))


def print_comparison(plans: Sequence[Plan], left_out: Sequence[str]) -> None:
    """A row a GPU type, cheapest first, under what they have in common; last what is late or does not fit."""
    out = console()
    first = plans[0]
    with_budget = first.options.budget_usd is not None
    out.print(f"[bold]{escape(first.recipe)}[/bold]")
    out.print(_grid([*_model(first), *_law(first)]))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("GPU", no_wrap=True, min_width=max(len(plan.estimate.gpu) for plan in plans))
    table.add_column("fits", no_wrap=True, min_width=len("fits"))
    for column in ("GPUs", "micro", "MFU", "tokens/s", "hours", "GPU-hours", "USD", "USD/h", "kWh"):
        table.add_column(column, justify="right", no_wrap=True)
    if with_budget:
        table.add_column("best for the budget")
    with_deadline = first.options.deadline_hours is not None
    if with_deadline:
        table.add_column("in time", no_wrap=True, min_width=len("in time"))
    for plan in sorted(plans, key=_price_order):
        e = plan.estimate
        row = [e.gpu, "TPU" if e.hardware.is_tpu else "yes" if e.fits else "[red]no[/red]", f"{e.gpus}"]
        row += [f"{e.microbatch_sequences}/{e.max_microbatch_sequences}", f"{e.mfu:.0%}"]
        row += [f"{e.tokens_per_s_per_gpu:,.0f}", _mid(e.hours), _mid(e.gpu_hours), _mid(e.usd)]
        rate = e.rate.usd_per_device_hour
        row += ["?" if rate is None else f"{rate:.2f}", _mid(e.kwh)]
        if with_budget:
            row.append(_for_the_budget(plan))
        if with_deadline:
            row.append("?" if plan.meets_deadline is None else "yes" if plan.meets_deadline else "[red]no[/red]")
        table.add_row(*row)
    out.print()
    out.print(table)
    out.print(
        "\nmicro: sequences of a micro-batch, of the most that fit. tokens/s: of one GPU. MFU and tokens/s are of the "
        "steady state; hours and dollars are the middle: whole runs keep "
        f"{WHOLE_RUN_MID:.0%} of it ({WHOLE_RUN_LOW:.0%} to {WHOLE_RUN_HIGH:.0%}). USD/h: the median of list prices "
        "unless a rate is given; ? is not known. A step that does not fit as the recipe has it says no: name its GPU "
        "to see what would, such as --gpu h100."
    )
    notes = _assumed(plans)
    if late := [plan.estimate.gpu for plan in plans if plan.meets_deadline is False]:
        limit = in_words((first.options.deadline_hours or 0.0) * 3600)
        notes[f"{len(late)} of {len(plans)} do not meet the deadline of {limit}: {', '.join(late)}"] = None
    if any("--rate for" in n for plan in plans for n in plan.assumed):
        notes["the recipe's own cost.usd_per_device_hour is for one kind of device and is not used here: --rate"] = None
    if tpus := [plan.estimate.gpu for plan in plans if plan.estimate.hardware.is_tpu]:
        notes[f"{', '.join(tpus)}: {NOT_ON_TPUS}"] = None
    for text in [*notes, *left_out]:
        out.print(f"  {text}")


def _assumed(plans: Sequence[Plan]) -> dict[str, None]:
    """What plans took for granted, each with the GPUs that it is of, where it is not of all."""
    of: dict[str, list[str]] = {}
    for plan in plans:
        for note in plan.assumed:
            if "--rate for" not in note:
                of.setdefault(note, []).append(plan.estimate.gpu)
    most = max(of.values(), key=len, default=[])

    def named(gpus: list[str]) -> str:
        if len(gpus) == len(plans):
            return ""
        return "the others: " if gpus is most and 2 * len(gpus) > len(plans) else f"{', '.join(gpus)}: "

    return dict.fromkeys(named(gpus) + note for note, gpus in sorted(of.items(), key=lambda pair: len(pair[1])))


def _grid(rows: Sequence[Row]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(f"  {name}", text)
    return grid


def _model(plan: Plan) -> list[Row]:
    e = plan.estimate
    p, attends, done = e.setup.parameters, e.setup.shape.attends, e.step.products
    counted = "6 N + 12 L d S" if attends else "6 N"
    causal = f"; with the causal half of attention {plan.flops_causal_per_token:.4g}" if attends else ""
    rows = [
        (
            "parameters",
            f"{e.params_total:,} in all, {e.params_active:,} active, {p.embedding:,} of them embeddings",
        ),
        (
            "FLOPs/token",
            f"{e.flops_per_token:.4g} = {counted}, N active parameters (LLM Foundry's flops_per_batch; PaLM, "
            f"arXiv 2204.02311, appendix B){causal}",
        ),
        (
            "  done",
            f"matrix products {done.matrix:.3g}, attention {done.attention:.3g}, head {done.head:.3g}: "
            f"{e.setup.matrix_passes}, {e.setup.passes} and {e.setup.head_passes} forward passes' worth, 2 FLOPs a "
            "multiply-add",
        ),
    ]
    if e.tokens is None:
        rows.append(("tokens", f"not known: {e.no_tokens}"))
    else:
        batch, items = e.setup.global_batch_sequences, "pairs" if e.setup.sequences_per_item == 2 else "sequences"
        rows.append(("tokens", f"{e.tokens:,} = {e.steps:,} steps × {batch:,} {items} × {e.setup.tokens_per_item:,}"))
    return rows


def _time(plan: Plan) -> list[Row]:
    e = plan.estimate
    done = []
    precision = f"{e.setup.precision}, dense"
    if e.setup.precision == "fp32" and "tf32" in e.hardware.peak_flops_per_s:
        precision = "fp32, whose products Composer lets the GPU take in TF32, dense"
    if abs(e.step.hfu / e.mfu - 1) > ABOUT_THE_SAME:
        done = [("  done", f"{e.step.hfu:.1%} with the products that are done: MFU is {MFU_COUNTS}")]
    rows = [
        (
            "MFU",
            f"{e.mfu:.1%} in the steady state of {e.step.peak_flops_per_s / 1e12:g} TFLOP/s ({precision}); "
            f"a whole run {e.mfu_low:.1%} to {e.mfu_high:.1%}",
        ),
        *done,
        ("speed", f"{e.tokens_per_s_per_gpu:,.0f} tokens/s a GPU, {e.tokens_per_s_per_gpu * e.gpus:,.0f} in all"),
    ]
    if e.hours and e.gpu_hours:
        low, mid, high = (in_words(h * 3600) for h in (e.hours.low, e.hours.mid, e.hours.high))
        rows.append(("time", f"{mid} ({low} to {high})"))
        rows.append(("GPU-hours", _span(e.gpu_hours)))
    return rows


def _money(plan: Plan) -> list[Row]:
    e = plan.estimate
    rows = []
    if e.usd:
        rows.append(("dollars", f"${_span(e.usd)}"))
    rows.append(("  rate", escape(e.rate.source)))
    if e.kwh and e.kg_co2e:
        watts = f"{e.watts:g} W a GPU ({'stated' if e.watts != e.hardware.watts else 'board power limit'})"
        rows.append(("energy", f"{_span(e.kwh)} kWh: {watts} × {e.power_usage_effectiveness:g} PUE"))
        default = " (arXiv 2302.13971, section 6)" if e.kg_co2e_per_kwh == KG_CO2E_PER_KWH else ""
        carbon = f"{e.kg_co2e_per_kwh:g} kg/kWh{default}"
        rows.append(("CO₂", f"{_span(e.kg_co2e)} kg CO₂e at {carbon}"))
    return rows


def _memory(plan: Plan) -> list[Row]:
    e = plan.estimate
    setup = e.setup
    how = f"{setup.sharding} over {e.gpus} GPUs, micro-batch of {e.microbatch_sequences} sequences"
    rows = [("", f"{how}, activation checkpointing {CHECKPOINTING[setup.recompute]}")]
    rows += [(part, f"{gib:8.2f} GiB") for part, gib in parts_gib(e.memory).items()]
    verdict = "fits" if e.fits else "[bold red]does not fit[/bold red]"
    rows.append(("total", f"{e.memory_gib_per_gpu:8.2f} GiB of {e.hardware.visible_memory_gib:.2f}: {verdict}"))
    for recompute, (made, most) in plan.memory_by_checkpointing.items():
        text = f"checkpointing {CHECKPOINTING[recompute]}: activations {made.activations_gib:.2f} GiB, "
        rows.append(("", f"{text}largest micro-batch {most or 'none: not even one sequence fits'}"))
    if e.to_fit:
        rows.append(("to fit", e.to_fit))
    return rows


def _law(plan: Plan) -> list[Row]:
    e = plan.estimate
    if e.tokens is None or e.predicted_loss is None or e.training_balance is None:
        return []
    law = scaling_law(plan.options.law)
    extrapolated = is_extrapolated(e.params_total, e.tokens)
    error = "" if law.loss_error_95 is None or extrapolated else f" ± {law.loss_error_95:.2f} (95 %)"
    others = ", ".join(f"{n} {o.loss(e.params_total, e.tokens):.3f}" for n, o in SCALING_LAWS.items() if n != law.name)
    rows = [
        ("balance", e.training_balance.verdict),
        ("loss", f"{e.predicted_loss:.3f}{error} nats a token on the authors' data, by {law.source}; {others}"),
    ]
    if extrapolated:
        low, high = map(short, FITTED_PARAMETERS)
        few, many = map(short, FITTED_TOKENS)
        text = f"of unknown error: an extrapolation from runs of {low} to {high} parameters and {few} to {many} tokens"
        rows.append(("", text))
    elif law.loss_error_95 is None:
        rows.append(("", "its authors give no error"))
    return rows


def _deadline(plan: Plan) -> list[Row]:
    e, options = plan.estimate, plan.options
    if options.deadline_hours is None:
        return []
    limit = in_words(options.deadline_hours * 3600)
    if e.hours is None:
        return [("deadline", f"{limit}: the hours are not known")]
    met = "met" if plan.meets_deadline else "[bold red]missed[/bold red]"
    fewest = "no number of GPUs that divides the batch and fits is enough"
    if plan.gpus_for_deadline:
        fewest = f"{plan.gpus_for_deadline} GPUs are the fewest that divide the batch and meet it"
    worst = "also at the slow end" if e.hours.high <= options.deadline_hours else "not at the slow end of the range"
    return [("deadline", f"{limit}: {met} with {e.gpus} GPUs{', ' + worst if plan.meets_deadline else ''}; {fewest}")]


def _budget(plan: Plan) -> list[Row]:
    rows: list[Row] = []
    options = plan.options
    if plan.same_loss_serving is not None:
        parameters, tokens = plan.same_loss_serving
        text = f"{short(parameters)} parameters × {short(tokens)} tokens reach the same loss and serve "
        text += f"{short(options.inference_tokens or 0)} tokens with the fewest FLOPs (6 N D + 2 N T, arXiv 2401.00448)"
        rows.append(("serving", text))
    if options.budget_usd is None or plan.tokens_for_budget is None:
        return rows
    within = {True: "enough for this recipe; ", False: "[bold red]less than this recipe takes[/bold red]; ", None: ""}
    enough = within[plan.within_budget] if plan.estimate.fits else "[bold red]this recipe does not fit[/bold red]; "
    text = f"{usd(options.budget_usd)}: {enough}it buys {short(plan.tokens_for_budget)} tokens"
    rows.append(("budget", f"{text} of this model"))
    if plan.model_is_given:
        return rows
    rows += bought_rows("best", plan.best, plan)
    if options.inference_tokens:
        rows += bought_rows(f"serving {short(options.inference_tokens)}", plan.best_serving, plan)
    return rows


def _guard(plan: Plan) -> list[Row]:
    return [] if plan.guard is None else [("budget guard", escape(plan.guard))]


def _span(value: Range) -> str:
    return f"{number(value.mid)} ({number(value.low)} to {number(value.high)})"


def _mid(value: Range | None) -> str:
    return "?" if value is None else number(value.mid)


def _for_the_budget(plan: Plan) -> str:
    if plan.model_is_given:
        return "?" if plan.tokens_for_budget is None else f"{short(plan.tokens_for_budget)} tokens"
    if plan.tokens_for_budget is None:  # no rate
        return "?"
    return "nothing" if plan.best is None else bought_briefly(plan.best)


def _price_order(plan: Plan) -> tuple[bool, bool, bool, float]:
    usd = plan.estimate.usd
    return (not plan.estimate.fits, plan.meets_deadline is False, usd is None, usd.mid if usd else 0.0)
