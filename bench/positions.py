"""Perplexity by position, beyond the length that models were trained at: what ALiBi and a scaled RoPE make of it.

    python train.py yamls/pretrain/mpt-quickstart.yaml run_name=alibi
    python train.py yamls/pretrain/mpt-quickstart.yaml run_name=rope \\
        model.attn_config.alibi=false model.attn_config.rope=true model.attn_config.rope_impl=hf
    python -m bench.positions runs/alibi runs/rope --rope linear:8 dynamic:8 \\
        --data shards/sotu/val --length 1024 --out bench/results/positions.md

Tokens of the data are laid end to end and cut into sequences of `--length`; each token's loss is counted for its place
in the sequence, the same tokens for every model. Flat beyond the trained length means that the model can be used there,
falling that it gains from what lies further back, rising that it cannot. A RoPE model is read as it was trained, and
once more for each scaling of its angles. Written beside the table: a plot, as SVG.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.machine import machine_and_versions, write_result
from bench.pictures import COLOURS, picture
from bench.suites import table
from recipes.reports.charts import Line

BUCKETS = 16  # of positions, equally wide


def loss_by_position(model: Any, sequences: Iterator[Tensor]) -> tuple[Tensor, int]:
    """Mean loss of the token at each position from 1 on, (S - 1,) in nats, over sequences (S,); and how many."""
    total, count = torch.zeros(0), 0
    for ids in sequences:
        ids = ids.to(next(model.parameters()).device)
        with torch.inference_mode():
            logits = model(input_ids=ids[None]).logits[0, :-1]  # (S - 1, V)
            losses = [
                F.cross_entropy(part.float(), targets, reduction="none")
                for part, targets in zip(logits.split(1024), ids[1:].split(1024), strict=True)
            ]
        found = torch.cat(losses).double().cpu()
        total = found if count == 0 else total + found
        count += 1
    return total / max(1, count), count


def bucketed(losses: Tensor, buckets: int = BUCKETS) -> list[tuple[int, int, float]]:
    """(first position, last position, perplexity) of equally wide ranges; losses[i] is of position i + 1."""
    parts = torch.arange(1, len(losses) + 1).tensor_split(min(buckets, len(losses)))
    return [(int(part[0]), int(part[-1]), math.exp(losses[part[0] - 1 : part[-1]].mean())) for part in parts]


def stretch(model: Any, length: int, rope: str | None) -> int:
    """Let a model read `length` tokens; gives what it was trained at. rope: `linear:4` or `dynamic:4`."""
    from llmfoundry.models.mpt.modeling_mpt import gen_rotary_embedding

    config = model.config
    trained, attention = config.max_seq_len, config.attn_config
    if not (attention["alibi"] or attention["rope"]):
        sys.exit("error: this model has learned positions, one vector each: there is none beyond the trained length")
    if rope is not None:
        kind, _, factor = rope.partition(":")
        if not attention["rope"] or kind not in ("linear", "dynamic") or not factor.replace(".", "").isdigit():
            sys.exit(
                f"error: --rope: got {rope}, expected linear:FACTOR or dynamic:FACTOR, for a model with rope: true"
            )
        model.transformer.rotary_embedding = gen_rotary_embedding(
            rope_impl="hf",
            rope_theta=attention["rope_theta"],
            rope_dail_config=attention["rope_dail_config"],
            rope_hf_config={"type": kind, "factor": float(factor)},
            max_seq_len=trained,
            d_model=config.d_model,
            n_heads=config.n_heads,
        )
    config.max_seq_len = length
    return trained


def sequences(data: Path, length: int, most: int) -> Iterator[Tensor]:
    """The tokens of MDS shards, in order, cut into at most `most` sequences of `length`."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(data), shuffle=False, batch_size=1)
    held, given = torch.zeros(0, dtype=torch.int64), 0
    for index in range(dataset.num_samples):
        held = torch.cat([held, torch.as_tensor(dataset[index]["tokens"].astype("int64"))])
        while len(held) >= length and given < most:
            yield held[:length]
            held, given = held[length:], given + 1


