"""The numbers of a report, from a run's stored columns, in memory that does not grow with the pool.

The ranking is read some five times, a batch of columns at a time: once to count values, which gives ranks; two or three
times to find the cut-offs of other weights; once more beside the index to count all else. What grows is 9 bytes for
each row of the largest budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from s2r_ray.index import Snapshot
from s2r_ray.near_cutoff import NearCutoff
from s2r_ray.noise import Noise, noise_of
from s2r_ray.ranking import Better, JointRanker, RankTable, ValueCounter, ValueCounts, joint_ranker, parse_weights
from s2r_ray.report.cutoffs import (
    Doubled,
    OverlapCounter,
    Overlaps,
    Scale,
    find_cutoffs,
    own_scale,
    signal_scales,
    weight_scales,
)
from s2r_ray.report.labelled import NO_INDEX, IndexColumns, index_columns, labelled_rows
from s2r_ray.report.membership import LOCATION, Levels, Membership
from s2r_ray.report.stored import StoredRun
from s2r_ray.report.tallies import (
    Best,
    Density,
    Histogram,
    Shares,
    SignalFacts,
    Sums,
    centred,
    length_edges,
    linear_edges,
    share_edges,
    spearman,
    word_edges,
)
from s2r_ray.signals import INDEX_SIGNALS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LENGTHS = ("trace_tokens", "trace_tokens_unique")
REPEATED = "repeated"
RETHINKING = "rethinking_words"
MISSED = 3
ADDRESSING = 20
_ADDRESSES = "addresses_judge"
_FRONTIER_POINTS = 200


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a report shows but for what `run.json` has. What is None or empty could not be had.

    `budgets`: (per cent, rows), the smallest first; `signals`, `histograms` (of judged signals, their extras, LENGTHS,
    REPEATED, RETHINKING) and `shares` (of labels) by name; `indexed`: labels of all traces, ranked or not; `judged`:
    the signal that is held against the length; `better`: what is better in each signal.
    `correlations`: Spearman's, of the ranks of all signals in the order of `signals`, the best first in each: float64
    [signals, signals], NaN where a signal has a single value.
    `frontiers`: budget -> (values of that signal, least length that is selected there).
    `ties`: budget -> rows inside and outside whose joint rank is that of the last row inside.
    `baselines`: those that the run has made, by name -> rows of each budget that the baseline selects, too.
    `noise`: judged signal with a weight -> the judge's own noise; `near`: budget -> rows within it of the cut-off.
    `missed`: the best rows that no budget selects; `addressing`: the best whose question speaks to the judge.
    """

    budgets: tuple[tuple[str, int], ...]
    rows: int
    judged: str | None
    better: dict[str, Better]
    signals: dict[str, SignalFacts]
    histograms: dict[str, Histogram]
    sums: Sums
    density: Density | None
    frontiers: dict[str, tuple[Floats, Floats]]
    correlations: Floats
    ties: dict[str, tuple[int, int]]
    overlaps: Overlaps | None
    baselines: dict[str, tuple[int, ...]]
    shares: dict[str, Shares]
    indexed: dict[str, Shares]
    noise: dict[str, Noise | None]
    near: dict[str, int]
    missed: pa.Table | None
    addressing: pa.Table | None

    def correlation(self, one: str, other: str) -> float | None:
        """Of `correlations` that of two signals."""
        places = list(self.signals)
        found = float(self.correlations[places.index(one), places.index(other)])
        return None if np.isnan(found) else found


def gather(run: StoredRun, snapshot: Snapshot | None, labels: Sequence[str] = ()) -> Statistics:
    """Read the run's tables, and the index if there is a snapshot to find it by.

    Args:
        labels: whose shares to count; () for all that the index has.

    Raises:
        UsageError: there is no such label.
        DamagedError: the index is damaged, gone, or another one.
    """
    index = NO_INDEX if snapshot is None else index_columns(run, snapshot, labels, [RETHINKING, _ADDRESSES])
    counts = _count_signals(run)
    weights = parse_weights(run.record.config["weights"], list(run.signals))
    ranker = joint_ranker(counts, weights, run.record.better)
    judged = _judged(run)
    margins, overlaps = _cutoffs(run, counts, ranker, judged)
    tallies = _Tallies.over(run, index, counts, judged)
    members = Membership.of(run)
    missed, addressing = Best(MISSED), Best(ADDRESSING)
    products = np.zeros((len(counts), len(counts)))
    indexed = {name: Shares.over(1) for name in index.labels}
    for table in _rows(run, snapshot, index, indexed):
        levels = members.levels_of(table)
        values = {name: table[column].to_numpy() for name, column in run.signals.items()}
        doubled = _doubled(values, ranker)
        joint = margins.scale.numbers(doubled, values["length"])
        tallies.add(table, values, levels)
        margins.add(values, joint, levels)
        missed.add(table, joint, levels == len(run.budgets))
        if _ADDRESSES in index.others:
            addressing.add(table, joint, table[_ADDRESSES].to_numpy())
        if overlaps is not None and judged is not None:
            overlaps.add(doubled, values["length"], levels, table["sample_id"])
        centres = np.stack([centred(doubled[name], ranker.rows) for name in counts])
        products += centres @ centres.T
    names = [budget for budget, _ in run.budgets]
    return Statistics(
        budgets=run.budgets,
        rows=ranker.rows,
        judged=judged,
        better={name: table.better for name, table in ranker.tables.items()},
        signals={name: SignalFacts.of(found) for name, found in counts.items()},
        histograms=tallies.histograms,
        sums=tallies.sums,
        density=tallies.density,
        frontiers=dict(zip(names, _frontiers(counts, ranker, judged, margins), strict=False)),
        correlations=spearman(products, list(counts.values())),
        ties={} if run.stratified else dict(zip(names, margins.ties, strict=True)),
        overlaps=overlaps.finish(judged or "", names) if overlaps else None,
        baselines={name: _in_common(run, name, members) for name in run.record.baselines},
        shares=tallies.shares,
        indexed=indexed,
        noise=margins.noise,
        near=dict(zip(names, margins.flips, strict=True)) if margins.near else {},
        missed=None if run.stratified else missed.rows,
        addressing=addressing.rows,
    )


