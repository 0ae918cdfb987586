"""What changed between two runs: which samples entered and left each budget, and why.

A sample of one run is looked for in the other, ranked or excluded, in four rounds; what a round pairs is out of the
later ones, and where several rows are alike they pair up in order (ranked before excluded, then by location):

1. the same sample id, question and lengths, or the same reason for being left out: an unchanged sample, in whatever
   file or pool it lies now;
2. the same pool, sample id and question: another trace, or another verdict on it;
3. the same pool and sample id: another question;
4. the same sample id and question: changed, and moved to another pool.

So duplicated ids pair up one to one, and files may be renamed. A pool is known by its address; where both runs have
one pool, that is one and the same. Without an id column the id is a hash of the content, and a changed row is a new
sample.

Held in memory: the rows of the compared budgets, and three numbers of every ranked row; eight where a run has strata.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from s2r_ray.candidates import Reason
from s2r_ray.errors import UsageError
from s2r_ray.filters import read_filter
from s2r_ray.groups import label_codes
from s2r_ray.near_cutoff import rows_within_noise
from s2r_ray.noise import Noise, noise_of
from s2r_ray.ranking import parse_weights
from s2r_ray.runs import list_runs, read_record
from s2r_ray.selection import manifest_place
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.storage import Place
from s2r_ray.strata import Share, priorities
from s2r_ray.tables import open_parquet, read_table, use_threads

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ENTERED = ("new_sample", "was_excluded", "rescored", "cut_off_moved")
LEFT = ("gone", "excluded", "rescored", "cut_off_moved")
_IDENTITY = ("sample_id", "pool", "file", "row", "generation", "question_key")
_LENGTHS = ("trace_tokens", "trace_tokens_unique")
_ROUNDS = (
    ("sample_id", "question_key", *_LENGTHS, "reason"),
    ("pool", "sample_id", "question_key"),
    ("pool", "sample_id"),
    ("sample_id", "question_key"),
)
_BATCH_ROWS = 1 << 20
_NOWHERE = np.iinfo(np.int64).max
_UNREADABLE = str(Reason.UNREADABLE_FILE)


@dataclass(frozen=True)
class BudgetDiff:
    """One budget in per cent. `size_before` and `size_after` are the rows that each run selected.

    `entered` and `left` have the columns sample_id, pool, file, row, generation, question_key, position_before,
    position_after, why, detail: in order of their position in the run that selected them, located where that run found
    them; `pool` is "" where both runs have one. A position beyond the manifests is the last among equal joint ranks,
    null where the sample was not ranked. `why` is one of ENTERED or LEFT; `detail` is the reason of an exclusion, or
    the signals that moved. `within_noise`: see `rows_within_noise`; None where the noise of a signal with a weight was
    not measured.
    """

    budget: str
    size_before: int
    size_after: int
    stayed: int
    entered: pa.Table
    left: pa.Table
    within_noise: int | None


@dataclass(frozen=True)
class Diff:
    """Two runs compared. `before` and `after` are their records (`run.json`).

    `differences`: what else differs and can explain movement, by name: (before, after). `noise`: of each judged signal
    with a weight in the later run, None where it was not measured.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    differences: dict[str, tuple[Any, Any]]
    noise: dict[str, Noise | None]
    budgets: tuple[BudgetDiff, ...]


@dataclass(frozen=True)
class _Run:
    """A finished run. `several` is False where this run and the other have one pool each."""

    place: Place
    record: dict[str, Any]
    several: bool

    @property
    def weighted(self) -> list[str]:
        """The signals that move the joint rank."""
        return [name for name, weight in self.record["weights"].items() if weight]

    @property
    def signals(self) -> Collection[str]:
        """The columns of signals that have ranks."""
        return list(self.record.get("better") or self.record["fingerprints"])

    def ranking(self) -> list[Place]:
        """The files of the ranking, in order."""
        folder = self.place.child("ranking")
        return [folder.child(file.path) for file in folder.files()]


# --- which runs -----------------------------------------------------------------------------------


