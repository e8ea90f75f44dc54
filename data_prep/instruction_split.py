"""A split of instruction data while it is made, and what reads it in a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from data_prep.conversations import Turn, count_tokens
from data_prep.errors import PrepError
from data_prep.manifest import ROLE_HELD_OUT
from data_prep.mixture import quoted
from data_prep.split_manifest import DOCUMENTS, BuiltSplit
from data_prep.splits import told_left_out
from data_prep.writing import JsonShardWriter

CUT, LEFT_OUT = "too long, cut", "too long, left out"  # what became of rows


class SplitWriter:
    """One split while it is made."""

    def __init__(self, folder: Path, role: str):
        folder.mkdir()
        self.folder = folder
        self.role = role
        self.samples = self.tokens = self.loss_tokens = self.conversations = self.text_bytes = 0
        self._writer = JsonShardWriter(folder, "turns")
        self._rows = open(folder / DOCUMENTS, "wb") if role == ROLE_HELD_OUT else None  # noqa: SIM115 (closed by finish)

    def add(self, turns: list[Turn], row: bytes, is_conversation: bool) -> None:
        self.samples += 1
        self.conversations += is_conversation
        self.tokens += count_tokens(turns)
        self.loss_tokens += sum(len(turn.labels) for turn in turns)
        self.text_bytes += len(row)
        self._writer.write([asdict(turn) for turn in turns])
        if self._rows is not None:
            self._rows.write(row + b"\n")

    def finish(self, left_out: Mapping[str, int]) -> BuiltSplit:
        """What was written. Raises PrepError where there is no sample; `left_out`: of all splits, by the reason."""
        if self._rows is not None:
            self._rows.close()
        if not self.samples:
            told = f" ({told_left_out(left_out)})" if any(left_out.values()) else ""
            longer = ", or a larger --seq-len" if left_out.get(LEFT_OUT) else ""
            larger = ", or a larger --holdout" if self.role == ROLE_HELD_OUT else ""
            raise PrepError(f"split {self.folder.name!r}: no row is left{told}; give more rows{longer}{larger}.")
        return BuiltSplit(
            documents=self.samples,
            text_bytes=self.text_bytes,
            sequences=self.samples,
            tokens=self.tokens,
            dropped_tokens=0,
            shards=self._writer.finish(),
            loss_tokens=self.loss_tokens,
            conversations=self.conversations,
        )


def fragment(out: str, splits: Sequence[str]) -> str:
    """The part of a recipe that reads the shards; of `splits` the last is trained on, one before it evaluated.

    The stream has the name that it has in yamls/data/instructions-*.yaml, so that it stands in its place.
    """
    loaders = ("eval_loader", "train_loader")[-len(splits) :]
    return "\n".join(
        line
        for loader, split in reversed(list(zip(loaders, splits, strict=True)))
        for line in (
            f"{loader}:",
            "  dataset:",
            "    streams:",
            "      instructions:",
            f"        local: {quoted(out)}",
            f"        split: {quoted(split)}",
        )
    )
