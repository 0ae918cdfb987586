"""How many rows are so near to a cut-off that the judge's own noise could move them across it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from s2r_ray.ranking import ALL_HIGH, Better, JointRanker, RankTable, ValueCounts, Weights, count_values, joint_ranker

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NearCutoff:
    """Counts flips, block by block.

    A row flips if its own values could move by `reach`, up or down, all other rows staying as they are, and its joint
    rank then be below that of the last row inside (`last`), or above that of the first row outside (`first`). Several
    signals move to the same side. A value that moved has the average rank that it would have among the other rows'
    values. `counts` and `ranker` are over all rows, `reach` is by signal.
    """

    counts: Mapping[str, ValueCounts]
    ranker: JointRanker[RankTable]
    reach: Mapping[str, float]

    @cached_property
    def _weight_of(self) -> dict[str, int]:
        weights = self.ranker.weights
        pairs = zip(weights.names, weights.numerators, strict=True)
        return {name: weight for name, weight in pairs if weight and name in self.reach}

    @cached_property
    def _furthest(self) -> int:
        """The most that any row's joint rank can move."""
        most = 0
        for name, weight in self._weight_of.items():
            values = self.counts[name].values
            own = self.ranker.tables[name].doubled_ranks
            moves = [self._doubled_if(name, values, values + side) - own for side in self._sides(name)]
            most += weight * max(int(np.abs(move).max(initial=0)) for move in moves)
        return most

    def flips(self, values: Mapping[str, npt.NDArray[Any]], joint: Ints, inside: Bools, last: int, first: int) -> int:
        """How many rows of a block flip. values: signal -> [n]; joint: int64[n], by the ranker; inside: bool[n]."""
        near = np.flatnonzero((joint >= first - self._furthest) & (joint <= last + self._furthest))
        least, most = joint[near].copy(), joint[near].copy()
        for name, weight in self._weight_of.items():
            picked = values[name][near]
            own = self.ranker.tables[name].doubled(picked)
            up, down = self._sides(name)
            least += weight * (self._doubled_if(name, picked, picked + up) - own)
            most += weight * (self._doubled_if(name, picked, picked + down) - own)
        within = inside[near]
        return int((most[within] > first).sum() + (least[~within] < last).sum())

    def _sides(self, name: str) -> tuple[float, float]:
        """Towards better, and away from it."""
        reach = self.reach[name]
        return (reach, -reach) if self.ranker.tables[name].better == "high" else (-reach, reach)

    def _doubled_if(self, name: str, own: npt.NDArray[Any], moved: npt.NDArray[Any]) -> Ints:
        return _doubled_if(self.counts[name], own, moved, self.ranker.tables[name].better)


def rows_within_noise(
    values: Mapping[str, npt.NDArray[Any]],
    weights: Weights,
    reach: Mapping[str, float],
    chosen: Sequence[Bools],
    better: Mapping[str, Better] = ALL_HIGH,
) -> list[int]:
    """How many rows would change sides if their own values moved and all other rows stayed as they are.

    Args:
        values: signal -> its values [n].
        reach: signal -> how far its value may move, up or down.
        chosen: for each budget which rows it selects, bool[n].
        better: as for `joint_ranker`.

    Returns:
        For each budget the rows as `NearCutoff` has it.
    """
    names = [name for name, weight in zip(weights.names, weights.numerators, strict=True) if weight]
    counts = {name: count_values(values[name], name) for name in names}
    ranker = joint_ranker(counts, weights, better)
    joint = ranker.joint({name: values[name] for name in names})
    near = NearCutoff(counts, ranker, reach)
    return [
        0
        if inside.all() or not inside.any()
        else near.flips(values, joint, inside, int(joint[inside].max()), int(joint[~inside].min()))
        for inside in chosen
    ]


def _doubled_if(counts: ValueCounts, own: npt.NDArray[Any], moved: npt.NDArray[Any], better: Better) -> Ints:
    """Twice the average rank, from the best, of each moved value among the others: its own value is taken out."""
    up_to = np.append(0, np.cumsum(counts.counts))
    below, not_above = (up_to[np.searchsorted(counts.values, moved, side=side)] for side in ("left", "right"))
    before = counts.rows - not_above - (own > moved) if better == "high" else below - (own < moved)
    equal = not_above - below - (own == moved)
    found: Ints = 2 * before + equal + 2
    return found
