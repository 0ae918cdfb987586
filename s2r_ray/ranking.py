"""Exact global ranks, the weighted joint rank and the best k rows, from blocks, in plain NumPy.

A rank is a function of how often each value occurs. So the pool is read in blocks of any size and order:

1. `ValueCounter` counts each signal's values, and counts of several blocks or workers add up;
2. `average_ranks` turns the counts into a table, `JointRanker` looks rows up and adds the weighted ranks;
3. `CutoffWindow` narrows down the k-th lowest joint rank; `select_top` and `order_rows` cut and order the few
   rows that are not above it.

What is held is one entry per distinct value, never one per row. Nothing is rounded on the way: ranks are
doubled (a tie of two has the average 1.5), weights are brought to whole numbers, and joint ranks are sums of
their products in int64. Rows that tie on paper tie here, and no result depends on the order of blocks, rows
or signals.

The weighted sum of ranks (not of scores) is Select2Reason's, arXiv 2505.17266. The average rank for ties, the
order of rows with equal joint ranks, and the rounding of budgets are this project's decisions.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from s2r_ray.errors import S2RError, UsageError

Better = Literal["high", "low"]
ALL_HIGH: Mapping[str, Better] = {}
Number = int | float | str | Decimal
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

GRID_BITS = 20
"""Scores are stored on a grid of 2^-20 (see the score store); such values are counted without sorting."""
DENSE_SLOTS = 1 << 22
"""Widest range of grid steps counted in one array (32 MiB); other values are counted by sorting."""
WEIGHT_DECIMALS = 6
_PAGE = 1 << 16
_CHUNK = 1 << 18
_KEY_LIMIT = 1 << 52
_JOINT_LIMIT = 1 << 62
_WINDOW_BITS = 20
_SHORT = 40
_SHOWN = 5


class Ranks(Protocol):
    """The ranks of one signal."""

    def doubled(self, block: NDArray[Any], /) -> NDArray[np.int64]:
        """Twice the rank of each value, int64[n]."""


R = TypeVar("R", bound=Ranks)


class Takeable(Protocol):
    """A column whose rows can be picked by position: a NumPy array, an Arrow array or chunked array."""

    def take(self, indices: Any, /) -> Any: ...


# --- values and how often they occur --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """How often each distinct value of one signal occurs.

    values: int64[d] or float64[d], ascending, distinct, finite, no -0.0. counts: int64[d], each at least 1.
    """

    values: NDArray[Any]
    counts: Ints

    @property
    def rows(self) -> int:
        """Rows counted."""
        return int(self.counts.sum())


class ValueCounter:
    """Counts the values of one signal, block after block.

    Integers and values on the 2^-20 grid within a range of DENSE_SLOTS steps go to an array of counters,
    without sorting; anything else is sorted block by block. Memory: at most some 33 MiB, or 16 bytes per
    distinct value and the same again while merging. One signal is all integers or all floats, never both:
    int64 does not fit in float64.
    """

    def __init__(self, name: str = "values") -> None:
        self.name = name
        self._kind = ""
        self._base = 0
        self._dense: Ints | None = np.zeros(0, np.int64)
        self._sorted = ValueCounts(np.zeros(0), np.zeros(0, np.int64))
        self._pending: list[ValueCounts] = []
        self._pending_size = 0

    def add(self, block: NDArray[Any], where: str = "") -> None:
        """Count a block of numbers, shape [n]; `where` (a file, a block number) goes into error messages.

        Raises S2RError, and counts nothing of the block, when a value is NaN or infinite.
        """
        block = _numbers(block, self._place(where))
        if block.size:
            low, high = _finite_range(block, self._place(where))
            self._settle_kind(block, where)
            for chunk in _chunks(block):
                self._add_values(chunk, None, low, high)

    def add_counts(self, part: ValueCounts) -> None:
        """Add what another counter has counted, such as another worker's blocks."""
        if part.values.size:
            self._settle_kind(part.values, "")
            low, high = part.values[0].item(), part.values[-1].item()
            self._add_values(part.values, part.counts, low, high)

    def counts(self) -> ValueCounts:
        """What has been counted so far; the counter can go on counting."""
        if self._dense is not None:
            keys = np.flatnonzero(self._dense)
            return ValueCounts(_from_keys(keys + self._base, self._kind), self._dense[keys])
        self._merge_pending()
        return self._sorted

    def _place(self, where: str) -> str:
        return f"{self.name} ({where})" if where else self.name

    def _settle_kind(self, block: NDArray[Any], where: str) -> None:
        kind = "f" if block.dtype.kind == "f" else "i"
        if self._kind and kind != self._kind:
            raise S2RError(f"{self._place(where)}: integers and floats in one signal; cast the column to one type")
        self._kind = kind

    def _add_values(self, values: NDArray[Any], counts: Ints | None, low: float, high: float) -> None:
        """Count values within [low, high], once each or `counts` times."""
        keys = _grid_keys(values) if self._reserve(low, high) else None
        if keys is not None and self._dense is not None:
            keys -= self._base
            np.add.at(self._dense, keys, 1 if counts is None else counts)
        else:
            self._spill()
            self._add_sorted(_tally(_widest(values), counts))

    def _reserve(self, low: float, high: float) -> bool:
        """Make room for the grid steps of [low, high]; False when they cannot be counted in one array."""
        span = _key_span(low, high, self._kind)
        if self._dense is None or span is None:
            return False
        first, stop = span[0] // _PAGE * _PAGE, -(-(span[1] + 1) // _PAGE) * _PAGE
        if self._dense.size:
            first, stop = min(first, self._base), max(stop, self._base + self._dense.size)
        if stop - first > DENSE_SLOTS + 2 * _PAGE:
            return False
        if stop - first > self._dense.size:
            wider = np.zeros(stop - first, np.int64)
            offset = self._base - first if self._dense.size else 0
            wider[offset : offset + self._dense.size] = self._dense
            self._dense, self._base = wider, first
        return True

    def _spill(self) -> None:
        """Go over from the array of counters to sorted values."""
        if self._dense is not None:
            counted = self.counts()
            self._dense = None
            self._add_sorted(counted)

    def _add_sorted(self, part: ValueCounts) -> None:
        self._pending.append(part)
        self._pending_size += part.values.size
        if self._pending_size >= max(self._sorted.values.size, _CHUNK):
            self._merge_pending()

    def _merge_pending(self) -> None:
        parts = [p for p in (self._sorted, *self._pending) if p.values.size]
        if self._pending and parts:
            self._sorted = _tally(np.concatenate([p.values for p in parts]), np.concatenate([p.counts for p in parts]))
        self._pending, self._pending_size = [], 0