def choose_runs(out: Place, before: str | None = None, after: str | None = None) -> tuple[str, str]:
    """The ids of the two runs to compare, from ids or beginnings of ids.

    Args:
        before: None for the newest finished run that is older than `after`.
        after: None for the run that `latest.json` names.

    Raises:
        UsageError: there are not two finished runs, or no such run, or several, or it has not finished.
    """
    runs = list_runs(out)
    chosen = runs.find(after)
    if before:
        first = runs.find(before)
    else:
        older = [run for run in runs.finished if run < chosen]
        if not older:
            raise UsageError(f"{out}: there is no finished run before {chosen} to compare it with")
        first = older[-1]
    if first == chosen:
        raise UsageError(f"both runs are {chosen}; give two different ones")
    return first, chosen


# --- the comparison -------------------------------------------------------------------------------


def diff_runs(out: Place, before: str, after: str, budgets: Sequence[str] = ()) -> Diff:
    """Compare two finished runs of an output place.

    Args:
        before: the run id of the earlier run, or of any other to compare with; `after` that of the later one.
        budgets: in per cent, as the runs have them; () for all that both have.

    Raises:
        UsageError: no such run, a budget that one of the runs does not have, or a run whose tables are damaged.
    """
    try:
        return _compare(out, before, after, budgets)
    except (pa.ArrowException, OSError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"a table of run {before} or {after} is damaged or gone ({why}); name two other runs"
        ) from error


def _compare(out: Place, before: str, after: str, budgets: Sequence[str]) -> Diff:
    records = [read_record(out, run_id) for run_id in (before, after)]
    several = max(len(record["pools"]) for record in records) > 1
    runs = [_Run(out.child("runs", record["run_id"]), record, several) for record in records]
    budgets = _common_budgets(runs, budgets)
    signals = [name for name in dict.fromkeys([*runs[0].weighted, *runs[1].weighted]) if _in_both(name, runs)]
    tops = [_read_top(run, max(budgets, key=lambda budget: run.record["budgets"][budget])) for run in runs]
    ids = pc.unique(pa.chunked_array([chunk for top in tops for chunk in top["sample_id"].chunks], pa.string()))
    old, new = (_read_rows(run, ids, signals, top) for run, top in zip(runs, tops, strict=True))
    forth = _match(old, new)
    back = np.full(old.num_rows, -1, np.int64)
    back[forth[forth >= 0]] = np.flatnonzero(forth >= 0)
    lost = [_unreadable_files(run) for run in runs]
    judged = [name for name in runs[1].weighted if name not in INDEX_SIGNALS]
    noise = {name: noise_of(out, records[1]["fingerprints"], name) for name in judged}
    close = _within_noise(runs[1], new, budgets, noise)
    found = []
    for budget in budgets:
        sizes = [record["budgets"][budget] for record in records]
        was, is_now = _positions(old) <= sizes[0], _positions(new) <= sizes[1]
        entered = _moved(_Side(new, is_now, "after"), _Side(old, was, "before"), forth, ENTERED, lost[0], signals)
        left = _moved(_Side(old, was, "before"), _Side(new, is_now, "after"), back, LEFT, lost[1], signals)
        stayed = int(is_now.sum()) - entered.num_rows
        found.append(BudgetDiff(budget, sizes[0], sizes[1], stayed, entered, left, close.get(budget)))
    return Diff(records[0], records[1], _differences(*records), noise, tuple(found))


def _common_budgets(runs: Sequence[_Run], asked: Sequence[str]) -> list[str]:
    first, second = (sorted(run.record["budgets"], key=float) for run in runs)
    for run in runs:
        missing = [budget for budget in asked if budget not in run.record["budgets"]]
        if missing:
            there = _percents(run.record["budgets"])
            raise UsageError(f"run {run.record['run_id']} has no budget of {_percents(missing)}; it has {there}")
    common = list(asked) or [budget for budget in second if budget in first]
    if not common:
        raise UsageError(f"the runs have no budget in common: {_percents(first)} before, {_percents(second)} after")
    return common


