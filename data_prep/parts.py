"""The input cut into parts, which are tokenised one by one, in any order and by any process.

Where the cuts are depends on the sources alone, never on the number of workers. A part is a list of segments; a segment
is a range of bytes of a source and holds the rows that begin in it. Small files share a part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep.sources import Source

PART_BYTES = 32 << 20  # of input as stored
_MOST_SEGMENTS = 4096  # of small files in a part


@dataclass(frozen=True)
class Segment:
    """The rows of a source that begin at bytes [start, end)."""

    source: int  # its place in the list of sources
    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """What one task tokenises."""

    number: int  # in the order of the output
    segments: tuple[Segment, ...]

    @property
    def bytes(self) -> int:
        return sum(segment.end - segment.start for segment in self.segments)


def cut_into_parts(sources: Sequence[Source], part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts, in order. Compressed files and text files are never cut: only their start says where a row begins."""
    parts: list[Part] = []
    waiting: list[Segment] = []
    waiting_bytes = 0
    for segment in _segments(sources, part_bytes):
        size = segment.end - segment.start
        if waiting and (waiting_bytes + size > part_bytes or len(waiting) == _MOST_SEGMENTS):
            parts.append(Part(len(parts), tuple(waiting)))
            waiting, waiting_bytes = [], 0
        waiting.append(segment)
        waiting_bytes += size
    if waiting:
        parts.append(Part(len(parts), tuple(waiting)))
    return parts


def whole_sources(parts: Sequence[Part], sources: Sequence[Source]) -> set[int]:
    """The sources that whoever reads their one segment hashes on the way."""
    return {
        segment.source
        for part in parts
        for segment in part.segments
        if segment.start == 0
        and segment.end == sources[segment.source].bytes
        and sources[segment.source].is_read_in_order
    }


def _segments(sources: Sequence[Source], part_bytes: int) -> Iterator[Segment]:
    for number, source in enumerate(sources):
        if not source.can_be_cut or source.bytes <= part_bytes:
            yield Segment(number, 0, source.bytes)
            continue
        for start in range(0, source.bytes, part_bytes):
            yield Segment(number, start, min(start + part_bytes, source.bytes))