def count_values(block: NDArray[Any], name: str = "values") -> ValueCounts:
    """Counts of one block, shape [n]. Raises S2RError on NaN or infinity."""
    counter = ValueCounter(name)
    counter.add(block)
    return counter.counts()


def merge_counts(parts: Iterable[ValueCounts], name: str = "values") -> ValueCounts:
    """Counts of several blocks together. The order and grouping of the parts do not matter."""
    counter = ValueCounter(name)
    for part in parts:
        counter.add_counts(part)
    return counter.counts()


# --- ranks of one signal --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RankTable:
    """The rank of every distinct value of one signal, among all rows counted.

    values: [d], ascending. doubled_ranks: int64[d], twice the average rank, 2 to 2 * rows.
    """

    name: str
    rows: int
    values: NDArray[Any]
    doubled_ranks: Ints
    better: Better
    _dense: tuple[int, Ints] | None = field(repr=False)

    def doubled(self, block: NDArray[Any]) -> Ints:
        """Twice the rank of each value, int64[n], in the order of the block.

        Raises S2RError for values that were never counted.
        """
        block = _numbers(block, self.name)
        out = np.empty(block.size, np.int64)
        if block.size:
            if self.rows and (block.dtype.kind == "f") != (self.values.dtype.kind == "f"):
                raise S2RError(f"{self.name}: counted as {self.values.dtype}, looked up as {block.dtype}; use one type")
            low, high = _finite_range(block, self.name)
            if not self.rows or low < self.values[0] or high > self.values[-1]:
                raise self._unknown(block)
            look_up = self._look_up if self._dense is None else self._look_up_dense
            for start in range(0, block.size, _CHUNK):
                look_up(block[start : start + _CHUNK], out[start : start + _CHUNK])
        return out

    def ranks(self, block: NDArray[Any]) -> Floats:
        """The average rank of each value, float64[n], a multiple of 0.5, in the order of the block."""
        return self.doubled(block) / 2

    def _look_up_dense(self, chunk: NDArray[Any], out: Ints) -> None:
        keys = _grid_keys(chunk)
        if keys is None or self._dense is None:
            raise self._unknown(chunk)
        base, table = self._dense
        keys -= base
        table.take(keys, out=out, mode="clip")  # in range already: "clip" only spares NumPy a copy
        if not out.all():
            raise self._unknown(chunk)

    def _look_up(self, chunk: NDArray[Any], out: Ints) -> None:
        chunk = _widest(chunk)
        order = np.argsort(chunk)  # sorted look-ups go through the table once, not at random
        ascending = chunk[order]
        found = np.searchsorted(self.values, ascending)
        if not np.array_equal(self.values[found], ascending):
            raise self._unknown(chunk)
        out[order] = self.doubled_ranks[found]

    def _unknown(self, block: NDArray[Any]) -> S2RError:
        missing = block[~np.isin(_widest(block), self.values)]
        return S2RError(
            f"{self.name}: {missing.size:,} of {block.size:,} values were never counted, "
            f"first {missing[0].item()!r}; ranks need counts over exactly the rows that are looked up"
        )


