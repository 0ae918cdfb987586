"""The table of candidates, and a selection that does not depend on how its work is cut up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.candidate_table import CandidateTable, _repeated, load_candidates, take_rows
from s2r_ray.errors import S2RError
from s2r_ray.selection import Ranking, rank
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import read_own
from tests.benchmarks.bench_driver import make, plan_of, snapshot_of
from tests.command import results

ROWS, UNITS = 8000, 4


def table_of(count: int) -> CandidateTable:
    return CandidateTable(np.array([0, count]), np.zeros(count, np.int32), np.zeros(count, np.bool_), count)


@given(
    faults=st.lists(st.lists(st.integers(0, 19), unique=True, max_size=8), max_size=4),
    first=st.integers(0, 20),
    size=st.integers(0, 20),
)
def test_the_first_reason_stays(faults: list[list[int]], first: int, size: int) -> None:
    """Catches: a row left out twice, with the second reason, or with its neighbour's words."""
    table = table_of(20)
    expected: dict[int, tuple[str, str]] = {}
    for turn, positions in enumerate(faults):
        words = pa.array([f"{turn} of {position}" for position in positions], pa.string())
        table.leave_out(np.array(positions, np.int64), f"reason {turn}", words)
        for position in positions:
            expected.setdefault(position, (f"reason {turn}", f"{turn} of {position}"))
    rows = table.reasons(first, first + size).to_pylist()
    here = sorted(position for position in expected if first <= position < first + size)
    assert [(row["at"], row["reason"], row["detail"]) for row in rows] == [(at, *expected[at]) for at in here]
    assert table.count_reasons() == Counter(reason for reason, _ in expected.values())
    assert np.flatnonzero(table.left_out).tolist() == sorted(expected)
    assert sorted(np.concatenate(list(table.blocks())).tolist() + list(expected)) == list(range(20))


@given(numbers=st.lists(st.integers(0, 9), max_size=30))
def test_repeated(numbers: list[int]) -> None:
    """Catches: a duplicate that is not looked at, such as one in another block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2r_ray.candidate_table._BLOCK", 4)
        found = _repeated(np.array(numbers, np.uint64)).tolist()
    assert found == [at for at, number in enumerate(numbers) if numbers.count(number) > 1]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """An index with duplicates and rows that the guards left out, and its scores, some of them faults."""
    place = Place.of(tmp_path_factory.mktemp("made-up"))
    make(place, ROWS, UNITS, seed=0)
    return place


def select(out: Place, run: Place) -> Ranking:
    plan = plan_of(out, ROWS, UNITS)
    stores = {"difficulty": ScoreStore.of(out, plan.signals[0])}
    return rank(out, snapshot_of(plan), stores, plan.weights, ["2", "50", "100"], run)


def test_rows_in_any_order(out: Place) -> None:
    """Catches: ids of other rows than those asked for, which would break ties and name duplicates wrongly."""
    plan = plan_of(out, ROWS, UNITS)
    candidates = load_candidates(out, snapshot_of(plan), {})
    tables = [read_own(out.child("index", f"{key}.candidates.parquet")) for _, key in plan.units]
    ids = [row["sample_id"] for table in tables for row in table.to_pylist() if row["reason"] is None]
    asked = np.random.default_rng(0).permutation(len(candidates))[:500]
    found = take_rows(out, snapshot_of(plan), candidates.starts, asked, ["sample_id"])
    assert found["sample_id"].to_pylist() == [ids[at] for at in asked]
    assert found["unit"].to_pylist() == (np.searchsorted(candidates.starts, asked, side="right") - 1).tolist()


def test_no_score(out: Place) -> None:
    """Catches: a candidate that was never judged ranked as if it had no difficulty."""
    plan = plan_of(out, ROWS, UNITS)
    with pytest.raises(S2RError, match=r"8,000 candidates have no novelty score; run `s2r score`"):
        load_candidates(out, snapshot_of(plan), {"novelty": ScoreStore.at(out, "novelty", "0" * 32, ())})


def test_cuts_do_not_show(out: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: rows lost, doubled or with a neighbour's numbers or reason where one block of work ends, which with
    blocks of their true sizes only pools of millions would show."""
    whole = select(out, Place.of(tmp_path / "whole"))
    assert set(whole.excluded) == {"unverified", "duplicate_sample", "difficulty_too_long"}
    monkeypatch.setattr("s2r_ray.candidate_table._BLOCK", 100)
    monkeypatch.setattr("s2r_ray.selection._WRITTEN_ROWS", 17)
    monkeypatch.setattr("s2r_ray.selection._MANIFEST_ROWS", 64)
    monkeypatch.setattr("s2r_ray.tables._AHEAD_ROWS", 1)
    monkeypatch.setattr("s2r_ray.store._TOGETHER_ROWS", 1)
    cut = select(out, Place.of(tmp_path / "cut"))
    one, other = (results(Place.of(tmp_path / name)) for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith("manifests/"):  # a row group for each block: other bytes, the same table
            tables = [pq.read_table(tmp_path / run / name) for run in ("whole", "cut")]
            assert tables[0].equals(tables[1])
        else:
            assert one[name] == other[name]
    assert (cut.excluded, cut.budgets, cut.addressing) == (whole.excluded, whole.budgets, whole.addressing)
