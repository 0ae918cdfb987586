"""Ranks, joint ranks, budgets and the order, against scipy and a slow reference with exact fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from s2r_ray import ranking
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.ranking import (
    CutoffWindow,
    JointRanker,
    RankTable,
    ValueCounter,
    average_ranks,
    budget_size,
    count_values,
    cutoff_window,
    find_cutoff,
    joint_ranker,
    merge_counts,
    order_rows,
    parse_percent,
    parse_weights,
    select_top,
    top_rows,
)

QUICK = settings(deadline=None)  # the machine may be busy with other tests
GRID = 2.0**-20
FINITE = st.floats(allow_nan=False, allow_infinity=False)
FLOAT_KINDS = [
    FINITE,
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-310, 1.7e308, -1.7e308, 1.0, 1.0 + 2**-52, GRID, -GRID]),
    st.integers(0, 1 << 20).map(lambda step: step * GRID),
    st.integers(0, 5).map(float),
    st.integers(-(1 << 40), 1 << 40).map(lambda step: step * GRID),
]
INT_KINDS = [
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(0, 20_000),
    st.integers(-3, 3),
    st.integers((1 << 63) - 5, (1 << 63) - 1),
]
FLOATS = st.one_of(*(st.lists(kind, min_size=1, max_size=60) for kind in [*FLOAT_KINDS, st.one_of(FLOAT_KINDS)]))
INTS = st.one_of(*(st.lists(kind, min_size=1, max_size=60) for kind in [*INT_KINDS, st.one_of(INT_KINDS)]))
COLUMNS = FLOATS.map(np.array) | INTS.map(lambda values: np.array(values, np.int64))
DECIMALS = st.decimals(0, 1000, places=6) | st.decimals(0, 1, places=2)


def blocks_of(values: np.ndarray[Any, Any], cuts: Sequence[int]) -> list[np.ndarray[Any, Any]]:
    """The values in blocks, cut at the given places (modulo their number); some blocks are empty."""
    return np.split(values, sorted(cut % (values.size + 1) for cut in cuts))


def scipy_ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """rankdata(-x), with the sign turned in Python for integers: -(-2^63) overflows in int64."""
    if values.dtype.kind == "f":
        return rankdata(-values, method="average")
    distinct = {value: place for place, value in enumerate(sorted(set(values.tolist()), reverse=True))}
    return rankdata([distinct[value] for value in values.tolist()], method="average")


def ranker_of(columns: dict[str, np.ndarray[Any, Any]], weights: dict[str, Any]) -> JointRanker[RankTable]:
    counts = {name: count_values(values, name) for name, values in columns.items()}
    return joint_ranker(counts, parse_weights(weights, list(columns)))


# --- ranks of one signal --------------------------------------------------------------------------


@QUICK
@given(COLUMNS)
def test_ranks_equal_scipy(values: np.ndarray[Any, Any]) -> None:
    """Catches: wrong averages in ties, -0.0 apart from 0.0, lost bits of huge integers or subnormals."""
    assert np.array_equal(average_ranks(count_values(values)).ranks(values), scipy_ranks(values))


@QUICK
@given(COLUMNS)
def test_ascending_ranks_equal_scipy(values: np.ndarray[Any, Any]) -> None:
    """Catches: a direction that is ignored, or reversed twice."""
    table = average_ranks(count_values(values), "low")
    assert np.array_equal(table.ranks(values), values.size + 1 - scipy_ranks(values))


@QUICK
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_float32_ranks_equal_scipy(values: list[float]) -> None:
    """Catches: overflow to infinity, or rounding, when float32 is brought to the grid."""
    column = np.array(values, np.float32)
    with np.errstate(all="raise"):
        assert np.array_equal(average_ranks(count_values(column)).ranks(column), rankdata(-column))


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int32, np.uint64, np.float16])
def test_every_number_type(dtype: Any) -> None:
    """Catches: narrow types overflowing in the arithmetic of keys."""
    column = np.array([0, 1, 1, 0, 1, 100], np.uint8).astype(dtype)
    assert np.array_equal(average_ranks(count_values(column)).ranks(column), rankdata(-column.astype(float)))


@pytest.mark.parametrize("value", [0, 7, -(1 << 63), (1 << 63) - 1, 0.0, -0.0, 0.5, 5e-324, 1.7e308])
@pytest.mark.parametrize("rows", [1, 1000])
def test_all_equal(value: float, rows: int) -> None:
    """Catches: an empty range, or a first key at the edge of int64, treated as no rows at all."""
    column = np.full(rows, value)
    assert set(average_ranks(count_values(column)).ranks(column)) == {(rows + 1) / 2}


@pytest.mark.parametrize("size", [1 << 18, (1 << 18) + 1, 700_001])
@pytest.mark.parametrize("grid", [True, False])
def test_more_rows_than_a_chunk(size: int, grid: bool) -> None:
    """Catches: rows lost or counted twice at the edges of internal chunks; Hypothesis stays below them."""
    rng = np.random.default_rng(size)
    values = rng.integers(0, 1 << 20, size) * GRID if grid else rng.normal(size=size).round(3) * 1e10
    table = average_ranks(count_values(values))
    assert table.rows == size
    assert np.array_equal(table.ranks(values), rankdata(-values))


def test_range_wider_than_the_array() -> None:
    """Catches: values dropped or shifted when counting goes over from the array to sorting half way."""
    counter = ValueCounter("length")
    blocks = [np.arange(10), np.array([ranking.DENSE_SLOTS * 3, 5]), np.array([-4, 5])]
    for block in blocks:
        counter.add(block)
    counts = counter.counts()
    values, times = np.unique(np.concatenate(blocks), return_counts=True)
    assert np.array_equal(counts.values, values)
    assert np.array_equal(counts.counts, times)


@QUICK
@given(COLUMNS, st.lists(st.integers(0, 60), max_size=6), st.randoms())
def test_blocks_and_workers_do_not_matter(values: np.ndarray[Any, Any], cuts: list[int], random: Any) -> None:
    """Catches: counts that depend on block size, block order, or on how workers' counts are merged."""
    whole = count_values(values)
    blocks = blocks_of(values, cuts)
    random.shuffle(blocks)
    streamed = ValueCounter()
    for block in blocks:
        streamed.add(block)
    merged = merge_counts(count_values(block) for block in blocks)
    for counts in (streamed.counts(), merged):
        assert counts.values.dtype == whole.values.dtype
        assert np.array_equal(counts.values, whole.values)
        assert np.array_equal(counts.counts, whole.counts)