def average_ranks(counts: ValueCounts, better: Better = "high", name: str = "values") -> RankTable:
    """Ranks from counts. "high": rank 1 is the largest value (hardest, longest).

    Ties get their average rank. Equal to scipy.stats.rankdata(-x, method="average") over all counted rows.
    """
    per_value = counts.counts if better == "low" else counts.counts[::-1]
    before = np.cumsum(per_value) - per_value
    doubled = 2 * before + per_value + 1
    if better == "high":
        doubled = np.ascontiguousarray(doubled[::-1])
    return RankTable(name, counts.rows, counts.values, doubled, better, _dense_table(counts.values, doubled))


def _dense_table(values: NDArray[Any], doubled: Ints) -> tuple[int, Ints] | None:
    """(first grid step, doubled rank per step, 0 where no value is); None off the grid or too wide for it."""
    if not values.size:
        return None
    span = _key_span(values[0].item(), values[-1].item(), values.dtype.kind)
    keys = _grid_keys(values) if span and span[1] - span[0] < DENSE_SLOTS else None
    if span is None or keys is None:
        return None
    table = np.zeros(span[1] - span[0] + 1, np.int64)
    table[keys - span[0]] = doubled
    return span[0], table


# --- weights and the joint rank -------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Weights as whole numbers: that of names[i] is numerators[i] / denominator. They add up to 1."""

    names: tuple[str, ...]
    numerators: tuple[int, ...]
    denominator: int

    def as_floats(self) -> dict[str, float]:
        """The normalised weights, for people and records."""
        return {name: a / self.denominator for name, a in zip(self.names, self.numerators, strict=True)}