def _count_signals(run: StoredRun) -> dict[str, ValueCounts]:
    """How often each value of each signal occurs."""
    counters = {name: ValueCounter(name) for name in run.signals}
    for block in run.numbers(list(run.signals.values())):
        for name, counter in counters.items():
            counter.add(block[run.signals[name]])
    return {name: counter.counts() for name, counter in counters.items()}


def _judged(run: StoredRun) -> str | None:
    """The signal to hold against the length: that of the greatest weight; of equals difficulty, else the first."""
    weights = run.record.weights
    judged = [name for name in run.signals if name not in INDEX_SIGNALS]
    return max(judged, key=lambda name: (weights.get(name, 0), name == "difficulty"), default=None)


def _doubled(values: Mapping[str, npt.NDArray[Any]], ranker: JointRanker[RankTable]) -> dict[str, Ints]:
    return {name: ranker.tables[name].doubled(column) for name, column in values.items()}


@dataclass(frozen=True)
class _Blocks:
    """The doubled ranks of all rows, read anew each time they are gone through."""

    run: StoredRun
    ranker: JointRanker[RankTable]

    def __iter__(self) -> Iterator[Doubled]:
        columns = self.run.signals
        for block in self.run.numbers(list(columns.values())):
            values = {name: block[column] for name, column in columns.items()}
            yield _doubled(values, self.ranker), values["length"]


def _rows(
    run: StoredRun, snapshot: Snapshot | None, index: IndexColumns, indexed: Mapping[str, Shares]
) -> Iterator[pa.Table]:
    """All ranked rows with all columns, and what the index has of them; counts labels of all its rows in `indexed`."""
    columns = run.columns()
    return run.rows(columns) if snapshot is None else labelled_rows(run, snapshot, columns, index, indexed)


def _in_common(run: StoredRun, baseline: str, members: Membership) -> tuple[int, ...]:
    """For each budget the rows that it and a baseline of the same size select."""
    found = np.zeros(len(run.budgets), np.int64)
    columns = [name for name in run.columns() if name in LOCATION]
    for table in run.baseline(baseline, ["position", *columns]):
        position, levels = table["position"].to_numpy(), members.levels_of(table)
        found += [int(((position <= size) & (levels <= at)).sum()) for at, (_, size) in enumerate(run.budgets)]
    return tuple(found.tolist())


# --- distributions --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Tallies:
    """What is counted by level, and over which columns."""

    run: StoredRun
    index: IndexColumns
    judged: str | None
    histograms: dict[str, Histogram]
    sums: Sums
    density: Density | None
    shares: dict[str, Shares]

    @classmethod
    def over(
        cls, run: StoredRun, index: IndexColumns, counts: Mapping[str, ValueCounts], judged: str | None
    ) -> _Tallies:
        """Nothing counted yet."""
        levels = len(run.budgets) + 1
        ranges = {
            name: (found.values[0], found.values[-1]) for name, found in counts.items() if name not in INDEX_SIGNALS
        }
        ranges |= run.ranges([*(name for name in run.extras() if "mass" in name), *LENGTHS])
        edges = {
            name: length_edges(*found) if name in LENGTHS else linear_edges(*found) for name, found in ranges.items()
        }
        edges["trace_tokens_unique"] = edges["trace_tokens"] = length_edges(
            ranges["trace_tokens_unique"][0], ranges["trace_tokens"][1]
        )
        edges[REPEATED] = share_edges()
        if RETHINKING in index.others:
            edges[RETHINKING] = word_edges()
        return cls(
            run,
            index,
            judged,
            {name: Histogram.over(found, levels) for name, found in edges.items()},
            Sums.over(levels),
            Density.over(counts[judged], counts["length"]) if judged else None,
            {name: Shares.over(levels) for name in index.labels},
        )

    def add(self, table: pa.Table, values: Mapping[str, npt.NDArray[Any]], levels: Levels) -> None:
        """Count a block."""
        tokens, unique = (table[name].to_numpy().astype(np.int64) for name in LENGTHS)
        words = table[RETHINKING].to_numpy() if RETHINKING in self.histograms else None
        for name, histogram in self.histograms.items():
            if name == REPEATED:
                some = unique < tokens
                histogram.add(1 - unique[some] / tokens[some], levels[some])
            elif name == RETHINKING and words is not None:
                histogram.add(1000 * words / np.maximum(1, unique), levels)
            else:
                histogram.add(values[name] if name in values else table[name].to_numpy(), levels)
        self.sums.add(tokens, unique, words, levels)
        if self.density is not None and self.judged is not None:
            self.density.add(values[self.judged], values["length"])
        for name, shares in self.shares.items():
            shares.add(table[self.index.labels[name]], levels)


