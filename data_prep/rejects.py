"""Rows that are no document: stop at the first, or leave them out, list them and bound their share."""

import json
import shutil
from pathlib import Path

from data_prep.errors import PrepError
from data_prep.reading import Rejected

REJECTED = "rejected.jsonl"


class RejectedRows:
    """Decides about each bad row and keeps the list of those left out, in `staging`.

    Args:
        skip: leave bad rows out; else the first one stops the run.
        max_share: of all rows (0..1), above which the run fails at its end.
    """

    def __init__(self, staging: Path, skip: bool, max_share: float):
        self.count = 0
        self._path = staging / REJECTED
        self._skip = skip
        self._max_share = max_share

    def add(self, source_path: str, row: Rejected) -> None:
        """Note one bad row.

        Raises:
            PrepError: bad rows are not to be left out.
        """
        place = f"{source_path}:{row.line}"
        if not self._skip:
            raise PrepError(f"{place}: {row.reason}. (--on-error skip leaves such rows out and lists them.)")
        self.count += 1
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"place": place, "reason": row.reason}, ensure_ascii=False) + "\n")

    def finish(self, documents: int, split_folder: Path, out: Path) -> None:
        """Move the list into the split; above the allowed share, into the output folder, and fail.

        Raises:
            PrepError: more rows were rejected than allowed.
        """
        if not self.count:
            return
        share = self.count / (self.count + documents)
        if share > self._max_share:
            shutil.move(self._path, out / REJECTED)
            rejected = f"{self.count:,} of {self.count + documents:,} rows were rejected ({share:.2%})"
            raise PrepError(
                f"{rejected}, more than --max-rejected {self._max_share:g}; {out / REJECTED} lists them. "
                "Mend the input, or allow more."
            )
        shutil.move(self._path, split_folder / REJECTED)
