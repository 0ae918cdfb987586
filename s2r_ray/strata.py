"""Budgets that are filled group by group, as one order of rows that serves all budgets: smaller ones are its beginning.

The p-th best of a group's s rows has a priority, and the rows come by priority, so that a larger budget never takes a
row back:

- `proportional`: s / (2p - 1), the largest first. Webster's (Sainte-Laguë's) method of apportionment (Balinski and
  Young, Fair Representation, 2nd edition 2001): each group has its share of any budget, rounded at the half.
- `equal`: p, the smallest first. Groups take turns; one that is used up is passed over.

Rows of equal priority, which are of different groups, come as tied rows do everywhere: the longer trace, then the
sample id, then the location.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from s2r_ray.ranking import Ints, Takeable, order_rows, select_top

Share = Literal["proportional", "equal"]

_BITS = 62
_HALF = _BITS // 2


class Strata(BaseModel):
    """Rank inside of the groups that a label makes, and fill budgets group by group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str = Field(description="The label that makes the groups; rows without it are a group of their own")
    share: Share = Field("proportional", description="What each group gets of a budget: proportional or equal")


def priorities(places: Ints, sizes: Ints, share: Share) -> Ints:
    """The least comes first: int64[n], from 0 to 2^63 - 2.

    Proportional: (2p - 1) / s in steps of 2^-62, rounded down. Fractions with denominators below 2^31 that are not
    equal lie more than a step apart, so that the order is exact.

    Args:
        places: int64[n], of rows inside their groups, from 1.
        sizes: int64[n], of these groups, below 2^31.
    """
    if share == "equal":
        return places
    high, rest = np.divmod((2 * places - 1) << _HALF, sizes)
    found: Ints = (high << _HALF) + (rest << _HALF) // sizes
    return found


def taken(sizes: Sequence[int], k: int, share: Share) -> list[int]:
    """How many rows of each group have a priority that is not beyond the k-th of all: k together, or more with ties."""

    def up_to(priority: int, size: int) -> int:
        odd = 2 * priority - 1 if share == "equal" else -(-(priority + 1) * size >> _BITS) - 1
        return min(size, (odd + 1) // 2)

    def total(priority: int) -> int:
        return sum(map(partial(up_to, priority), sizes))

    last = bisect_left(range(sys.maxsize), k, key=total)
    return [up_to(last, size) for size in sizes]


def fill(groups: Sequence[Ints], joint: Ints, lengths: npt.NDArray[Any], ids: Takeable, k: int, share: Share) -> Ints:
    """The k best rows of all groups, best first: int64[k].

    Args:
        groups: the rows of each group, positions in the columns.
        joint: int64[n], the order inside of groups, least first; overwritten.
        lengths, ids: as `order_rows` has them; they settle ties. What stands for lengths may be anything of which
            more comes first.
    """
    sizes = [len(rows) for rows in groups]
    chosen, places, of = [], [], []
    first = 0
    for rows, most in zip(groups, taken(sizes, k, share), strict=True):
        if most:
            best = rows[select_top(joint[rows], most)]
            distinct, place = np.unique(joint[best], return_inverse=True)
            joint[best] = first + place  # so that one order is of all groups, one after the other
            first += len(distinct)
            chosen.append(best)
            places.append(np.arange(1, len(best) + 1))
            of.append(np.full(len(best), len(rows)))
    order = order_rows(np.concatenate(chosen), joint, lengths, ids)
    joint[order] = priorities(np.concatenate(places), np.concatenate(of), share)
    return order_rows(order, joint, lengths, ids, k=k)
