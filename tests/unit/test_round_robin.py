"""Queries that take turns, against the slow way; and over a made-up index with a score store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2r_ray.baselines import Baselines, baseline_place, check_baselines
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.index import candidates_place
from s2r_ray.ranking import budget_size
from s2r_ray.round_robin import take_in_turn
from s2r_ray.selection import rank
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from tests.benchmarks.bench_driver import make, plan_of, snapshot_of

ROWS, UNITS, QUERIES = 1000, 4, 7
BUDGETS = ("1", "30", "100")


def in_turn(like: np.ndarray, lengths: np.ndarray, ids: list[str], k: int) -> list[int]:
    """The slow way: each query sorts all rows and takes the first that nobody has."""
    queries = like.shape[1]
    wanted = [
        sorted(range(len(ids)), key=lambda row, q=q: (-like[row, q], -lengths[row], ids[row], row))
        for q in range(queries)
    ]
    taken: dict[int, None] = {}
    while len(taken) < k:
        mine = wanted[len(taken) % queries]
        taken[next(row for row in mine if row not in taken)] = None
    return list(taken)


@settings(max_examples=150)
@given(st.data())
def test_turns_equal_brute_force(data: st.DataObject) -> None:
    """Catches: a sample taken twice, a turn lost, ties in another order, a sample that lies deeper than a pass keeps
    and is passed over, a result that depends on blocks."""
    rows, queries = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    levels = data.draw(st.sampled_from([1, 2, 5, 1 << 20]))
    like = (rng.integers(-levels, levels + 1, (rows, queries)) / levels).astype(np.float32)
    like = np.round(like * 2**20).astype(np.float32) / np.float32(2**20)
    lengths = rng.integers(1, data.draw(st.sampled_from([2, 4, 100])), rows).astype(np.int32)
    ids = [f"é{number}" for number in rng.integers(0, data.draw(st.sampled_from([1, 3, 1000])), rows)]
    order, cut = rng.permutation(rows), data.draw(st.integers(1, rows))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for part in np.split(order, range(cut, rows, cut)):
            yield part, like[part]

    k = data.draw(st.integers(1, rows))
    found = take_in_turn(blocks, queries, lengths, pa.array(ids), k, held=data.draw(st.integers(1, 60)))
    assert found.tolist() == in_turn(like, lengths, ids, k)


def test_passes_are_few() -> None:
    """Catches: a pass over the store for each sample; queries that all want the same, which is the worst case, need
    one for each `held / queries` samples, and queries that want different ones a single pass."""
    rng = np.random.default_rng(0)
    lengths, ids = np.ones(4000, np.int32), pa.array([f"{number:05}" for number in range(4000)])
    for alike, passes in ((True, 10), (False, 1)):
        like = np.round(rng.random((4000, 1 if alike else 4)) * 2**20).astype(np.float32) / np.float32(2**20)
        like = np.repeat(like, 4, axis=1) if alike else like
        calls = []

        def blocks(like: np.ndarray = like, calls: list[int] = calls) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            calls.append(1)
            yield np.arange(4000), like

        take_in_turn(blocks, 4, lengths, ids, 1000, held=400 if alike else 1600)
        assert len(calls) == passes


def test_vectors_that_are_missing_are_told() -> None:
    """Catches: a loop that never ends when the store has fewer samples than are ranked."""
    with pytest.raises(S2RError, match="3 samples with a vector expected, 2 found"):
        take_in_turn(
            lambda: iter([(np.array([0, 2]), np.zeros((2, 3), np.float32))]),
            3,
            np.ones(3, np.int32),
            pa.array(["a", "b", "c"]),
            3,
        )


@pytest.mark.parametrize("alone", [True, False])
def test_over_a_store(alone: bool, tmp_path: Path) -> None:
    """Catches: a vector that is another sample's, duplicates and samples without a score that take part, samples judged
    twice of which the other value's vector counts, units in another order that change who is taken."""
    out = Place.of(tmp_path / "out")
    make(out, ROWS, UNITS, seed=0)
    plan = plan_of(out, ROWS, UNITS)
    keys = pa.concat_tables([pq.read_table(candidates_place(out, key).uri) for _, key in plan.units])
    keys = keys.filter(keys["reason"].is_null())["sample_key"].combine_chunks().unique()
    rng = np.random.default_rng(0)
    levels = 1 << 20 if alone else 4
    like = (rng.integers(0, levels + 1, (len(keys), QUERIES)) / levels).astype("<f4")
    lost = np.arange(len(keys)) % 50 == 0
    store = ScoreStore.at(out, "near", "0" * 32, (), "sample", QUERIES)
    for start in range(0, len(keys), 300):
        store.append(_scores(keys[start : start + 300], like[start : start + 300], lost[start : start + 300]))
    store.append(_scores(keys[100:200], like[100:200] + 1, lost[100:200]))  # judged twice, by another mood

    found = {}
    for turned in (False, True):
        snapshot = snapshot_of(plan)
        snapshot = replace(snapshot, units=snapshot.units[::-1]) if turned else snapshot
        run = Place.of(tmp_path / f"run-{turned}")
        stores = {"difficulty": ScoreStore.of(out, plan.signals[0]), "near": store}
        done = rank(out, snapshot, stores, plan.weights, BUDGETS, run, None, Baselines(("round_robin:near",)))
        ranking = pq.read_table(run.child("ranking").uri)
        assert "vector" not in ranking.column_names
        assert done.excluded["near_too_long"] > 0
        found[turned] = [
            pq.read_table(baseline_place(run, "round_robin:near", budget).uri)["sample_id"].to_pylist()
            for budget in BUDGETS
        ]
    assert found[True] == found[False]
    index = pa.concat_tables([pq.read_table(candidates_place(out, key).uri) for _, key in plan.units])
    key_of = dict(zip(index["sample_id"].to_pylist(), index["sample_key"].to_pylist(), strict=True))
    place = {key: number for number, key in enumerate(keys.to_pylist())}
    ids = ranking["sample_id"].to_pylist()
    at = [place[key_of[name]] for name in ids]
    lengths = ranking["trace_tokens_unique"].to_numpy()
    expected = in_turn(like[at], lengths, ids, len(ids))
    for budget, names in zip(BUDGETS, found[True], strict=True):
        assert names == [ids[row] for row in expected[: budget_size(len(ids), budget)]]


def _scores(keys: pa.Array, like: np.ndarray, lost: np.ndarray) -> pa.Table:
    ok = np.where(lost, "too_long", "ok")
    vectors: list[Any] = [None if gone else row.astype("<f4").tobytes() for row, gone in zip(like, lost, strict=True)]
    return pa.table(
        {
            "key": keys,
            "value": pa.array(like.max(axis=1).astype(np.float64), mask=lost),
            "vector": pa.array(vectors, pa.binary(4 * QUERIES)),
            "status": ok,
            "detail": pa.array(["long"] * len(keys), mask=~lost),
        }
    )


def test_only_signals_with_vectors_have_turns() -> None:
    """Catches: a baseline that is accepted and fails when everything has been judged."""
    check_baselines(["round_robin:rds"], ["difficulty", "rds"], [], ["rds"])
    with pytest.raises(UsageError, match="no baseline round_robin:difficulty"):
        check_baselines(["round_robin:difficulty"], ["difficulty", "rds"], [], ["rds"])
    assert Baselines(("round_robin:rds", "middle:length")).columns() == ["rds", "length"]
