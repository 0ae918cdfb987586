"""Rows back in order, through many small runs in a file."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray import reorder
from s2r_ray.errors import S2RError
from s2r_ray.reorder import Reordered


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, pieces and spans of some rows each, as large selections have them."""
    monkeypatch.setattr(reorder, "_RUN_BYTES", 600)
    monkeypatch.setattr(reorder, "_PIECE_BYTES", 100)
    monkeypatch.setattr(reorder, "_SPAN_BYTES", 200)


def taken(rows: Reordered) -> list[dict[str, Any]]:
    rows.finish()
    spans = list(rows.spans())
    assert [low for low, _ in spans[1:]] == [high for _, high in spans[:-1]]
    return [row for low, high in spans for row in rows.take(low, high).to_pylist()]


@pytest.mark.usefixtures("small")
@given(order=st.permutations(range(60)), cuts=st.lists(st.integers(0, 60), max_size=9), seed=st.integers(0, 9))
def test_rows_come_back_by_position(order: list[int], cuts: list[int], seed: int) -> None:
    """Would catch rows lost or swapped where runs, pieces and spans meet, and texts cut at a piece's end."""
    text = {at: "é" * ((at * 7919 + seed) % 90) or None for at in order}
    bounds = [0, *sorted(cuts), 60]
    with Reordered(60) as rows:
        for low, high in pairwise(bounds):
            here = np.array(order[low:high], np.int64)
            rows.add(here, pa.table({"n": here, "text": pa.array([text[at] for at in here.tolist()], pa.string())}))
        assert taken(rows) == [{"n": at, "text": text[at]} for at in range(60)]


@pytest.mark.usefixtures("small")
def test_columns_grow_to_what_holds_all() -> None:
    """Files of a pool differ: a column that is missing, all null, or of whole numbers here and not there."""
    tables = [
        pa.table({"a": [1], "l": [[None]]}),
        pa.table({"a": [0.5], "b": ["x" * 700]}),
        pa.table({"a": pa.nulls(1), "l": [["y"]]}),
    ]
    with Reordered(3) as rows:
        for at, table in enumerate(tables):
            rows.add(np.array([2 - at]), table)
        assert taken(rows) == [
            {"a": None, "l": ["y"], "b": None},
            {"a": 0.5, "l": None, "b": "x" * 700},
            {"a": 1.0, "l": [None], "b": None},
        ]


def test_columns_that_do_not_go_together_are_told() -> None:
    """Would catch Arrow's traceback after everything was read."""
    with Reordered(2) as rows:
        rows.add(np.array([0]), pa.table({"a": ["x"]}))
        with pytest.raises(S2RError, match=r"do not go together: .*Field a"):
            rows.add(np.array([1]), pa.table({"a": [[1]]}))


def test_a_row_that_never_came_is_noticed() -> None:
    """Would catch an export that lacks rows and says nothing."""
    with Reordered(2) as rows:
        rows.add(np.array([0]), pa.table({"a": ["x"]}))
        with pytest.raises(S2RError, match="2 rows expected, 1 found"):
            rows.finish()


def test_memory_is_that_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch rows that stay in memory beside their copy in the file: 40 MiB go through a run of one MiB."""
    monkeypatch.setattr(reorder, "_RUN_BYTES", 1 << 20)
    monkeypatch.setattr(reorder, "_SPAN_BYTES", 1 << 20)
    before, most = pa.total_allocated_bytes(), 0
    with Reordered(400) as rows:
        for at in range(400):
            rows.add(np.array([399 - at]), pa.table({"text": [f"{at:<100000}"]}))
            most = max(most, pa.total_allocated_bytes() - before)
        rows.finish()
        for low, high in rows.spans():
            assert rows.take(low, high)["text"].to_pylist()[0] == f"{399 - low:<100000}"
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4 << 20