# --- cut-offs -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Margins:
    """What lies at the run's own cut-offs. `scale` counts joint ranks as `ranker` does.

    `ends`: for each budget the joint ranks of the last row inside and the first outside, None where all are inside; ()
    for a run whose budgets are filled group by group, which has no one cut-off.
    """

    scale: Scale
    ends: Sequence[tuple[int, int | None]]
    noise: dict[str, Noise | None]
    near: NearCutoff | None
    ties: list[tuple[int, int]]
    flips: list[int]

    def add(self, values: Mapping[str, npt.NDArray[Any]], joint: Ints, levels: Levels) -> None:
        """Count a block."""
        for budget, (last, first) in enumerate(self.ends):
            inside = levels <= budget
            tied = joint == last
            within, beyond = self.ties[budget]
            self.ties[budget] = within + int((tied & inside).sum()), beyond + int((tied & ~inside).sum())
            if self.near is not None and first is not None:
                self.flips[budget] += self.near.flips(values, joint, inside, last, first)


def _cutoffs(
    run: StoredRun, counts: Mapping[str, ValueCounts], ranker: JointRanker[RankTable], judged: str | None
) -> tuple[_Margins, OverlapCounter | None]:
    """The run's own cut-offs, and those of other weights."""
    sizes = [size for _, size in run.budgets]
    length = ranker.tables["length"]
    others = weight_scales(judged, length) if judged else []
    others += signal_scales((name for name in counts if name not in (judged, "length")), length)
    own = own_scale(ranker.weights)
    wanted = [(scale, size) for size in sizes for scale in others]
    if not run.stratified:
        wanted += [(own, k) for size in sizes for k in (size, size + 1) if k <= ranker.rows]
    windows = dict(
        zip(
            ((scale.name, k) for scale, k in wanted),
            find_cutoffs(_Blocks(run, ranker), wanted, ranker.rows),
            strict=True,
        )
    )
    ends = []
    for size in () if run.stratified else sizes:
        beyond = windows.get((own.name, size + 1))
        ends.append((windows[own.name, size].low, beyond.low if beyond else None))
    fingerprints = run.record.fingerprints
    noise = {name: noise_of(run.out, fingerprints, name) for name in run.weighted if name not in INDEX_SIGNALS}
    reach = {name: found.largest for name, found in noise.items() if found is not None}
    near = NearCutoff(counts, ranker, reach) if ends and len(reach) == len(noise) else None
    margins = _Margins(own, ends, noise, near, [(0, 0)] * len(ends), [0] * len(ends))
    per_budget = [[windows[scale.name, size] for scale in others] for size in sizes]
    return margins, OverlapCounter(others, per_budget) if judged else None


def _frontiers(
    counts: Mapping[str, ValueCounts], ranker: JointRanker[RankTable], judged: str | None, margins: _Margins
) -> Iterator[tuple[Floats, Floats]]:
    """For each budget the least length that is selected at some values of the judged signal, which ascend; none where
    other signals have a weight, too, or short traces are better: what is selected then does not lie above a line."""
    weights = {name: weight for name, weight in margins.scale.weights.items() if weight}
    if judged is None or not weights.keys() <= {judged, "length"}:
        return
    if ranker.tables["length"].better == "low":
        return
    values, lengths = counts[judged].values, counts["length"].values
    at = np.unique(np.linspace(0, len(values) - 1, _FRONTIER_POINTS).astype(int))
    ranks = ranker.tables[judged].doubled_ranks[at]
    for last, _ in margins.ends:
        rest = last - weights.get(judged, 0) * ranks
        if "length" not in weights:
            inside = values[at][rest >= 0]
            edge = (inside[:1] if ranker.tables[judged].better == "high" else inside[-1:]).repeat(2)
            yield edge.astype(np.float64), lengths[[0, -1]].astype(np.float64)
            continue
        ascending = ranker.tables["length"].doubled_ranks[::-1] * weights["length"]
        longer = np.searchsorted(ascending, rest, side="right")  # so many lengths, the longest, are selected here
        some = longer > 0
        yield values[at][some].astype(np.float64), lengths[len(lengths) - longer[some]].astype(np.float64)
