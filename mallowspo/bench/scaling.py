"""`mallowspo bench scaling`: time and memory of scoring, forward and backward, as its size grows.

Against the length of a row, the vocabulary, and the number of rows; each point a process of its own, on a small random
model, so that the output head is what costs. Three sides: ours; ours with nothing kept for the backward, which is what
it falls back to where memory is short; and the model's own logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mallowspo.bench.machine import machine
from mallowspo.bench.training import Measure

SIDES = ("ours", "ours, nothing kept", "plain")


@dataclass(frozen=True)
class Sizes:
    """What is gone through, one size at a time; the others stay at `vocabulary`, `length` and one row."""

    lengths: Sequence[int] = (128, 256, 512, 1024, 2048, 4096)
    vocabularies: Sequence[int] = (1024, 4096, 16384, 65536)
    rows: Sequence[int] = (1, 2, 4, 8)
    vocabulary: int = 8192
    length: int = 512
    #: Two lengths between which the memory of a token is told, at each vocabulary.
    few_and_many: tuple[int, int] = (512, 2048)

    def points(self) -> dict[str, list[dict[str, int]]]:
        """Points of each table."""
        usual = {"vocabulary": self.vocabulary, "length": self.length, "rows": 1}
        return {
            "length": [{**usual, "length": length} for length in self.lengths],
            "vocabulary": [
                {**usual, "vocabulary": size, "length": length}
                for size in self.vocabularies
                for length in self.few_and_many
            ],
            "rows": [{**usual, "rows": rows} for rows in self.rows],
        }


def run(
    sizes: Sizes, threads: int, device: str, work: Path, measure: Measure, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Every table; and how many bytes a token's memory grows by with each entry of the vocabulary."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, points in sizes.points().items():
        tables[name] = []
        for point in points:
            sides = {}
            for side in SIDES:
                tell(f"{name}: {point[name]}, {side}")
                task = {"kind": "scaling", "side": side, "threads": threads, "device": device, **point}
                file = f"{name}-{'-'.join(map(str, point.values()))}-{SIDES.index(side)}"
                sides[side] = measure(task, file, work)
            tables[name].append({**point, "sides": sides})
    slopes = {side: memory_slope(tables["vocabulary"], side, sizes.few_and_many) for side in SIDES}
    return {
        "memory_slope_vocabulary": slopes["ours, nothing kept"],
        "memory_slope_vocabulary_kept": slopes["ours"],
        "memory_slope_vocabulary_plain": slopes["plain"],
        "bytes_per_token": {side: _bytes_per_token(tables["vocabulary"], side, sizes.few_and_many) for side in SIDES},
        "machine": machine(device, threads),
        "tables": tables,
    }


def measurements(sizes: Sizes) -> int:
    return len(SIDES) * sum(len(points) for points in sizes.points().values())


def memory_slope(table: list[dict[str, Any]], side: str, few_and_many: tuple[int, int]) -> float:
    """Bytes by which a token needs more with each entry of the vocabulary, between the smallest and the largest.

    Full logits in float32 take 4 for each copy of them; memory that is flat in the vocabulary takes 0.
    """
    each = _bytes_per_token(table, side, few_and_many)
    smallest, largest = min(each, key=int), max(each, key=int)
    return (each[largest] - each[smallest]) / (int(largest) - int(smallest))


def _bytes_per_token(table: list[dict[str, Any]], side: str, few_and_many: tuple[int, int]) -> dict[str, float]:
    """Of each vocabulary: what one more token adds."""
    few, many = few_and_many
    added = {(point["vocabulary"], point["length"]): point["sides"][side]["added_bytes"] for point in table}
    sizes = dict.fromkeys(point["vocabulary"] for point in table)
    return {str(size): (added[size, many] - added[size, few]) / (many - few) for size in sizes}
