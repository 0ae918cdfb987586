"""Tables at a place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from s2r_ray.errors import S2RError
from s2r_ray.storage import Place
from s2r_ray.tables import open_parquet, read_ahead, read_table, write_table


def test_rows_and_columns_come_back_in_order(tmp_path: Path) -> None:
    """Would catch rows lost or reordered, columns that were not asked for, or a file left under another name."""
    place = Place.of(tmp_path / "a" / "t.parquet")
    table = pa.table({"x": list(range(10_000)), "y": [str(number) for number in range(10_000)]})
    write_table(place, table)
    assert read_table(place).equals(table)
    assert read_table(place, ["y"]).equals(table.select(["y"]))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["t.parquet"]


def test_no_python_object_stands_between_pyarrow_and_a_local_file(tmp_path: Path) -> None:
    """Would catch what made one command in ten abort after its work was done: a thread of pyarrow that lets go of a
    Python file while the interpreter ends."""
    place = Place.of(tmp_path / "t.parquet")
    write_table(place, pa.table({"x": [1]}))
    with place.open_arrow() as source:
        assert isinstance(source, pa.OSFile)


def test_a_missing_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    """Would catch the library's own exception, which no one above expects."""
    with pytest.raises(S2RError, match="there is no such file"), open_parquet(Place.of(tmp_path / "none.parquet")):
        pass


@pytest.mark.parametrize("rows", [0, 1, 1 << 13, 1 << 17])
def test_reading_ahead_is_bounded_by_rows(rows: int) -> None:
    """Would catch results in order of arrival, and a few large tables too many in memory at once, or one small one
    read after the other."""
    table = pa.table({"x": np.zeros(rows, np.int8)})
    begun: list[int] = []
    most = 0

    def read(number: int) -> pa.Table:
        begun.append(number)
        return table.append_column("number", pa.array(np.full(rows, number)))

    for expected, found in enumerate(read_ahead(read, range(60))):
        assert set(found["number"].unique().to_pylist()) <= {expected}
        most = max(most, len(begun) - expected)
    assert sorted(begun) == list(range(60))
    assert most <= (3 if rows == 1 << 17 else 18)


def test_reading_ahead_hands_on_what_fails() -> None:
    """Would catch an error that is lost in a thread, or that keeps the whole from ending."""

    def read(number: int) -> int:
        if number == 5:
            raise S2RError("the sixth")
        return number

    with pytest.raises(S2RError, match="the sixth"):
        list(read_ahead(read, range(40)))