def _percents(budgets: Iterable[str]) -> str:
    return ", ".join(f"{budget} %" for budget in sorted(budgets, key=float))


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What can explain movement and is not the same in both records, by name."""
    first, second = _explaining(before), _explaining(after)
    pairs = {name: (first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _explaining(record: dict[str, Any]) -> dict[str, Any]:
    config = record["config"]
    judges = {
        f"{signal} {key}": value
        for signal, fingerprint in record["fingerprints"].items()
        for key, value in fingerprint.items()
    }
    return {
        "weights": record["weights"],
        "what is better": _better(record) or "high values",
        "filter": record.get("filter") or "none",
        "strata": _strata(record) or "none",
        "budgets": sorted(record["budgets"], key=float),
        "pools": record["pools"],
        "pool files": record["snapshot"],
        "columns": [{name: pool.get(name) for name in ("preset", "mapping", "labels")} for pool in config["pools"]],
        "candidates": config["candidates"],
        "guards": config["guards"],
        "tokenizer": record["index"]["tokenizer"],
        **judges,
        "s2r_ray": record["versions"].get("s2r_ray"),
    }


def _better(record: dict[str, Any]) -> dict[str, str]:
    """The columns of which low values are better, of those that have a weight or that the filter names; a record from
    before there were any has none."""
    named = {name for name, weight in record["weights"].items() if weight}
    if record.get("filter"):
        named.update(read_filter(record["filter"]).columns)
    return {name: side for name, side in record.get("better", {}).items() if name in named and side == "low"}


def _strata(record: dict[str, Any]) -> dict[str, Any]:
    """The label and the share of a run's strata; {} without, as in a record from before there were any."""
    return {name: value for name, value in (record.get("strata") or {}).items() if name in ("by", "share")}


# --- the rows to compare --------------------------------------------------------------------------


def _column(signal: str) -> str:
    """Where the ranking has a signal's values."""
    return INDEX_SIGNALS.get(signal, signal)


def _in_both(signal: str, runs: Sequence[_Run]) -> bool:
    return signal in INDEX_SIGNALS or all(signal in run.signals for run in runs)


def _read_top(run: _Run, budget: str) -> pa.Table:
    """Where a manifest's rows are, and their positions."""
    place = manifest_place(run.place, budget)
    with open_parquet(place) as file:
        there = file.schema_arrow.names
    return _with_pool(read_table(place, [name for name in ("position", *_IDENTITY) if name in there]), run)


def _read_rows(run: _Run, ids: pa.Array, signals: Sequence[str], top: pa.Table) -> pa.Table:
    """All rows of a run with one of these sample ids, ranked ones first, each kind in location order.

    Columns as published, and `place`, the row's number in the ranking, and `position`. Both are null, as are lengths
    and signals, where the row was excluded; `reason` is null where it was not.
    """
    columns = [*_IDENTITY, *_LENGTHS, *(_column(name) for name in signals if _column(name) not in _LENGTHS)]
    tables, joint = [], []
    start = 0
    for part in run.ranking():
        for found, at in _having(part, columns, ids):
            tables.append(found.append_column("place", pa.array(start + at)))
        joint.append(read_table(part, ["rank_joint"])["rank_joint"].to_numpy())
        start += len(joint[-1])
    ranked = _with_pool(pa.concat_tables(tables), run)
    share = _strata(run.record).get("share", "proportional")
    position = _last_places(np.concatenate(joint), ranked["place"].to_numpy(), _stratum(run), share)
    exact, at = _pair(*_codes(top, ranked, _IDENTITY))
    position[at] = top["position"].to_numpy()[exact]
    ranked = ranked.append_column("position", pa.array(position))
    rejects = [found for found, _ in _having(run.place.child("excluded.parquet"), [*_IDENTITY, "reason"], ids)]
    excluded = _with_pool(pa.concat_tables(rejects or [pa.table({"reason": pa.array([], pa.string())})]), run)
    return pa.concat_tables([ranked, excluded], promote_options="default").combine_chunks()


def _having(place: Place, columns: Sequence[str], ids: pa.Array) -> Iterator[tuple[pa.Table, Ints]]:
    """(rows with one of these ids, their numbers in the file), a batch at a time."""
    start = 0
    with open_parquet(place) as file:
        wanted = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=use_threads(place, file)):
            found = np.flatnonzero(pc.is_in(batch["sample_id"], value_set=ids).to_numpy(zero_copy_only=False))
            yield pa.Table.from_batches([batch]).take(pa.array(found)), start + found
            start += batch.num_rows


def _with_pool(table: pa.Table, run: _Run) -> pa.Table:
    """With the column `pool`: addresses, or the same for all rows where both runs have one pool."""
    if run.several and "pool" in table.column_names:
        return table
    return table.append_column("pool", pa.repeat(run.record["pools"][0] if run.several else "", table.num_rows))


