"""Why a run ended before its time, and what the same command then does."""

from __future__ import annotations

from dataclasses import dataclass

EXIT_DIVERGED = 4  # of train.py, beside the budget guard's 3 and 75 for a step that is saved
MENDS = "lower optimizer.lr, lengthen scheduler.t_warmup, or look at the data of that step"


@dataclass(frozen=True)
class Stop:
    """Why a run ended before its time, in words, and what a program says of it to its caller."""

    words: str
    exit_code: int
    goes_on: str

    def ahead(self, checkpoint: str | None) -> str:
        """What comes next, in words. checkpoint: the last that was saved."""
        return f"{self.goes_on} goes on from here" if checkpoint else f"no step is saved: {self.goes_on} begins anew"


@dataclass(frozen=True)
class Diverged(Stop):
    """A run whose loss or weights have become NaN or infinite.

    is_from_start: that already its first step was, or the weights that it began with.
    """

    is_from_start: bool = False

    def ahead(self, checkpoint: str | None) -> str:
        if checkpoint is None:
            return f"no checkpoint was saved before that, {self.goes_on} begins anew: {MENDS}"
        if self.is_from_start:
            return f"without {checkpoint} {self.goes_on} goes on from the one before it, or begins anew: {MENDS}"
        again = f"{self.goes_on} goes on from it and may well come to the same"
        return f"the last checkpoint before that is {checkpoint}: {again}; under another run_name, {MENDS}"


class BrokenOff(Exception):
    """Training or an evaluation is left at once: whoever started the trainer saves and ends the run."""