def parse_weights(weights: Mapping[str, Number], known: Collection[str]) -> Weights:
    """Exact weights from what a user wrote, in the order of `known`; a signal that is not named weighs 0.

    Raises UsageError for unknown names, and for weights that are not numbers, not finite, negative, all zero,
    or have more than 6 decimals.
    """
    unknown = sorted(set(weights) - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        meant = f"; did you mean {close[0]}?" if close else "."
        raise UsageError(f"weight for unknown signal {', '.join(unknown)}{meant} Signals here: {', '.join(known)}")
    names = tuple(name for name in known if name in weights)
    exact = [_exact(weights[name], f"weight {name}") for name in names]
    for name, weight in zip(names, exact, strict=True):
        if weight < 0:
            raise UsageError(f"weight {name} is {weights[name]}; weights must not be negative")
        if 10**WEIGHT_DECIMALS % weight.denominator:
            raise UsageError(f"weight {name} is {weights[name]}; write at most {WEIGHT_DECIMALS} decimals")
    if not any(exact):
        raise UsageError("all weights are zero; give at least one signal a weight above zero")
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    shared = math.gcd(*whole)
    numerators = tuple(a // shared for a in whole)
    return Weights(names, numerators, sum(numerators))


@dataclass(frozen=True, eq=False)
class RankedBlock:
    """ranks: per signal float64[n], the average rank. joint: int64[n], exact; see `JointRanker.published`."""

    ranks: dict[str, Floats]
    joint: Ints


@dataclass(frozen=True, eq=False)
class JointRanker(Generic[R]):
    """Ranks blocks of rows by all signals at once. Holds some 24 bytes per distinct value of each signal.

    Making one raises UsageError when the joint rank of so many rows would not fit in 64 bits.
    """

    tables: Mapping[str, R]
    weights: Weights
    rows: int

    def __post_init__(self) -> None:
        if self.largest_joint >= _JOINT_LIMIT:
            raise UsageError(
                f"weights {self.weights.as_floats()} over {self.rows:,} rows do not fit in 64 bits; "
                "write them with fewer decimals"
            )

    @property
    def denominator(self) -> int:
        """joint / denominator is the weighted sum of ranks. Twice that of the weights: ranks are doubled."""
        return 2 * self.weights.denominator

    @property
    def largest_joint(self) -> int:
        """Upper bound of `joint`: the row that is last in every signal."""
        return self.denominator * self.rows

    def joint(self, columns: Mapping[str, NDArray[Any]]) -> Ints:
        """The joint ranks of a block alone, int64[n], in its order; `columns` has the values [n] of every signal."""
        weights = self._weights()
        joint = np.zeros(self._size(columns), np.int64)
        for part, name, doubled in self._look_up(columns, [name for name in self.tables if weights[name]]):
            doubled *= weights[name]
            joint[part] += doubled
        return joint

    def rank(self, columns: Mapping[str, NDArray[Any]]) -> RankedBlock:
        """Ranks and joint ranks of a block, in its order; `columns` has the values [n] of every signal."""
        weights, size = self._weights(), self._size(columns)
        block = RankedBlock({name: np.empty(size) for name in self.tables}, np.zeros(size, np.int64))
        for part, name, doubled in self._look_up(columns, self.tables):
            np.multiply(doubled, 0.5, out=block.ranks[name][part])
            doubled *= weights[name]
            block.joint[part] += doubled
        return block

    def _weights(self) -> dict[str, int]:
        given = dict(zip(self.weights.names, self.weights.numerators, strict=True))
        return {name: given.get(name, 0) for name in self.tables}

    def _size(self, columns: Mapping[str, NDArray[Any]]) -> int:
        sizes = {name: len(columns[name]) for name in self.tables}
        if len(set(sizes.values())) != 1:
            raise S2RError(f"the signals of a block have different numbers of rows: {sizes}")
        return next(iter(sizes.values()))

    def _look_up(self, columns: Mapping[str, NDArray[Any]], names: Iterable[str]) -> Iterator[tuple[slice, str, Ints]]:
        """Doubled ranks, a piece at a time that fits in the CPU's cache."""
        for start in range(0, self._size(columns), _CHUNK):
            part = slice(start, start + _CHUNK)
            for name in names:
                yield part, name, self.tables[name].doubled(columns[name][part])

    def published(self, joint: Ints) -> Floats:
        """`rank_joint` as published, float64[n]: joint / denominator.

        Correctly rounded while both are below 2^53; beyond, still never falling where joint rises.
        """
        return joint / self.denominator


def joint_ranker(
    counts: Mapping[str, ValueCounts], weights: Weights, better: Mapping[str, Better] = ALL_HIGH
) -> JointRanker[RankTable]:
    """rank_j = Σ w_s * rank_s (arXiv 2505.17266, which adds ranks, not scores).

    `better` says of which signals the least value has rank 1; of the others it is the largest.

    `counts` may have signals without a weight: they are ranked, and do not move the joint rank. Raises
    S2RError when a weighted signal has no counts or the signals were not counted over as many rows, and
    UsageError when the joint rank would not fit in 64 bits.
    """
    missing = [n for n, a in zip(weights.names, weights.numerators, strict=True) if a and n not in counts]
    if missing:
        raise S2RError(f"no values for signal {', '.join(missing)}, which has a weight; score it first")
    rows = {name: part.rows for name, part in counts.items()}
    if len(set(rows.values())) != 1:
        raise S2RError(f"signals were counted over different rows: {rows}; every ranked row needs every signal")
    tables = {name: average_ranks(part, better.get(name, "high"), name) for name, part in counts.items()}
    return JointRanker(tables, weights, next(iter(rows.values())))


# --- budgets, the cut-off and the order -----------------------------------------------------------


def parse_percent(percent: Number) -> Fraction:
    """A budget as an exact share of the pool: 2.3, "2.3" and "2.3%" are 23/1000.

    Raises UsageError outside (0, 100].
    """
    text = percent.strip().removesuffix("%") if isinstance(percent, str) else percent
    share = _exact(text, "budget") / 100
    if not 0 < share <= 1:
        raise UsageError(f"budget {percent} is outside (0, 100] per cent")
    return share


def budget_size(rows: int, percent: Number) -> int:
    """k = max(1, floor(rows * percent / 100)), computed exactly: 2.3 per cent of 1000 rows is 23, not 22."""
    share = parse_percent(percent)
    if rows < 1:
        raise S2RError("no rows to select from: every candidate was excluded; see excluded.parquet for why")
    return max(1, math.floor(rows * share))


@dataclass(frozen=True)
class CutoffWindow:
    """The k-th lowest joint rank lies in [low, low + 2**bits) and is the `place`-th lowest (from 1) in there.

    Each pass over the joint ranks narrows it by up to 20 bits; counts of several blocks or workers add up.
    When bits is 0, `low` is the cut-off, and `place` rows of exactly this joint rank are in the top k.
    """

    low: int
    bits: int
    place: int

    @property
    def _step(self) -> int:
        """Bits settled by the next pass; shared evenly, which keeps the counts in the CPU's cache."""
        return -(-self.bits // -(-self.bits // _WINDOW_BITS)) if self.bits else 0

    def nothing(self) -> Ints:
        """Counts of no rows: int64[parts]."""
        return np.zeros(1 << self._step, np.int64)

    def count(self, joint: Ints, counts: Ints) -> None:
        """Add to `counts` how many of a block's joint ranks, int64[n], fall in each part of the window."""
        for chunk in _chunks(joint):
            offset = chunk - self.low
            offset = offset[(offset >= 0) & (offset < 1 << self.bits)]
            offset >>= self.bits - self._step
            np.add.at(counts, offset, 1)

    def narrow(self, counts: Ints) -> CutoffWindow:
        """The part that holds the k-th joint rank; `counts` are those of all blocks."""
        up_to = np.cumsum(counts)
        slot = int(np.searchsorted(up_to, self.place))
        if slot == counts.size:
            raise S2RError(f"the cut-off needs {self.place:,} more rows, the blocks have {int(up_to[-1]):,}")
        rest = self.bits - self._step
        return CutoffWindow(self.low + (slot << rest), rest, self.place - int(up_to[slot] - counts[slot]))


def cutoff_window(largest_joint: int, k: int) -> CutoffWindow:
    """Where the search for the k-th lowest joint rank begins, k from 1."""
    if k < 1:
        raise S2RError(f"cannot select {k:,} rows")
    return CutoffWindow(0, largest_joint.bit_length(), k)


def find_cutoff(blocks: Callable[[], Iterable[Ints]], largest_joint: int, k: int) -> int:
    """The k-th lowest joint rank over all blocks, exactly, in fixed memory.

    `blocks` is called once per pass (2 passes up to 10^12) and yields int64 arrays in any order and size.
    """
    window = cutoff_window(largest_joint, k)
    while window.bits:
        counts = window.nothing()
        for joint in blocks():
            window.count(joint, counts)
        window = window.narrow(counts)
    return window.low


def select_top(joint: Ints, k: int) -> Ints:
    """Positions, ascending, of the rows whose joint rank is not above the k-th lowest: k, or more with ties.

    joint: int64[n], none negative, 1 <= k <= n. `order_rows` then says which of the tied rows come first.
    """
    if not 1 <= k <= joint.size:
        raise S2RError(f"cannot select {k:,} of {joint.size:,} rows")
    return np.flatnonzero(joint <= find_cutoff(lambda: [joint], int(joint.max()), k))


def order_rows(
    rows: Ints,
    joint: Ints,
    lengths: NDArray[Any],
    ids: Takeable,
    locations: Sequence[Takeable] = (),
    *,
    k: int | None = None,
) -> Ints:
    """The k best of the given rows (None: all), best first.

    Lowest joint rank first; then the longer trace, then by sample id, then by `locations`. rows: int64[m],
    positions in the columns. joint, lengths: integers[n]. ids, locations: columns[n] of numbers or strings,
    ascending; strings in the order of their UTF-8 bytes. They are read for tied rows alone. Rows alike in
    everything come in the order of the columns. Since the order is total, a stream may be cut as it comes:
    the top k of (the top k so far and a new block) is the top k of all.
    """
    if lengths.dtype.kind not in "iu":
        raise S2RError(f"trace lengths are {lengths.dtype}; whole numbers were expected")
    order, starts = _order_by_joint(joint[rows], lengths[rows].astype(np.int64))
    if k is not None:  # ties that reach beyond k are settled, later ones are not
        ends = np.flatnonzero(starts[k:])
        order = order[: k + ends[0]] if ends.size else order
        starts = starts[: order.size]
    order = rows[order]
    for column in (ids, *locations):
        _settle_ties(order, starts, column)
    _settle_ties(order, starts, None)
    return order[:k]


def top_rows(joint: Ints, lengths: NDArray[Any], ids: Takeable, locations: Sequence[Takeable] = (), *, k: int) -> Ints:
    """Positions of the k best rows, best first, as `order_rows` has it. A smaller k gives a prefix of it."""
    return order_rows(select_top(joint, k), joint, lengths, ids, locations, k=k)


def _order_by_joint(joint: Ints, lengths: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Order by ascending joint, descending length; and at each place if it differs from the one before."""
    if not joint.size:
        return np.zeros(0, np.int64), np.zeros(0, np.bool_)
    low, longest = int(joint.min()), int(lengths.max())
    width = longest - int(lengths.min()) + 1
    if (int(joint.max()) - low + 1) * width < 1 << 63:
        key = (joint - low) * width + (longest - lengths)
        order = np.argsort(key)
        return order, _differs(key[order])
    order = np.lexsort((~lengths, joint))  # ~x = -x - 1 reverses the order and cannot overflow
    return order, _differs(joint[order]) | _differs(lengths[order])


def _settle_ties(order: Ints, starts: NDArray[np.bool_], column: Takeable | None) -> None:
    """Sort each run of tied rows by a column (None: by position), in place; mark in `starts` the untied."""
    ends = np.append(starts[1:], True)
    tied = np.flatnonzero(~(starts & ends))
    if not tied.size:
        return
    keys = order[tied] if column is None else _sort_keys(column, order[tied])
    by_run = np.lexsort((keys, np.cumsum(starts[tied])))
    order[tied] = order[tied][by_run]
    starts[tied] |= _differs(keys[by_run])


def _sort_keys(column: Takeable, rows: Ints) -> NDArray[Any]:
    """Numbers that sort as the column's values at these rows do."""
    picked = column.take(rows)
    keys: NDArray[Any] = picked if isinstance(picked, np.ndarray) else _text_array(picked.to_pylist())
    if keys.dtype.kind in "biuf":
        return keys
    if keys.dtype.kind == "O":
        keys = _text_array(keys.tolist())
    try:
        # By code point, which is the order of the UTF-8 bytes.
        _, places = np.unique(keys, return_inverse=True)
    except TypeError as error:
        raise S2RError(f"a column that breaks ties has nulls or mixed types: {error}") from error
    return places.astype(np.int64)


def _text_array(values: list[Any]) -> NDArray[Any]:
    """Strings, of fixed width where nothing is lost by it: those sort ten times faster than objects."""
    short = all(isinstance(value, str) and len(value) <= _SHORT for value in values)
    if short and not any(value.endswith("\0") for value in values):
        return np.asarray(values, dtype=np.str_)
    keys = np.empty(len(values), dtype=object)
    keys[:] = values
    return keys


def _differs(values: NDArray[Any]) -> NDArray[np.bool_]:
    """bool[n]: is this value another than the one before; the first is."""
    return np.append(True, values[1:] != values[:-1]) if values.size else np.zeros(0, np.bool_)


# --- numbers --------------------------------------------------------------------------------------


def _exact(value: Number, what: str) -> Fraction:
    """The decimal number that was written, as a fraction: 0.1 is 1/10, not the nearest float."""
    try:
        number = Decimal(str(value).strip())
    except (InvalidOperation, ValueError):
        raise UsageError(f"{what} is {value!r}; a decimal number was expected") from None
    if not number.is_finite():
        raise UsageError(f"{what} is {value}; a finite number was expected")
    if number and not -12 <= number.adjusted() <= 12:
        raise UsageError(f"{what} is {value}; a number between 1e-12 and 1e12 was expected")
    return Fraction(number)


def _numbers(block: NDArray[Any], where: str) -> NDArray[Any]:
    """The block if it is one-dimensional and made of integers, booleans or floats up to 64 bits."""
    block = np.asarray(block)
    if block.ndim != 1 or block.dtype.kind not in "biuf" or block.dtype.itemsize > 8:
        raise S2RError(f"{where}: an array of {block.dtype} of shape {block.shape}; a column of numbers was expected")
    if block.dtype == np.uint64:
        if block.size and int(block.max()) >= 1 << 63:
            raise S2RError(f"{where}: {block.max()} is above 2^63 - 1, the largest number that can be ranked")
        return block.astype(np.int64)
    return block


def _finite_range(block: NDArray[Any], where: str) -> tuple[float, float]:
    """Least and greatest value (int or float), exact. S2RError when a value is NaN or infinite."""
    low, high = block.min(), block.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = np.flatnonzero(~np.isfinite(block))
        nans = int(np.isnan(block).sum())
        shown = ", ".join(str(row) for row in bad[:_SHOWN]) + (", …" if bad.size > _SHOWN else "")
        raise S2RError(
            f"{where}: {bad.size:,} of {block.size:,} values are not finite ({nans:,} NaN, "
            f"{bad.size - nans:,} infinite), at rows {shown} of the block; exclude them or score them again"
        )
    return low.item(), high.item()


def _chunks(block: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Slices that keep temporary arrays small and in the CPU's cache."""
    for start in range(0, block.size, _CHUNK):
        yield block[start : start + _CHUNK]


def _widest(values: NDArray[Any]) -> NDArray[Any]:
    """int64 or float64, exactly, without negative zeros."""
    if values.dtype.kind == "f":
        return values.astype(np.float64) + 0.0
    return values.astype(np.int64)


def _key_span(low: float, high: float, kind: str) -> tuple[int, int] | None:
    """The first and last grid step of a range, or None when a step there is not exact in float64."""
    if kind != "f":
        return int(low), int(high)
    if max(abs(low), abs(high)) >= _KEY_LIMIT >> GRID_BITS:
        return None
    return math.floor(low * (1 << GRID_BITS)), math.ceil(high * (1 << GRID_BITS))


def _grid_keys(chunk: NDArray[Any]) -> Ints | None:
    """Grid step of each value, a new int64[n]; None when one is between steps. Integers are their own steps.

    The values must lie in a range that has a `_key_span`.
    """
    if chunk.dtype.kind != "f":
        return chunk.astype(np.int64)
    wide = chunk.astype(np.float64) if chunk.dtype.itemsize < 4 else chunk
    scaled = wide * wide.dtype.type(1 << GRID_BITS)  # exact: a power of two, and far from overflow
    keys = scaled.astype(np.int64)
    return keys if np.array_equal(keys, scaled) else None


def _from_keys(keys: Ints, kind: str) -> NDArray[Any]:
    return keys / (1 << GRID_BITS) if kind == "f" else keys


def _tally(values: NDArray[Any], counts: Ints | None) -> ValueCounts:
    """Distinct values, ascending, and their counts: once per row, or the sum of the counts given."""
    if counts is None:
        return ValueCounts(*np.unique(values, return_counts=True))
    order = np.argsort(values, kind="stable")  # parts are sorted already, and a stable sort profits from that
    values, counts = values[order], counts[order]
    first = np.flatnonzero(_differs(values))
    return ValueCounts(values[first], np.add.reduceat(counts, first))
