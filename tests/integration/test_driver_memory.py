"""What the driver holds grows with the pool by a few dozen bytes a sample and not by hundreds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s2r_ray.index import Snapshot
from s2r_ray.readers import Unit
from s2r_ray.score import Pending, work_items
from s2r_ray.storage import Place
from tests.benchmarks.bench_driver import make, start

SIZES = (1_000_000, 2_000_000)
MOST = 100
RUNS = 3
"""Threads meet differently each time: single peaks of a size differ by up to 80 MiB, the smallest of three by a few."""


def test_a_night_with_nothing_to_judge(tmp_path: Path) -> None:
    """Would catch a hash table of keys, a Python object or a published column held for every row: before those were
    gone, this was 250 bytes. The difference of two sizes has neither imports nor buffers in it; 10 million samples,
    where bytes a sample are fewer, are measured by tests/benchmarks/bench_driver.py."""
    peaks = []
    for rows in SIZES:
        make(Place.of(tmp_path / str(rows)), rows, units=50, seed=0, batch=1 << 14)
        peaks.append(min(start("night", tmp_path / str(rows), rows, units=50, seed=0)["peak"] for _ in range(RUNS)))
    assert (peaks[1] - peaks[0]) / (SIZES[1] - SIZES[0]) < MOST


def test_work_items_are_small() -> None:
    """Would catch a list of numbers for each question, which for a new pool of 10 million takes a gigabyte."""
    snapshot = Snapshot(("pool",), tuple((Unit(0, str(unit), 1, "1"), f"unit-{unit}") for unit in range(3)))
    starts = np.array([0, 40_000, 40_000, 100_000])
    items = work_items(snapshot, Pending(100_000, np.arange(100_000), starts), 512, 1)
    held = [value for item in items for values in item.values() for value in values]
    assert {type(value) for value in held} == {str, bytes}
    assert sum(map(len, held)) < 5 * 100_000