def _stratum(run: _Run) -> Ints | None:
    """For each ranked row a number, the same inside of a group; None without strata."""
    if not _strata(run.record):
        return None
    columns = (read_table(part, ["stratum"])["stratum"] for part in run.ranking())
    return np.concatenate(list(label_codes(columns, run.record["strata"]["by"]))).astype(np.int64)


def _last_places(joint: npt.NDArray[np.float64], rows: Ints, stratum: Ints | None, share: Share) -> Ints:
    """The last place among equal joint ranks, from 1: for a row that a budget left out, a place beyond the budget.

    With strata, the place of the priority that the last of its group's equals has, and the last among equal ones.
    """
    if stratum is None:
        return np.searchsorted(np.sort(joint), joint[rows], side="right").astype(np.int64)
    order = np.lexsort((joint, stratum))
    stratum, joint = stratum[order], joint[order]
    sizes = np.bincount(stratum)
    places = np.arange(1, len(order) + 1) - (np.cumsum(sizes) - sizes)[stratum]
    ends = np.flatnonzero(np.append((np.diff(stratum) != 0) | (np.diff(joint) != 0), True))
    last = np.repeat(places[ends], np.diff(ends, prepend=-1))
    ordered = np.sort(priorities(places, sizes[stratum], share))
    found = np.empty(len(order), np.int64)
    found[order] = np.searchsorted(ordered, priorities(last, sizes[stratum], share), side="right")
    return found[rows]


def _positions(rows: pa.Table) -> Ints:
    """int64[rows], beyond any budget for excluded rows."""
    found: Ints = pc.fill_null(rows["position"], _NOWHERE).to_numpy()
    return found


def _unreadable_files(run: _Run) -> pa.Table:
    """Columns `pool`, `file`: the files that the run put up with, of whose rows it knows nothing."""
    found = [pa.table({"file": pa.array([], pa.string())})]
    if run.record["excluded"].get(_UNREADABLE):
        place = run.place.child("excluded.parquet")
        with open_parquet(place) as file:
            wanted = [name for name in ("pool", "file", "reason") if name in file.schema_arrow.names]
            batches = file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=use_threads(place, file))
            found = [pa.Table.from_batches([batch.filter(pc.equal(batch["reason"], _UNREADABLE))]) for batch in batches]
    return _with_pool(pa.concat_tables(found), run)


# --- which row is which ---------------------------------------------------------------------------


def _match(before: pa.Table, after: pa.Table) -> Ints:
    """For each row of `after` the row of `before` that is the same sample, -1 for none: int64[after]."""
    partner = np.full(after.num_rows, -1, np.int64)
    old, new = np.arange(before.num_rows), np.arange(after.num_rows)
    for columns in _ROUNDS:
        first, second = _pair(*_codes(before.take(pa.array(old)), after.take(pa.array(new)), columns))
        partner[new[second]] = old[first]
        old, new = np.delete(old, first), np.delete(new, second)
    return partner


def _codes(before: pa.Table, after: pa.Table, columns: Sequence[str]) -> tuple[Ints, Ints]:
    """A number for each row, the same where all these columns are; nulls are alike."""
    code = np.zeros(before.num_rows + after.num_rows, np.int64)
    for name in columns:
        values = pa.chunked_array([*before[name].chunks, *after[name].chunks], before[name].type).combine_chunks()
        encoded = values.dictionary_encode(null_encoding="encode")
        code = code * max(1, len(encoded.dictionary)) + encoded.indices.to_numpy()
        code = np.unique(code, return_inverse=True)[1].astype(np.int64)
    return code[: before.num_rows], code[before.num_rows :]


