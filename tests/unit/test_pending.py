"""Which questions are judged, and how they are cut into work, against plain Python."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from s2r_ray.index import QUESTIONS_SCHEMA, Snapshot, candidates_place, questions_place
from s2r_ray.pending import Pending, find_questions, pending_tokens, work_items
from s2r_ray.readers import Unit
from s2r_ray.storage import Place
from s2r_ray.subjects import load_questions
from s2r_ray.tables import write_table


@settings(max_examples=25)
@given(
    units=st.lists(st.lists(st.integers(0, 12), max_size=8, unique=True), max_size=5),
    done=st.sets(st.integers(0, 12)),
    batch=st.integers(1, 9),
    workers=st.integers(1, 3),
)
def test_each_pending_question_once(units: list[list[int]], done: set[int], batch: int, workers: int) -> None:
    """Catches: a question judged twice or never, its neighbour's text judged in its place, units without questions
    that shift those after them, and work in another order than the pool's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Place.of(Path(folder))
        keys = [f"fingerprint/{number}" for number in range(len(units))]
        for name, unit in zip(keys, units, strict=True):
            columns = [[bytes([number]) * 16 for number in unit], [f"question {number}" for number in unit]]
            columns = [pa.array(c, f.type) for c, f in zip(columns, QUESTIONS_SCHEMA, strict=True)]
            write_table(questions_place(out, name), pa.table(columns, QUESTIONS_SCHEMA))
        snapshot = Snapshot(("pool",), tuple((Unit(0, name, 1, "1"), name) for name in keys))
        questions = find_questions(out, snapshot)
        asked = list(dict.fromkeys(number for unit in units for number in unit))
        assert len(questions.keys) == len(asked)
        settled = np.isin([key[0] for key in questions.keys.keys(np.arange(len(asked))).to_pylist()], list(done))
        pending = questions.pending(settled)
        left = [number for number in asked if number not in done]
        assert (pending.distinct, len(pending)) == (len(asked), len(left))
        tables = [load_questions(out, item) for item in work_items(snapshot, pending, batch, workers)]
        if workers == 1:
            sizes = [min(batch, len(left) - at) for at in range(0, len(left), batch)]
            assert [table.num_rows for table in tables] == sizes
        found = [row for table in tables for row in table.to_pylist()]
        assert [row["question"] for row in found] == [f"question {number}" for number in left]
        assert [row["key"] for row in found] == [bytes([number]) * 16 for number in left]


def test_items_become_smaller_when_workers_share_what_is_left() -> None:
    """Catches: a slow worker that sits on whole batches while the others have nothing left to do, and many small
    items where they help nobody."""
    snapshot = Snapshot(("pool",), ((Unit(0, "0.parquet", 1, "1"), "fingerprint/0"),))
    pending = Pending(100_000, np.arange(100_000), np.array([0, 100_000]))

    def sizes(workers: int) -> list[int]:
        items = work_items(snapshot, pending, 512, workers)
        rows = [np.frombuffer(b"".join(item["rows"]), np.int32) for item in items]
        assert np.array_equal(np.concatenate(rows), np.arange(100_000))
        return [len(some) for some in rows]

    assert set(sizes(1)[:-1]) == {512}
    many = sizes(4)
    assert many[:-1] == sorted(many, reverse=True)[:-1]
    assert many[0] == 512
    assert set(many[-20:-1]) == {64}
    assert 512 * many.count(512) > 50_000


def test_tokens_of_what_is_pending(tmp_path: Path) -> None:
    """Catches: lengths of rows that are no candidates, or of those that are judged already; a unit's rows looked up
    in another's."""
    out = Place.of(tmp_path)
    for name, reasons, tokens in (("a/a", [None, "empty", None], [1, None, 10]), ("b/b", [None, None], [100, 1000])):
        responses = [None if count is None else 10_000 * count for count in tokens]
        columns = {"reason": reasons, "question_tokens": tokens, "response_tokens": responses}
        table = pa.table(columns).cast(pa.schema([("reason", pa.string()), *((n, pa.int32()) for n in [*columns][1:])]))
        write_table(candidates_place(out, name), table)
    snapshot = Snapshot(("pool",), tuple((Unit(0, name, 1, "1"), name) for name in ("a/a", "b/b")))
    starts = np.array([0, 2, 4])
    assert pending_tokens(out, snapshot, Pending(4, np.array([1, 2]), starts)) == 110 * 10_001
    assert pending_tokens(out, snapshot, Pending(4, np.arange(4), starts)) == 1111 * 10_001
    assert pending_tokens(out, snapshot, Pending(4, np.arange(0), starts)) == 0
