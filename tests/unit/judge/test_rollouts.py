"""Which draws are there, and which are to be made."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from s2r_ray.judge.rollouts import cover

ranges = st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda item: item[0] < item[1])


def test_a_larger_n_draws_what_is_missing() -> None:
    """Catches: draws that were paid for drawn again when n goes up, and draws beyond n counted when it goes down."""
    assert cover(set(), 8) == [(0, 8)]
    assert cover({(0, 8)}, 16) == [(0, 8), (8, 16)]
    assert cover({(0, 8), (8, 16)}, 8) == [(0, 8)]
    assert cover({(0, 8), (0, 12)}, 12) == [(0, 12)]
    assert cover({(0, 8)}, 4) == [(0, 4)]


@given(st.sets(ranges, max_size=6), st.integers(1, 20))
def test_each_draw_is_in_one_range(there: set[tuple[int, int]], n: int) -> None:
    """Catches: a draw counted twice or not at all, which is a pass rate of other than n draws."""
    found = cover(there, n)
    assert (found[0][0], found[-1][1]) == (0, n)
    assert all(before[1] == after[0] for before, after in pairwise(found))