def test_no_negative_zero_among_counted_values() -> None:
    """Catches: counts whose bytes depend on which of -0.0 and 0.0 came first."""
    for values in ([-0.0, 0.0, 0.3], [-0.0, 0.5], [-0.0]):
        assert not np.signbit(count_values(np.array(values)).values).any()


def test_counter_goes_on_after_a_look() -> None:
    """Catches: reading the counts shares memory with, or resets, the counter."""
    for values in (np.array([1, 1, 2]), np.array([0.1, 0.1, 1e300])):
        counter = ValueCounter()
        counter.add(values)
        before = counter.counts().counts.copy()
        seen = counter.counts()
        counter.add(values)
        assert np.array_equal(seen.counts, before)
        assert np.array_equal(counter.counts().counts, 2 * before)


def test_many_small_off_grid_blocks() -> None:
    """Catches: pending blocks forgotten, or merged twice, around the merge threshold."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=600_000).round(5)
    counter = ValueCounter()
    for block in np.array_split(values, 997):
        counter.add(block)
    distinct, times = np.unique(values + 0.0, return_counts=True)
    assert np.array_equal(counter.counts().values, distinct)
    assert np.array_equal(counter.counts().counts, times)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (
            [0.5, np.nan, 1.0],
            "difficulty (part-3): 1 of 3 values are not finite (1 NaN, 0 infinite), at rows 1 ",
        ),
        (
            [np.inf] * 4 + [-np.inf, np.nan],
            "6 of 6 values are not finite (1 NaN, 5 infinite), at rows 0, 1, 2, 3, 4, …",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_not_finite_is_refused(values: list[float], found: str, dtype: Any) -> None:
    """Catches: NaN ranked as the hardest or the easiest; a message that does not say where it was."""
    counter = ValueCounter("difficulty")
    counter.add(np.array([0.25], dtype))
    with pytest.raises(S2RError) as error:
        counter.add(np.array(values, dtype), "part-3")
    assert found in str(error.value)
    assert counter.counts().rows == 1, "nothing of a refused block may be counted"


@pytest.mark.parametrize(
    "column",
    [np.array(["1"]), np.array([None]), np.zeros((2, 2)), np.array([1j]), np.array(["2020-01-01"], "M8[s]")],
)
def test_not_a_column_of_numbers(column: Any) -> None:
    """Catches: strings, nulls or matrices ranked in whatever way NumPy compares them."""
    with pytest.raises(S2RError, match="a column of numbers was expected"):
        count_values(column)


def test_integers_are_not_mixed_with_floats() -> None:
    """Catches: 2^53 + 1 silently tied with 2^53 because another block of the signal had floats."""
    counter = ValueCounter("tokens")
    counter.add(np.array([1 << 53, (1 << 53) + 1]))
    with pytest.raises(S2RError, match=r"tokens .b2.: integers and floats"):
        counter.add(np.array([1.0]), "b2")
    with pytest.raises(S2RError, match="counted as int64, looked up as float64"):
        average_ranks(counter.counts()).ranks(np.array([1.0]))
    with pytest.raises(S2RError, match="above 2"):
        counter.add(np.array([1 << 63], np.uint64))


@pytest.mark.parametrize("counted", [[1.0, 2.0, 4.0], [1e300, 2e300, 4e300], []])
@pytest.mark.parametrize("looked_up", [3.0, 1.5, 9.0, -9.0, 1.0 + 2**-30, 3e300])
def test_unknown_value_is_refused(counted: list[float], looked_up: float) -> None:
    """Catches: a row that was not counted (another pool, a later block) getting its neighbour's rank."""
    table = average_ranks(count_values(np.array(counted)))
    with pytest.raises(S2RError, match="never counted"):
        table.ranks(np.array([*counted, looked_up]))