def plot(curves: Mapping[str, list[tuple[int, int, float]]], trained: int) -> str:
    lines = []
    for colour, (name, found) in enumerate(curves.items()):
        points = [((first + last) / 2, math.log(perplexity)) for first, last, perplexity in found]
        lines.append(Line(name, points, colour, marked=True))
    heights = [y for line in lines for _, y in line.points]
    mark = Line("trained length", [(trained, min(heights)), (trained, max(heights))], len(COLOURS) - 1)
    return picture([*lines, mark], "position", "log of the perplexity")


def curves_of(run: Path, arguments: argparse.Namespace) -> tuple[dict[str, list[tuple[int, int, float]]], int, int]:
    """A run's perplexities by range of positions, for each way to read it; trained length, and sequences read."""
    from recipes.talking.loading import build_for_generation
    from recipes.weights.trained import find_trained

    try:
        model = build_for_generation(find_trained(run)).eval()
    except ValueError as error:
        sys.exit(f"error: {error}")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    has_rope, trained = model.config.attn_config["rope"], model.config.max_seq_len
    curves = {}
    for scaling in (None, *(arguments.rope if has_rope else ())):
        model.config.max_seq_len = trained
        stretch(model, arguments.length, scaling)
        losses, count = loss_by_position(model, sequences(arguments.data, arguments.length, arguments.sequences))
        if not count:
            sys.exit(f"error: --length: {arguments.data} has fewer than {arguments.length} tokens")
        kind = ("RoPE" if scaling is None else f"RoPE, {scaling}") if has_rope else "ALiBi"
        curves[f"{run.name} ({kind})"] = bucketed(losses)
    return curves, trained, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder or a checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="a folder of MDS shards")
    parser.add_argument("--length", type=int, required=True, help="tokens a sequence")
    parser.add_argument("--sequences", type=int, default=64, help="at most; default 64")
    parser.add_argument(
        "--rope", nargs="+", default=[], metavar="SCALING", help="of RoPE models' angles: linear:FACTOR, dynamic:FACTOR"
    )
    parser.add_argument("--out", type=Path, help="Markdown file, with an SVG beside it; default: the screen")
    arguments = parser.parse_args()
    if not (arguments.data / "index.json").exists():
        sys.exit(f"error: --data: {arguments.data} has no index.json; expected a folder of shards")
    curves: dict[str, list[tuple[int, int, float]]] = {}
    lengths = {}
    for run in arguments.runs:
        found, lengths[run], count = curves_of(run, arguments)
        curves |= found
    if len(set(lengths.values())) > 1:
        sys.exit(f"error: these runs were trained at different lengths ({lengths}); compare those of one length")
    trained = lengths[arguments.runs[0]]
    rows = [
        [f"{first:,} to {last:,}", "" if first < trained else "beyond", *(f"{c[i][2]:,.1f}" for c in curves.values())]
        for i, (first, last, _) in enumerate(next(iter(curves.values())))
    ]
    options = f" --rope {' '.join(arguments.rope)}" if arguments.rope else ""
    options += f" --data {arguments.data} --length {arguments.length} --sequences {arguments.sequences}"
    options += f" --out {arguments.out}" if arguments.out else ""
    lines = [
        "# Perplexity by position",
        "",
        f"Command: `python -m bench.positions {' '.join(map(str, arguments.runs))}{options}`",
        "",
        machine_and_versions("torch", "llm-foundry"),
        "",
        f"{count} sequences of {arguments.length:,} tokens; trained at {trained:,}.",
        "",
    ]
    if arguments.out:
        drawing = arguments.out.with_suffix(".svg")
        drawing.parent.mkdir(parents=True, exist_ok=True)
        drawing.write_text(plot(curves, trained))
        lines += [f"![perplexity by position]({drawing.name})", ""]
    write_result([*lines, *table(["position", "of the trained length", *curves], rows)], arguments.out)


if __name__ == "__main__":
    main()
