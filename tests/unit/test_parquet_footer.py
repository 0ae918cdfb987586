"""Footers read without Arrow, held against Arrow where it can read them, and damaged where it ends the process."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2r_ray.parquet_footer import ChunkSize, chunk_sizes
from s2r_ray.storage import Place
from tests.conftest import ROOT

ROWS = [
    {"i": n, "q": f"Q {n}", "t": [f"trace {n} " * 9] * 3, "v": [True], "s": {"a": 1.5, "b": None}} for n in range(40)
]


@pytest.mark.parametrize("groups", [15, 40])
def test_equals_arrow(tmp_path: Path, groups: int) -> None:
    """Catches: sizes of another column or row group, and statistics of any kind that are not stepped over."""
    path = tmp_path / "x.parquet"
    wide = pa.Table.from_pylist(ROWS).append_column("n", pa.array([{"k": [n]} for n in range(40)]))
    pq.write_table(wide, path, row_group_size=groups, write_page_checksum=True, write_page_index=True, version="2.6")
    metadata = pq.read_metadata(path)
    expected = [
        ChunkSize(group, column.path_in_schema.split(".")[0], column.num_values, column.total_uncompressed_size)
        for group in range(metadata.num_row_groups)
        for column in map(metadata.row_group(group).column, range(metadata.num_columns))
    ]
    assert list(chunk_sizes(Place.of(path))) == expected


def test_the_real_pool(shared: object) -> None:
    """Catches: a footer of another writer that is not understood."""
    for path in sorted(shared("data", "openr1_pool").glob("*.parquet")):  # type: ignore[operator]  # a function
        metadata = pq.read_metadata(path)
        found = list(chunk_sizes(Place.of(path)))
        assert len(found) == metadata.num_row_groups * metadata.num_columns
        assert sum(chunk.unpacked for chunk in found if chunk.group == 0) == metadata.row_group(0).total_byte_size


@settings(max_examples=300)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_damage(flips: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Catches: an error of another type, an endless loop, or memory for a count that is damaged."""
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=15)
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little") + 8
    for place, flip in flips:
        data[len(data) - 1 - int(place * length)] ^= flip
    path.write_bytes(bytes(data))
    try:
        list(chunk_sizes(Place.of(path)))
    except ValueError:
        return


READ = """
import random, sys
from s2r_ray.readers import BadFileError, Unit, read_unit
from s2r_ray.storage import Place
folder, seed = sys.argv[1:]
good = open(f"{folder}/good.parquet", "rb").read()
length, chance = int.from_bytes(good[-8:-4], "little") + 8, random.Random(seed)
for _ in range(1500):
    data = bytearray(good)
    for _ in range(chance.randrange(1, 5)):
        data[len(data) - 1 - chance.randrange(length)] ^= chance.randrange(1, 256)
    open(f"{folder}/x.parquet", "wb").write(data)
    try:
        list(read_unit(Place.of(folder), Unit(0, "x.parquet", len(data), "1"), ["q", "t", "v"], lambda *_: None))
    except BadFileError:
        pass
"""


def test_a_damaged_footer_does_not_end_the_process(tmp_path: Path) -> None:
    """Catches: Arrow ending a worker over a file that should be told as unreadable. One in some hundred files that are
    damaged in this way did."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "good.parquet", row_group_size=15, write_page_checksum=True)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), str(random.Random(0).random())],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