def test_no_rows() -> None:
    """Catches: a crash on the empty blocks that every pipeline makes."""
    table = average_ranks(count_values(np.array([])))
    assert table.rows == 0
    assert table.ranks(np.array([])).size == 0
    assert merge_counts([]).rows == 0


# --- weights and the joint rank -------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn, signals: int = 3) -> dict[str, Any]:
    """A small pool with many ties: signals, a length, sample ids that repeat, and a place that is unique."""
    rows = draw(st.integers(1, 40))
    few = st.lists(st.integers(0, draw(st.sampled_from([0, 3, 1000]))), min_size=rows, max_size=rows)
    columns = {f"s{i}": np.array(draw(few)) for i in range(signals)}
    columns["s0"] = columns["s0"] * GRID
    text = st.text("ab\x00é\uffff\U0001f600", max_size=3)
    ids = draw(st.lists(text, min_size=rows, max_size=rows))
    weights = {name: draw(DECIMALS) for name in columns}
    weights["s1"] += Decimal("0.5")
    return {
        "columns": columns,
        "lengths": columns["s1"],
        "ids": np.array([*ids, None], object)[:-1],
        "place": np.array(draw(st.permutations(range(rows)))),
        "weights": weights,
    }


def exact_joint(columns: dict[str, np.ndarray[Any, Any]], weights: dict[str, Any]) -> list[Fraction]:
    """Weighted mean of average ranks, by definition: for each row, count the rows above and beside it."""
    total = sum(Fraction(str(weight)) for weight in weights.values())
    size = len(next(iter(columns.values())))
    joint = [Fraction(0)] * size
    for name, weight in weights.items():
        values = columns[name].tolist()
        for i in range(size):
            above = sum(other > values[i] for other in values)
            beside = sum(other == values[i] for other in values)
            joint[i] += Fraction(str(weight)) / total * (above + Fraction(beside + 1, 2))
    return joint


def exact_order(pool: dict[str, Any]) -> list[int]:
    joint = exact_joint(pool["columns"], pool["weights"])
    return sorted(
        range(len(joint)),
        key=lambda i: (joint[i], -int(pool["lengths"][i]), pool["ids"][i].encode(), int(pool["place"][i])),
    )


