"""The selections that other weights would make of the same ranking, exactly, in memory that does not grow with it.

Each selection is the least k of one whole number per row: the joint rank, and below it the trace's length, longest
first, as `ranking.order_rows` has it. Rows that are alike in both are few; their sample ids decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.ranking import CutoffWindow, RankTable, Weights, cutoff_window

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STEPS = ("0", "0.25", "0.5", "0.75", "1")
"""Weights of the judged signal; the length has the rest."""


@dataclass(frozen=True, eq=False)
class Scale:
    """A number by which rows are selected, the least first: int64, from the doubled ranks of signals.

    `weights`: signal -> whole number. With `length` a RankTable, rows of the same joint rank come longest first.
    """

    name: str
    weights: Mapping[str, int]
    length: RankTable | None = None

    @property
    def _span(self) -> int:
        return 1 if self.length is None else int(self.length.values[-1] - self.length.values[0]) + 1

    def largest(self, rows: int) -> int:
        """No number is above it."""
        return (2 * rows * sum(self.weights.values()) + 1) * self._span

    def numbers(self, doubled: Mapping[str, Ints], lengths: npt.NDArray[np.int32]) -> Ints:
        """int64[n]. doubled: signal -> twice its rank, int64[n]; lengths: [n], in tokens."""
        found = np.zeros(len(lengths), np.int64)
        for name, weight in self.weights.items():
            if weight:
                found += weight * doubled[name]
        if self.length is not None:
            found *= self._span
            found += int(self.length.values[-1]) - lengths
        return found


def weight_scales(signal: str, length: RankTable) -> list[Scale]:
    """One for each of STEPS: this signal against the length."""
    found = []
    for step in STEPS:
        weight = Fraction(step)
        found.append(Scale(step, {signal: int(4 * weight), "length": int(4 * (1 - weight))}, length))
    return found


def signal_scales(signals: Iterable[str], length: RankTable) -> list[Scale]:
    """One for each of these signals, with no weight for any other."""
    return [Scale(f"{signal} alone", {signal: 1}, length) for signal in signals]


def own_scale(weights: Weights) -> Scale:
    """The joint rank of a run, as `JointRanker` counts it."""
    return Scale("", dict(zip(weights.names, weights.numerators, strict=True)))


Doubled = tuple[dict[str, Ints], npt.NDArray[np.int32]]
"""A block's doubled ranks by signal, and its lengths."""


def find_cutoffs(blocks: Iterable[Doubled], wanted: Sequence[tuple[Scale, int]], rows: int) -> list[CutoffWindow]:
    """For each (scale, k) the k-th least number and how many rows of exactly this number are in the first k.

    `blocks` is gone through once per pass, so it must begin anew each time: a list, or an object of its own.
    """
    windows = [cutoff_window(scale.largest(rows), k) for scale, k in wanted]
    while any(window.bits for window in windows):
        # Several of them may still look at the same window of the same scale.
        open_ones = {
            (scale.name, window.low, window.bits): (scale, window)
            for (scale, _), window in zip(wanted, windows, strict=True)
            if window.bits
        }
        counts = {name: window.nothing() for name, (_, window) in open_ones.items()}
        for doubled, lengths in blocks:
            numbers: dict[str, Ints] = {}
            for name, (scale, window) in open_ones.items():
                if scale.name not in numbers:
                    numbers[scale.name] = scale.numbers(doubled, lengths)
                window.count(numbers[scale.name], counts[name])
        windows = [
            window.narrow(counts[scale.name, window.low, window.bits]) if window.bits else window
            for (scale, _), window in zip(wanted, windows, strict=True)
        ]
    return windows


@dataclass(frozen=True)
class Overlaps:
    """How many rows selections of the same size have in common.

    `signal`: of which the first selections have the weights STEPS. `names`: of the selections, last "", the run's own.
    `alone`: signal -> which of them it alone makes. `common`: budget -> int64[names, names]; the diagonal has the size
    of the budget.
    """

    signal: str
    names: tuple[str, ...]
    alone: dict[str, int]
    common: dict[str, Ints]

    def shares_of_run(self, place: int) -> list[float]:
        """For each budget the share of the run's selection that this one selects too."""
        return [int(common[place, -1]) / int(common[-1, -1]) for common in self.common.values()]


@dataclass
class OverlapCounter:
    """Counts them, block by block. `cutoffs`: by budget and then by scale."""

    scales: Sequence[Scale]
    cutoffs: Sequence[Sequence[CutoffWindow]]
    _common: list[Ints] = field(init=False)
    _undecided: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = len(self.scales) + 1
        self._common = [np.zeros((size, size), np.int64) for _ in self.cutoffs]

    def add(
        self,
        doubled: Mapping[str, Ints],
        lengths: npt.NDArray[np.int32],
        levels: npt.NDArray[np.intp],
        ids: pa.ChunkedArray,
    ) -> None:
        """Count a block: its doubled ranks by signal, lengths, levels (see `membership`) and sample ids."""
        numbers = [scale.numbers(doubled, lengths) for scale in self.scales]
        tied = np.zeros(len(lengths), np.bool_)
        for windows in self.cutoffs:
            for number, window in zip(numbers, windows, strict=True):
                tied |= number == window.low
        for budget, windows in enumerate(self.cutoffs):
            chosen = [number < window.low for number, window in zip(numbers, windows, strict=True)]
            self._count(budget, np.stack([*chosen, levels <= budget])[:, ~tied])
        at = np.flatnonzero(tied)
        if len(at):
            columns = {str(place): number[at] for place, number in enumerate(numbers)}
            self._undecided.append(pa.table({"id": ids.take(pa.array(at)), "level": levels[at], **columns}))

    def _count(self, budget: int, chosen: Bools) -> None:
        """chosen: bool[selections, rows]."""
        ones = chosen.astype(np.float32)  # exact: a block has fewer than 2^24 rows
        self._common[budget] += (ones @ ones.T).astype(np.int64)

    def finish(self, signal: str, budgets: Sequence[str]) -> Overlaps:
        """Decide the rows at the cut-offs by their ids, and count them too."""
        if self._undecided:
            rows = pa.concat_tables(self._undecided).sort_by("id")
            levels = rows["level"].to_numpy()
            for budget, windows in enumerate(self.cutoffs):
                chosen = [levels <= budget]
                for place, window in enumerate(windows):
                    numbers = rows[str(place)].to_numpy()
                    inside = numbers < window.low
                    inside[np.flatnonzero(numbers == window.low)[: window.place]] = True
                    chosen.insert(place, inside)
                self._count(budget, np.stack(chosen))
        weights = [{name for name, weight in scale.weights.items() if weight} for scale in self.scales]
        alone = {name: place for place, (name, *others) in enumerate(weights) if not others}
        names = (*(scale.name for scale in self.scales), "")
        return Overlaps(signal, names, alone, dict(zip(budgets, self._common, strict=True)))
