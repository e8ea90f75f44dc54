"""Files that a run appends to: a kill tears the last line at most, and the next line is whole."""

from __future__ import annotations

import json
from pathlib import Path

from recipes import json_lines


def test_what_comes_after_a_torn_line_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    assert list(json_lines.read(path)) == []
    json_lines.append(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "tas')
    json_lines.append(path, {"step": 3, "text": "ü"}, durable=True)
    json_lines.append(path, {"step": 4})
    assert list(json_lines.read(path)) == [{"step": 1}, None, {"step": 3, "text": "ü"}, {"step": 4}]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines() if "tas" not in line] == [1, 3, 4]


def test_what_is_no_object_is_said_to_be_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"[1]\n\n7\n" + b"[" * 200_000 + b"\n\xff{}\n{}\n")
    assert list(json_lines.read(path)) == [None, None, None, None, {}]
