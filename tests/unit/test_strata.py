"""Budgets filled group by group, against Webster's own definition and a slow reference."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2r_ray import groups as groups_module
from s2r_ray.candidate_table import CandidateTable
from s2r_ray.groups import rank_inside
from s2r_ray.strata import Share, fill, priorities, taken

SHARES: tuple[Share, ...] = ("proportional", "equal")


def exact(place: int, size: int, share: str) -> Fraction:
    return Fraction(2 * place - 1, size) if share == "proportional" else Fraction(place)


@given(
    pairs=st.lists(st.tuples(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)).map(sorted), min_size=2, max_size=9),
    near=st.integers(1, 2**30),
)
def test_priorities_are_exact(pairs: list[list[int]], near: int) -> None:
    """Catches: fractions that a float, or an integer too narrow, takes for equal or puts the wrong way round."""
    pairs += [[near, 2 * near - 1], [near, 2 * near], [2 * near, 4 * near - 1], [near + 1, 2 * near + 1]]
    places, sizes = np.array(pairs, np.int64).T
    found = priorities(places, sizes, "proportional").tolist()
    fractions = [exact(place, size, "proportional") for place, size in pairs]
    assert min(found) >= 0
    assert max(found) < 2**63 - 1
    for one, first in zip(found, fractions, strict=True):
        for other, second in zip(found, fractions, strict=True):
            assert (one < other) == (first < second)


@pytest.mark.parametrize("share", SHARES)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), at=st.floats(0, 1))
def test_taken(share: Share, sizes: list[int], at: float) -> None:
    """Catches: a group that gets more than it has, too few rows in all, or a row beyond the last priority."""
    k = max(1, round(at * sum(sizes)))
    every = sorted(exact(place, size, share) for size in sizes for place in range(1, size + 1))
    expected = [sum(exact(place, size, share) <= every[k - 1] for place in range(1, size + 1)) for size in sizes]
    assert taken(sizes, k, share) == expected


def test_taken_of_large_groups() -> None:
    """Catches: a search that walks through the rows, and numbers that wrap."""
    sizes = [2**31 - 1, 10**9, 7, 1]
    for k in (1, 10**8, sum(sizes)):
        found = taken(sizes, k, "proportional")
        assert k <= sum(found) < k + len(sizes)
        shares = [k * size / sum(sizes) for size in sizes]
        assert np.allclose(found, shares, atol=1)


ROW = st.tuples(st.integers(0, 5), st.integers(1, 3))
GROUPS = st.lists(st.lists(ROW, min_size=1, max_size=8), min_size=1, max_size=4)


def filled(rows: list[list[tuple[int, int]]], k: int, share: Share) -> list[int]:
    """The k rows that are chosen, by position; rows are (joint rank, length), the groups' in turn."""
    flat = sorted((n, g, row) for g, group in enumerate(rows) for n, row in enumerate(group))
    columns: Any = np.array([row for *_, row in flat], np.int64).T
    groups = [np.array([at for at, (_, g, _) in enumerate(flat) if g == group]) for group in range(len(rows))]
    found = fill(groups, columns[0].copy(), columns[1], np.arange(len(flat)), k, share)
    return found.tolist()


@pytest.mark.parametrize("share", SHARES)
@given(rows=GROUPS)
def test_fill_equals_brute_force(share: Share, rows: list[list[tuple[int, int]]]) -> None:
    """Catches: an order inside a group that is not that of joint rank, length and id; a turn that goes to the wrong
    group; ties settled otherwise than everywhere; budgets that do not nest."""
    flat = sorted((n, g, row) for g, group in enumerate(rows) for n, row in enumerate(group))
    keyed = []
    for group in range(len(rows)):
        own = sorted((joint, -length, at) for at, (_, g, (joint, length)) in enumerate(flat) if g == group)
        for place, (_, shorter, at) in enumerate(own, start=1):
            keyed.append((exact(place, len(own), share), shorter, at))
    expected = [at for *_, at in sorted(keyed)]
    for k in {1, len(flat) // 3 or 1, len(flat) // 2 or 1, len(flat)}:
        assert filled(rows, k, share) == expected[:k]


@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5))
def test_quotas(sizes: list[int]) -> None:
    """Catches: shares that are not proportional, at any budget. No group may deserve another's last row: s / (2a - 1)
    of the one that got it is at least s / (2a + 1) of the one that did not (Webster's method as Balinski and Young
    have it). With equal shares counts differ by one at the most, but for groups that are used up."""
    rows = [[(n, 1) for n in range(size)] for size in sizes]
    group_of = [g for _, g in sorted((n, g) for g, size in enumerate(sizes) for n in range(size))]
    for share in SHARES:
        order = [group_of[at] for at in filled(rows, sum(sizes), share)]
        counts = [0] * len(sizes)
        for group in order:
            counts[group] += 1
            if share == "equal":
                open_ = [count for count, size in zip(counts, sizes, strict=True) if count < size]
                assert max(counts) - min(open_, default=max(counts)) <= 1
                continue
            for got, a in zip(sizes, counts, strict=True):
                assert not a or all(got * (2 * b + 1) >= s * (2 * a - 1) for s, b in zip(sizes, counts, strict=True))
        assert counts == sizes


@pytest.mark.parametrize("chunk", [1 << 18, 7])
@pytest.mark.parametrize("grid", [True, False])
def test_ranks_inside(chunk: int, grid: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: ranks among other groups' rows, ties without their average, rows that are left out and yet counted, and
    large groups, which are counted in another way than small ones, ranked otherwise."""
    from scipy.stats import rankdata

    monkeypatch.setattr(groups_module, "_CHUNK", chunk)
    rng = np.random.default_rng(3)
    rows = 400
    table = CandidateTable(np.array([0, rows]), rng.integers(1, 30, rows, np.int32), np.zeros(rows, np.bool_), rows)
    table.left_out = rng.random(rows) < 0.2
    scores = rng.integers(0, 40, rows) / (1 << 20 if grid else 3)
    table.scores["difficulty"] = np.where(table.left_out, np.nan, scores)
    of = np.where(rng.random(rows) < 0.5, 0, rng.integers(0, 30, rows))
    groups = [np.flatnonzero((of == group) & ~table.left_out) for group in range(30)]
    rank_inside(table, groups, {"difficulty": "high", "length": "high"})
    for name, column in (("difficulty", scores), ("length", table.length)):
        for group in groups:
            assert (table.ranks[f"rank_{name}"][group] / 2 == rankdata(-column[group])).all()