@given(pools())
@settings(max_examples=200, deadline=None)
def test_order_equals_the_definition(pool: dict[str, Any]) -> None:
    """Catches: floating-point sums that tear ties apart; tie rules in the wrong order or direction."""
    ranker = ranker_of(pool["columns"], pool["weights"])
    block = ranker.rank(pool["columns"])
    joint = exact_joint(pool["columns"], pool["weights"])
    assert [Fraction(int(j), ranker.denominator) for j in block.joint] == joint
    assert ranker.published(block.joint).tolist() == [float(value) for value in joint]
    order = exact_order(pool)
    for k in {1, len(order) // 2 or 1, len(order)}:
        top = top_rows(block.joint, pool["lengths"], pool["ids"], [pool["place"]], k=k)
        assert top.tolist() == order[:k]


@QUICK
@given(pools(), st.randoms())
def test_permuting_rows_does_not_matter(pool: dict[str, Any], random: Any) -> None:
    """Catches: any dependence of the selection on the order of rows in the pool."""
    rows = np.arange(len(pool["ids"]))
    mixed = rows.copy()
    random.shuffle(mixed)
    k = 1 + len(rows) // 3
    picked = []
    for take in (rows, mixed):
        columns = {name: values[take] for name, values in pool["columns"].items()}
        joint = ranker_of(columns, pool["weights"]).rank(columns).joint
        top = top_rows(joint, pool["lengths"][take], pool["ids"][take], [pool["place"][take]], k=k)
        picked.append(take[top].tolist())
    assert picked[0] == picked[1]


@QUICK
@given(pools(signals=2), st.lists(st.integers(0, 40), max_size=4))
def test_stream_equals_whole(pool: dict[str, Any], cuts: list[int]) -> None:
    """Catches: a cut-off or a running top k over blocks that differs from the one over all rows in memory."""
    ranker = ranker_of(pool["columns"], pool["weights"])
    joint = ranker.rank(pool["columns"]).joint
    blocks = blocks_of(np.arange(joint.size), cuts)
    for k in {1, joint.size // 3 or 1, joint.size}:
        cutoff = find_cutoff(lambda: (joint[block] for block in blocks), ranker.largest_joint, k)
        assert cutoff == sorted(joint)[k - 1]
        best = np.zeros(0, np.int64)
        for block in blocks:
            rows = np.concatenate([best, block[joint[block] <= cutoff]])
            best = order_rows(rows, joint, pool["lengths"], pool["ids"], [pool["place"]], k=k)
        whole = top_rows(joint, pool["lengths"], pool["ids"], [pool["place"]], k=k)
        assert np.array_equal(best, whole)


@QUICK
@given(
    pools(signals=2),
    st.floats(0.01, 100).map(lambda x: round(x, 3)),
    st.floats(0.01, 100).map(lambda x: round(x, 3)),
)
def test_budgets_are_nested(pool: dict[str, Any], one: float, other: float) -> None:
    """Catches: 2 % not being the first part of 5 %, which makes results of two budgets incomparable."""
    joint = ranker_of(pool["columns"], pool["weights"]).rank(pool["columns"]).joint
    small, large = (
        top_rows(joint, pool["lengths"], pool["ids"], [pool["place"]], k=budget_size(joint.size, percent))
        for percent in sorted((one, other))
    )
    assert np.array_equal(small, large[: small.size])


@QUICK
@given(pools(signals=2))
def test_weight_zero_and_one_are_the_baselines(pool: dict[str, Any]) -> None:
    """Catches: a weight of 0 that still lets the other signal break ties, so that w=0 is not Longest."""
    ids, place, lengths = pool["ids"], pool["place"], pool["lengths"]
    difficulty = pool["columns"]["s0"]
    for weight, key in ((0, lengths), (1, difficulty)):
        ranker = ranker_of(pool["columns"], {"s0": weight, "s1": 1 - weight})
        joint = ranker.rank(pool["columns"]).joint
        expected = sorted(
            range(joint.size),
            key=lambda i: (-float(key[i]), -int(lengths[i]), ids[i].encode(), int(place[i])),
        )
        assert top_rows(joint, lengths, ids, [place], k=joint.size).tolist() == expected


def test_one_ulp_weights_tie_exactly() -> None:
    """Catches: sums in floats, where the last bit depends on the order and parts rows that tie on paper."""
    columns = {"a": np.array([3, 2, 1]), "b": np.array([1, 2, 3]), "c": np.array([2, 2, 2])}
    ranker = ranker_of(columns, {"a": 0.1, "b": "0.1", "c": Decimal("0.7")})
    assert len(set(ranker.rank(columns).joint.tolist())) == 1
    assert ranker.weights.denominator == 9


def test_joint_of_more_rows_than_a_chunk() -> None:
    """Catches: rows without a joint rank at the edges of internal chunks."""
    values = np.arange(600_001)
    block = ranker_of({"a": values, "b": values[::-1]}, {"a": 1, "b": 2}).rank({"a": values, "b": values[::-1]})
    expected = 2 * (values.size - values) + 4 * (values + 1)
    assert np.array_equal(block.joint, expected)
    assert np.array_equal(block.ranks["b"], values + 1.0)


def test_unweighted_signal_is_ranked_but_not_counted_in() -> None:
    """Catches: a signal that is only reported moving the joint rank, or missing from the block."""
    columns = {"a": np.array([1, 2, 3]), "extra": np.array([0.5, 0.5, 0.1])}
    block = ranker_of(columns, {"a": 5}).rank(columns)
    assert block.joint.tolist() == [6, 4, 2]
    assert block.ranks["extra"].tolist() == [1.5, 1.5, 3.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -0.1, "b": 1}, "weight a is -0.1; weights must not be negative"),
        ({"a": 0, "b": 0.0}, "all weights are zero"),
        ({}, "all weights are zero"),
        ({"a": float("nan")}, "finite"),
        ({"a": "inf"}, "finite"),
        ({"a": 0.1 + 0.2}, "at most 6 decimals"),
        ({"a": 1e-7}, "at most 6 decimals"),
        ({"a": "1e-999999999"}, "between 1e-12 and 1e12"),
        ({"a": "1e999999999"}, "between 1e-12 and 1e12"),
        ({"a": "a quarter"}, "a decimal number was expected"),
        ({"a": True}, "a decimal number was expected"),
        ({"c": 1}, "unknown signal c. Signals here: a, b"),
    ],
)
def test_bad_weights(weights: dict[str, Any], message: str) -> None:
    """Catches: a typing error in a weight that selects another subset instead of stopping."""
    with pytest.raises(UsageError, match=message):
        parse_weights(weights, ["a", "b"])