def _pair(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Places of equal codes, one to one: the n-th of a code with the n-th of it on the other side."""
    most = len(first) + len(second) + 1
    keys, others = (code * most + _occurrence(code) for code in (first, second))
    _, at, there = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
    return at, there


def _occurrence(code: Ints) -> Ints:
    """How many equal codes come before each."""
    order = np.argsort(code, kind="stable")
    place = np.arange(len(code))
    first = np.append(True, np.diff(code[order]) != 0)[: len(code)]
    found = np.empty(len(code), np.int64)
    found[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return found


# --- who moved, and why ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """One run's rows, which of them a budget selects, and what its positions are called."""

    rows: pa.Table
    chosen: Bools
    name: str


def _moved(
    here: _Side, there: _Side, partner: Ints, names: Sequence[str], lost: pa.Table, signals: Sequence[str]
) -> pa.Table:
    """The rows that are chosen here and not there, in order of position here; see `BudgetDiff`.

    Args:
        partner: for each row here the same sample's row there, -1 for none.
        names: what to call it when the sample is absent there, excluded there, has other values, has the same.
        lost: the files that could not be read there.
    """
    at = np.flatnonzero(here.chosen & ~((partner >= 0) & there.chosen[partner]))
    at = at[np.argsort(_positions(here.rows)[at], kind="stable")]
    found = pa.array(partner[at], mask=partner[at] < 0)
    in_lost = np.isin(*_codes(here.rows.take(pa.array(at)), lost, ("pool", "file")))
    rows, others = _arrays(here.rows, pa.array(at)), _arrays(there.rows, found)
    reason = pc.if_else(pc.and_(pc.is_null(found), pa.array(in_lost)), _UNREADABLE, others["reason"])
    moved = _moved_signals(rows, others, signals)
    absent, excluded, rescored, same = names
    why = pc.if_else(pc.not_equal(moved, ""), rescored, same)
    why = pc.if_else(pc.is_null(found), absent, why)
    why = pc.if_else(pc.is_valid(reason), excluded, why)
    detail = pc.coalesce(reason, pc.if_else(pc.equal(why, rescored), moved, pa.scalar(None, pa.string())))
    positions = {f"position_{side.name}": part["position"] for side, part in ((there, others), (here, rows))}
    columns = {name: rows[name] for name in _IDENTITY} | dict(sorted(positions.items(), reverse=True))
    return pa.table(columns | {"why": why, "detail": detail})


def _arrays(rows: pa.Table, at: pa.Array) -> dict[str, pa.Array]:
    """The columns of these rows, null where the place is."""
    return {name: rows[name].combine_chunks().take(at) for name in rows.column_names}


def _moved_signals(rows: Mapping[str, pa.Array], others: Mapping[str, pa.Array], signals: Sequence[str]) -> pa.Array:
    """The names of the signals whose values differ, joined by commas; "" where none does or one is null."""
    which = np.zeros(len(rows["sample_id"]), np.int64)
    for place, column in enumerate(map(_column, signals)):
        differ = pc.fill_null(pc.not_equal(rows[column], others[column]), False)
        which |= differ.to_numpy(zero_copy_only=False).astype(np.int64) << place
    kinds, kind = np.unique(which, return_inverse=True)
    names = [", ".join(name for place, name in enumerate(signals) if bits >> place & 1) for bits in kinds.tolist()]
    return pa.array(names, pa.string()).take(pa.array(kind))


# --- the judge's noise at the cut-off -------------------------------------------------------------


def _within_noise(
    run: _Run, rows: pa.Table, budgets: Sequence[str], noise: Mapping[str, Noise | None]
) -> dict[str, int]:
    """Budget -> rows near its cut-off, with strata near that of their group; {} where a noise is not known."""
    reach = {name: found.largest for name, found in noise.items() if found is not None}
    if len(reach) < len(noise):
        return {}
    columns = {name: _column(name) for name in run.weighted}
    ranking = pa.concat_tables([read_table(part, list(columns.values())) for part in run.ranking()])
    values = {name: ranking[column].to_numpy() for name, column in columns.items()}
    weights = parse_weights(run.record["config"]["weights"], list(run.record["weights"]))
    better = run.record.get("better", {})
    positions = np.full(ranking.num_rows, _NOWHERE, np.int64)
    ranked = rows.filter(pc.is_valid(rows["place"]))
    positions[ranked["place"].to_numpy()] = ranked["position"].to_numpy()
    chosen = [positions <= run.record["budgets"][budget] for budget in budgets]
    stratum, found = _stratum(run), np.zeros(len(budgets), np.int64)
    for rows in [np.arange(len(positions))] if stratum is None else _members(stratum):
        inside = {name: column[rows] for name, column in values.items()}
        found += rows_within_noise(inside, weights, reach, [taken[rows] for taken in chosen], better)
    return dict(zip(budgets, found.tolist(), strict=True))


def _members(stratum: Ints) -> list[Ints]:
    """The rows of each group."""
    return np.split(np.argsort(stratum, kind="stable"), np.cumsum(np.bincount(stratum))[:-1])
