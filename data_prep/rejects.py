"""Rows that are no document and were left out: their list, and the bound on their share."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import Interrupted
from data_prep.part_files import REJECTS, PartFacts, part_folder
from data_prep.parts import Part
from data_prep.sources import Source, recorded_path

REJECTED = "rejected.jsonl"
REFUSED = ".rejected.jsonl"  # in OUT, of a run that failed by their number; hidden, as it is no input


class RowNumbers:
    """Turns lines counted from the start of a segment into lines counted from the start of the source."""

    def __init__(self, sources: Sequence[Source], parts: Sequence[Part]):
        self._sources = sources
        self._parts = parts
        self._before = [0] * len(sources)  # rows of each source in the parts passed

    def place(self, part: int, segment: int, line: int) -> str:
        """FILE:LINE. All parts before this one must have been passed."""
        found = self._parts[part].segments[segment]
        return f"{recorded_path(self._sources[found.source].path)}:{self._before[found.source] + line}"

    def pass_part(self, part: int, facts: PartFacts) -> None:
        for segment, rows in zip(self._parts[part].segments, facts.rows, strict=True):
            self._before[segment.source] += rows


def list_rejected(
    staging: Path, parts_folder: Path, numbers: RowNumbers, facts: Sequence[PartFacts], max_share: float, out: Path
) -> Path | None:
    """The list of all rejected rows, in `staging`; None: there are none.

    Raises:
        Interrupted: they are more than `max_share` (0..1) of all rows; then the list is in `out`.
    """
    count = sum(part.rejected for part in facts)
    if not count:
        return None
    path = staging / REJECTED
    with open(path, "w", encoding="utf-8") as file:
        for number, part in enumerate(facts):
            if part.rejected:
                with open(part_folder(parts_folder, number) / REJECTS, encoding="utf-8") as rows:
                    for row in map(json.loads, rows):
                        place = numbers.place(number, row["segment"], row["line"])
                        line = {"place": place, "reason": row["reason"]}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
            numbers.pass_part(number, part)
    rows_read = sum(sum(part.rows) for part in facts)
    share = count / rows_read
    if share > max_share:
        shutil.move(path, out / REFUSED)
        rejected = f"{count:,} of {rows_read:,} rows were rejected ({share:.2%})"
        raise Interrupted(
            f"{rejected}, more than --max-rejected {max_share:g}; {out / REFUSED} lists them. "
            "Allow more to go on from what is finished, or mend the input and give --overwrite."
        )
    return path