def test_weights_are_normalised_exactly() -> None:
    """Catches: the same ratio written in two ways giving two joint ranks."""
    for pair in ({"a": 0.25, "b": 0.75}, {"b": "3", "a": Decimal(1)}, {"a": 0.000001, "b": 0.000003}):
        weights = parse_weights(pair, ["a", "b"])
        assert (weights.names, weights.numerators, weights.denominator) == (("a", "b"), (1, 3), 4)
    assert weights.as_floats() == {"a": 0.25, "b": 0.75}


def test_joint_that_does_not_fit_is_refused() -> None:
    """Catches: int64 wrapping around, which puts the worst rows first."""
    columns = {"a": np.arange(10), "b": np.arange(10)}
    weights = {"a": "999999999999.999999", "b": "1"}
    with pytest.raises(UsageError, match="do not fit in 64 bits"):
        ranker_of(columns, weights)


def test_signals_must_cover_the_same_rows() -> None:
    """Catches: ranks over different numbers of rows added up as if they were comparable."""
    weights = parse_weights({"a": 1, "b": 1}, ["a", "b"])
    one, two = count_values(np.arange(3)), count_values(np.arange(4))
    with pytest.raises(S2RError, match=r"different rows: {'a': 3, 'b': 4}"):
        joint_ranker({"a": one, "b": two}, weights)
    with pytest.raises(S2RError, match="no values for signal b"):
        joint_ranker({"a": one}, weights)
    with pytest.raises(S2RError, match="different numbers of rows"):
        joint_ranker({"a": one, "b": one}, weights).rank({"a": np.arange(3), "b": np.arange(2)})


# --- budgets, the cut-off and the order -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "percent", "k"),
    [
        (1000, 2.3, 23),
        (1000, "2.3%", 23),
        (10, 2, 1),
        (1, 100, 1),
        (7, 100.0, 7),
        (3180, 10, 318),
        (100, "29", 29),
    ],
)
def test_budget_size(rows: int, percent: Any, k: int) -> None:
    """Catches: floor(1000 * 2.3 / 100) = 22 in floats; a budget of no rows at all."""
    assert budget_size(rows, percent) == k


@pytest.mark.parametrize("percent", [0, -1, 100.001, "nan", "inf", "two", "", "%", True])
def test_bad_budget(percent: Any) -> None:
    """Catches: an empty selection, or more rows than the pool has, where the user mistyped."""
    with pytest.raises(UsageError):
        parse_percent(percent)


def test_budget_of_nothing() -> None:
    """Catches: k = 1 out of 0 rows."""
    with pytest.raises(S2RError, match="every candidate was excluded"):
        budget_size(0, 10)


@QUICK
@given(st.lists(st.one_of(st.integers(0, 1 << 61), st.integers(0, 3)), min_size=1), st.data())
def test_cutoff_is_the_kth_lowest(joint: list[int], data: st.DataObject) -> None:
    """Catches: off-by-one at the edges of histogram parts; bits lost in windows over 2^53."""
    column = np.array(joint, np.int64)
    k = data.draw(st.integers(1, len(joint)))
    expected = sorted(joint)[k - 1]
    assert find_cutoff(lambda: [column[:3], column[3:]], max(joint), k) == expected
    assert select_top(column, k).tolist() == [i for i, value in enumerate(joint) if value <= expected]


def test_cutoff_says_how_many_of_the_tied_rows_are_in() -> None:
    """Catches: the place within the last window not being brought down along with it."""
    joint = np.array([5, 5, 5, 1, 9])
    window = cutoff_window(9, 3)
    while window.bits:
        counts = window.nothing()
        window.count(joint, counts)
        window = window.narrow(counts)
    assert window == CutoffWindow(low=5, bits=0, place=2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: select_top(np.arange(3), 4),
        lambda: select_top(np.arange(3), 0),
        lambda: find_cutoff(lambda: [np.arange(3)], 2, 4),
        lambda: find_cutoff(list, 2, 0),
    ],
)
def test_k_outside_the_pool(call: Callable[[], Any]) -> None:
    """Catches: a cut-off over fewer rows than were counted (a file vanished between passes) taken as good."""
    with pytest.raises(S2RError):
        call()


IDS = ["b", "a", "é", "\U0001f600", "\uffff", "a\x00", "x" * 200, "", "B"]


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize(
    "column",
    [
        lambda ids: np.array(ids, object),
        pa.array,
        lambda ids: pa.chunked_array([ids[:2], ids[2:]], pa.large_string()),
        lambda ids: pa.array(ids).dictionary_encode(),
    ],
    ids=["object", "string", "chunked", "dictionary"],
)
def test_ties_by_sample_id_bytes(column: Callable[[list[str]], Any], short: bool) -> None:
    """Catches: ids sorted by locale, by UTF-16 unit, by order of appearance, or "a" tied with "a\\x00"."""
    ids = [text for text in IDS if not short or (len(text) < 40 and "\x00" not in text)]
    tied = np.zeros(len(ids), np.int64)
    order = top_rows(tied, tied, column(ids), k=len(ids))
    assert [ids[i] for i in order] == sorted(ids, key=str.encode)


def test_ties_go_on_to_locations_then_position() -> None:
    """Catches: duplicates of a sample id in several files coming out in the order of arrival."""
    joint = np.array([1, 1, 1, 1, 0, 1])
    lengths = np.array([9, 9, 9, 9, 1, 10], np.int32)
    ids = pa.array(["b", "a", "a", "a", "z", "z"])
    files = np.array(["f2", "f2", "f1", "f2", "f0", "f0"])
    rows = np.array([0, 1, 7, 1, 0, 0])
    assert top_rows(joint, lengths, ids, [files, rows], k=6).tolist() == [4, 5, 2, 1, 3, 0]


def test_lengths_at_the_edge_of_int64() -> None:
    """Catches: overflow of joint and length packed into one key, or of the negated length."""
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    joint = np.array([1, 1, 1, 0, 0])
    lengths = np.array([low, high, 0, low, high])
    assert top_rows(joint, lengths, np.array(list("abcde")), k=5).tolist() == [4, 3, 1, 2, 0]


def test_order_refuses_what_it_cannot_sort() -> None:
    """Catches: fractional lengths cut to whole numbers; nulls among ids sorted as the text "None"."""
    zero = np.zeros(2, np.int64)
    with pytest.raises(S2RError, match="float64; whole numbers"):
        top_rows(zero, np.array([0.5, 0.7]), zero, k=2)
    with pytest.raises(S2RError, match="nulls or mixed types"):
        top_rows(zero, zero, pa.array(["a", None]), k=2)


def test_rows_alike_in_everything_keep_their_order() -> None:
    """Catches: the order of true duplicates left to an unstable sort, which differs between processors."""
    joint = np.arange(50_000) * 7919 % 3
    same = np.zeros(joint.size, np.int64)
    expected = np.argsort(joint, kind="stable")
    assert np.array_equal(top_rows(joint, same, same, k=joint.size), expected)


def test_no_candidates() -> None:
    """Catches: a crash when a block has nothing at or below the cut-off."""
    none = np.zeros(0, np.int64)
    assert order_rows(none, none, none, none, k=3).size == 0
