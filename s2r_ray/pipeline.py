"""The whole job: index, score, rank, publish. Read it top to bottom; everything it calls is below it.

Each stage leaves something durable behind and begins with what is there already, so running again after a kill, a
change of the pool or a change of weights pays only for what is missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from time import monotonic
from typing import Any, TypeVar

from s2r_ray.baselines import Baselines, baseline_folder, check_baselines, how_to_label
from s2r_ray.candidates import told_reasons
from s2r_ray.cluster import Cluster, Connection, cluster_address, stream_tasks
from s2r_ray.config import Config
from s2r_ray.error_rate import check_judged, check_rows
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.filtering import STATED, check_filter
from s2r_ray.groups import check_groups
from s2r_ray.index import (
    PoolIndex,
    Snapshot,
    UnitOutcome,
    damaged_units,
    forget_unit,
    index_unit,
    indexed_keys,
    snapshot_place,
    unit_keys,
    unit_of,
)
from s2r_ray.metrics import count, progressed
from s2r_ray.models import EMBEDDED, find_tokenizer
from s2r_ray.pending import Distinct, Pending, find_distinct
from s2r_ray.pool_rows import RunPool
from s2r_ray.preflight import check_cluster, cpus_at_once
from s2r_ray.preparation import announced, prepare_signal
from s2r_ray.printable import one_line
from s2r_ray.progress import Progress
from s2r_ray.publish import RunRecord, new_run_id, now, publish, recorded_config
from s2r_ray.ranking import Better, Weights, parse_weights
from s2r_ray.readers import BadFileError, Unit, plan_units, pool_files, read_unit
from s2r_ray.report.page import write_report
from s2r_ray.retries import take_repeated
from s2r_ray.score import Judged, score_missing
from s2r_ray.selection import rank
from s2r_ray.signals import FURTHER, INDEX_SIGNALS, SIGNALS, WITH_VECTORS, signals_for
from s2r_ray.signals.base import Resources, Signal, SubjectKind, vector_length
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, Settled, fingerprint_digest
from s2r_ray.tables import DamagedError
from s2r_ray.tokens import spell_out

_FAULTS_SHOWN = 5
_REPAIRS = 20
_LOOKED_AT = 8
_OF_SELECTION = ("signals", "weights", "directions", "filter", "budgets", "strata", "baselines", "seed")
"""Parts of the configuration that ranking depends on and nothing before it."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """What a run would do, checked but not begun. Making one reads listings and footers and changes nothing.

    `units` are all units of the pools with their keys, `fresh` those that are not in the index yet.
    """

    config: Config
    out: Place
    pools: tuple[PoolIndex, ...]
    units: tuple[tuple[Unit, str], ...]
    fresh: tuple[tuple[Unit, str], ...]
    signals: tuple[Signal, ...]
    weights: Weights

    @property
    def pool_uris(self) -> tuple[str, ...]:
        """The pools' addresses as they were given."""
        return tuple(place.uri for place in self.config.pool_places())


@dataclass
class Troubles:
    """What a run had to get over; it becomes part of the counts in `run.json`.

    `requests_repeated`: to an object store; `restarts`: of all judge workers at once; `damaged_files`: of the index and
    the score store, set aside and made anew.
    """

    requests_repeated: int = 0
    workers_replaced: int = 0
    restarts: int = 0
    damaged_files: int = 0


@dataclass
class Done:
    """What a run has done so far. Damage that is found and repaired means another pass over the stages: this is of all.

    `units` are the keys of the pool's units, `read` of those that were read in this run; `judged` is by signal.
    """

    troubles: Troubles = field(default_factory=Troubles)
    units: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    judged: dict[str, Judged] = field(default_factory=dict)
    index_seconds: float = 0.0


@dataclass(frozen=True)
class Scored:
    """Stages 1 and 2 done: what ranking needs, and what they did. Kept as `OUT/index/scored.json` for `select`.

    `stores`: signal name -> {"digest", "extras", "subject", "ranked", "vector", "fingerprint"}: its score store, the
    columns that get ranks with what is better in them, and what its scores depend on. `index`: what the index's rows
    depend on.
    """

    snapshot: Snapshot
    stores: dict[str, dict[str, Any]]
    index: dict[str, Any]
    config: dict[str, Any]
    counts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run(config: Config, progress: Progress, signals: Sequence[Signal] | None = None) -> tuple[RunRecord, Place]:
    """All four stages. Returns the run's record and its place.

    Args:
        signals: take these instead of the table's, for signals that live outside the package.

    Raises:
        UsageError: a setting, pool or model is wrong; nothing was begun.
        S2RError: something failed; what is in the index and the score store is kept for the next try.
    """
    started = now()

    def once(done: Done) -> tuple[RunRecord, Place]:
        with _connection(config, signals) as ray:
            plan = prepare(config, signals, ray)
            scored = index_and_score(plan, ray, progress, done)
        return rank_and_publish(plan.out, scored, plan.weights, config, started, progress)

    return _repairing(config.out_place(), once, progress)


def score(config: Config, progress: Progress, signals: Sequence[Signal] | None = None) -> Scored:
    """Stages 1 and 2: index the pools and judge what has no score. `select` goes on from there."""

    def once(done: Done) -> Scored:
        with _connection(config, signals) as ray:
            return index_and_score(prepare(config, signals, ray), ray, progress, done)

    return _repairing(config.out_place(), once, progress)


def _repairing(out: Place, work: Callable[[Done], _T], progress: Progress) -> _T:
    """Do the work; when a file of the index or the score store turns out to be damaged, set it aside and begin again,
    which makes anew what it held and nothing else."""
    done = Done()
    for _ in range(_REPAIRS):
        try:
            return work(done)
        except DamagedError as error:
            in_index = error.place.uri.startswith(out.child("index").uri)
            # One file of the index is seldom alone, and each pass costs a start: look through all of it.
            found = damaged_units(out, done.units) if in_index else []
            for damage in found if any(damage.place == error.place for damage in found) else [*found, error]:
                progress.say(f"warning: {damage}; set aside, and made anew")
                done.troubles.damaged_files += 1
                if in_index:
                    forget_unit(out, unit_of(out, damage.place))
                else:
                    damage.place.set_aside()
    return work(done)


def select(config: Config, progress: Progress) -> tuple[RunRecord, Place]:
    """Stages 3 and 4 over what `score` or `run` last left in this output place. Loads no model, starts no Ray.

    Raises:
        UsageError: nothing has been scored there yet, or a weight names a signal that has no scores there.
    """
    started = now()
    out = config.out_place()
    out.check_reachable()
    scored = _read_scored(out)
    scored = replace(scored, stores=_named_stores(config, scored))
    better = _better(config, scored)
    weights = parse_weights(config.weights, list(better))
    labels, stated = (scored.index.get(name, []) for name in ("labels", "stated"))
    with_vectors = [name for name, about in scored.stores.items() if about["vector"]]
    _check_selection(config, list(better), labels, with_vectors)
    columns = [column for name, about in scored.stores.items() for column in (name, *about["extras"])]
    _check_filter(config, columns, list(better), stated, labels)
    chosen = recorded_config(config)
    scored.config.update({name: chosen[name] for name in _OF_SELECTION})
    scored = replace(scored, counts=_nothing_done(scored), seconds={})
    try:
        return rank_and_publish(out, scored, weights, config, started, progress)
    except DamagedError as error:
        raise S2RError(f"{error}; `s2r run` or `s2r score` with this --out makes it anew") from error


def prepare(config: Config, signals: Sequence[Signal] | None = None, ray: Connection | None = None) -> Plan:
    """Find and check everything a run needs, within seconds, and change nothing.

    Args:
        ray: start it ahead if a file must be read.

    Raises:
        UsageError: says what was found, what was expected and what to do.
    """
    out = config.out_place()
    roots = config.pool_places()
    for place in (out, *roots):
        place.check_reachable()
    out.check_can_be_folder()
    names = needed_signals(config) if signals is None else [signal.name for signal in signals]
    further = FURTHER if signals is None else {column: signal.name for signal in signals for column in signal.ranked}
    columns = [*names, *(column for column, name in further.items() if name in names and column not in names)]
    columns += INDEX_SIGNALS
    with_vectors = WITH_VECTORS if signals is None else [signal.name for signal in signals if vector_length(signal)]
    weights = parse_weights(config.weights, columns)
    tokenizer = find_tokenizer(config.tokenizer, storage=config.storage.options())
    pools: list[PoolIndex] = []
    units: list[Unit] = []
    try:
        for position, (place, section) in enumerate(zip(roots, config.pools, strict=True)):
            root, files = place.glob()
            check_apart(out, root)
            known = pool_files(files, str(place))
            mapping = section.resolved_mapping()
            pool = PoolIndex(root, out, mapping, config.guards, config.candidates, tokenizer)
            pools.append(pool)
            own = plan_units(root, position, known)
            units.extend(own)
            _check_mapping(pool, own, set(mapping.labels) if section.mapping else set(section.labels))
        _check_selection(config, columns, _labels(pools), [name for name in names if name in with_vectors])
        keyed = unit_keys(pools, units)
        done = indexed_keys(out)
    except UsageError:
        raise
    except S2RError as error:
        raise UsageError(str(error)) from error
    fresh = tuple(item for item in keyed if item[1] not in done)
    # Last, because these load the model library, which takes seconds.
    if fresh and ray is not None:
        ray.start_ahead()
    if signals is None:
        signals = [SIGNALS[name](config) for name in names]
    if fresh:
        spelled_out = spell_out(str(tokenizer.folder))
        pools = [replace(pool, spelled_out=spelled_out) for pool in pools]
    _check_columns(signals)
    made = [column for signal in signals for column in (signal.name, *signal.extras)]
    ranked = [*(column for signal in signals for column in signal.ranked), *INDEX_SIGNALS]
    _check_filter(config, made, ranked, _stated(pools), _labels(pools))
    return Plan(config, out, tuple(pools), tuple(keyed), fresh, tuple(signals), weights)


def _labels(pools: Sequence[PoolIndex]) -> list[str]:
    """The names of all labels."""
    return sorted({label for pool in pools for label in pool.mapping.labels})


def _stated(pools: Sequence[PoolIndex]) -> list[str]:
    """What of STATED any pool has a column for."""
    return [name for name in STATED if any(getattr(pool.mapping, name) for pool in pools)]


def needed_signals(config: Config) -> list[str]:
    """The signals of the table that a run computes: those asked for, and those that weights, filter and baselines name.

    Raises:
        UsageError: one that is asked for is not in the table.
    """
    stray = sorted(set(config.signals).difference(SIGNALS))
    if stray:
        raise UsageError(f"signals: there is no {', '.join(stray)}; expected some of: {', '.join(SIGNALS)}")
    return signals_for(config.signals, _named_columns(config))


def _named_columns(config: Config) -> list[str]:
    """What weights, filter and baselines name."""
    found = config.row_filter()
    return [*config.weights, *(found.columns if found else ()), *Baselines(config.baselines).columns()]


def _named_stores(config: Config, scored: Scored) -> dict[str, dict[str, Any]]:
    """The stores of what is asked for or named, also of signals that live outside the package.

    Raises:
        UsageError: as `needed_signals` does.
    """
    names = {*needed_signals(config), *_named_columns(config)}
    return {
        name: about
        for name, about in scored.stores.items()
        if not names.isdisjoint((name, *about["extras"], *about["ranked"]))
    }


def _better(config: Config, scored: Scored) -> dict[str, Better]:
    """What is better in each column that gets ranks: as the signals say, unless the configuration says otherwise."""
    better = {column: side for about in scored.stores.values() for column, side in about["ranked"].items()}
    return better | dict.fromkeys(INDEX_SIGNALS, "high") | config.directions


def _check_selection(
    config: Config, columns: Sequence[str], labels: Sequence[str], with_vectors: Sequence[str]
) -> None:
    """Hold directions, strata and baselines against the columns with ranks and the labels that there are."""
    stray = sorted(set(config.directions).difference(columns))
    if stray:
        raise UsageError(f"directions name {', '.join(stray)}; columns with ranks here are: {', '.join(columns)}")
    signals = [name for name in columns if name not in INDEX_SIGNALS]
    check_baselines(config.baselines, signals, labels, with_vectors)
    if config.strata is not None and config.strata.by not in labels:
        raise UsageError(
            f"strata by {config.strata.by}: no pool has that label; expected one of: {', '.join(labels) or 'none'}; "
            f"{how_to_label(config.strata.by)}"
        )


def _check_filter(
    config: Config, columns: Sequence[str], ranked: Sequence[str], stated: Sequence[str], labels: Sequence[str]
) -> None:
    """See `check_filter`."""
    found = config.row_filter()
    if found is not None:
        check_filter(found, columns, ranked, stated, labels)


def check_apart(out: Place, pool: Place) -> None:
    """Refuse an output place inside of a pool."""
    if f"{out.uri}/".startswith(f"{pool.uri}/"):
        raise UsageError(
            f"the output place {out} lies in the pool {pool}, whose files it would join; choose another --out"
        )


def _check_columns(signals: Sequence[Signal]) -> None:
    columns = [name for signal in signals for name in (signal.name, *signal.extras)]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UsageError(
            f"two signals have a column called {', '.join(twice)}; signals and extras need their own names"
        )


def index_and_score(plan: Plan, ray: Connection, progress: Progress, done: Done) -> Scored:
    """Stages 1 and 2. Ray is needed only if a file must be read or a question judged. Adds to what is done."""
    plan.out.check_writable()
    if plan.config.tokenizer == EMBEDDED and not done.units:
        progress.say("note: trace lengths are in tokens of the embedded judge; give --tokenizer for your student's")
    done.units = [key for _, key in plan.units]
    snapshot = _index(plan, ray, progress, done)
    check_rows(plan.out, snapshot, plan.config.max_error_rate)
    strata, baselines = plan.config.strata, Baselines(plan.config.baselines)
    for label in {*([strata.by] if strata else []), *baselines.labels()}:
        check_groups(plan.out, snapshot, label)
    read = [item for item in plan.units if item[1] in done.read]
    counts: dict[str, Any] = {
        **_file_counts(plan.units, read),
        "units": len(snapshot.units),
        "units_read": len(read),
        "units_reused": len(plan.units) - len(read),
    }
    seconds: dict[str, float] = {"index": done.index_seconds} if read else {}
    for signal, asked in _asked(plan, snapshot):
        store = ScoreStore.of(plan.out, signal)
        pending = asked.pending(_settled(store, asked, done.troubles, progress).mask)
        _judge(plan, ray, snapshot, signal, store, asked, pending, progress, done)
        judged = done.judged[signal.name]
        counts |= {
            f"{signal.subject}s": pending.distinct,
            f"{signal.name}_judged": judged.judged,
            f"{signal.name}_reused": max(0, pending.distinct - judged.judged),
            f"{signal.name}_prompt_tokens": judged.prompt_tokens,
        }
        if judged.judged:
            store.put_together()
            seconds[signal.name] = judged.seconds
            seconds[f"{signal.name}_in_workers"] = judged.worker_seconds
            seconds[f"{signal.name}_loading"] = judged.loading
        check_judged(plan.out, snapshot, asked.keys, signal, store, plan.config.max_error_rate)
    done.troubles.requests_repeated += take_repeated()
    counts |= vars(done.troubles)
    scored = Scored(
        snapshot,
        {
            signal.name: {
                "digest": fingerprint_digest(signal.fingerprint()),
                "extras": list(signal.extras),
                "subject": signal.subject,
                "ranked": dict(signal.ranked),
                "vector": vector_length(signal),
                "fingerprint": signal.fingerprint(),
            }
            for signal in plan.signals
        },
        {
            "tokenizer": plan.pools[0].tokenizer.identity,
            "fingerprints": [pool.fingerprint for pool in plan.pools],
            "labels": _labels(plan.pools),
            "stated": _stated(plan.pools),
        },
        recorded_config(plan.config),
        counts,
        seconds,
    )
    _write_scored(plan.out, scored)
    return scored


def _asked(plan: Plan, snapshot: Snapshot) -> Iterator[tuple[Signal, Distinct]]:
    """The signals, those that judge the same one after the other, and what they judge."""
    for subject, signals in groupby(sorted(plan.signals, key=_subject), key=_subject):
        asked = find_distinct(plan.out, snapshot, subject)
        yield from ((signal, asked) for signal in signals)


def _subject(signal: Signal) -> SubjectKind:
    return signal.subject


def rank_and_publish(
    out: Place, scored: Scored, weights: Weights, config: Config, started: str, progress: Progress
) -> tuple[RunRecord, Place]:
    """Stages 3 and 4: a new run below `out`. Of the configuration, budgets, strata and baselines count."""
    run_id = new_run_id()
    place = out.child("runs", run_id)
    begun = monotonic()
    stores = {
        name: ScoreStore.at(out, name, about["digest"], about["extras"], about["subject"], about["vector"])
        for name, about in scored.stores.items()
    }
    strata, baselines, better = config.strata, Baselines(config.baselines, config.seed), _better(config, scored)
    chosen = config.row_filter()
    ranking = rank(out, scored.snapshot, stores, weights, config.budgets, place, strata, baselines, better, chosen)
    excluded = sum(ranking.excluded.values())
    why = f" ({told_reasons(ranking.excluded)})" if excluded else ""
    inside = f" in {ranking.groups:,} groups of {strata.by}" if strata else ""
    progress.say(f"rank: {ranking.ranked:,} traces ranked{inside}, {excluded:,} left out{why}")
    if strata and ranking.groups == 1:
        progress.say(f"warning: all ranked traces have the same {strata.by}, or none; strata by it change nothing")
    if ranking.addressing["ranked"]:
        progress.say(f"warning: {ranking.addressing['ranked']:,} ranked questions speak to the judge; see report.html")
    record = RunRecord(
        run_id=run_id,
        started=started,
        config=scored.config,
        pools=list(scored.snapshot.pools),
        snapshot=scored.snapshot.digest(),
        index=scored.index,
        fingerprints={name: about["fingerprint"] for name, about in scored.stores.items()},
        subjects={name: about["subject"] for name, about in scored.stores.items()},
        counts={"indexed": ranking.indexed, "ranked": ranking.ranked, "excluded": excluded, **scored.counts},
        excluded=ranking.excluded,
        budgets=ranking.budgets,
        addressing_judge=ranking.addressing,
        weights=weights.as_floats(),
        filter=config.filter,
        better=better,
        strata={**strata.model_dump(), "groups": ranking.groups} if strata else None,
        baselines={name: baseline_folder(name) for name in baselines.names},
        seconds={**scored.seconds, "rank": monotonic() - begun},
    )
    begun = monotonic()
    write_report(out, place, record)
    record.seconds["report"] = monotonic() - begun
    publish(out, place, record)
    return record, place


def _connection(config: Config, signals: Sequence[Signal] | None) -> Connection:
    """For these signals, or for those of the table, which take what the configuration says."""
    workers = config.workers
    stated = Resources((workers.judges_min, workers.judges_max), workers.cpus_per_judge or 1)
    needed = [stated] if signals is None else [signal.resources(0) for signal in signals]
    cpus = max((cpus_at_once(workers, resources) for resources in needed), default=1)
    return Connection(workers.address, cpus=cpus, logs=workers.logs)


def try_cluster(plan: Plan, progress: Progress) -> None:
    """Hold a plan against the Ray cluster that it is meant for, if there is one, and write nothing.

    Raises:
        UsageError: the cluster cannot be reached, or cannot do it.
    """
    if cluster_address(plan.config.workers.address):
        with _connection(plan.config, plan.signals) as ray:
            _check_cluster(plan, ray.cluster, None, progress)


def _check_cluster(plan: Plan, cluster: Cluster, out: Place | None, progress: Progress) -> None:
    roots, tokenizer = [pool.root for pool in plan.pools], plan.pools[0].tokenizer
    workers = plan.config.workers
    for wait in check_cluster(cluster, workers, out, roots, tokenizer, plan.signals):
        progress.say(f"note: {wait}")


def _index(plan: Plan, ray: Connection, progress: Progress, done: Done) -> Snapshot:
    """Stage 1: read what is new, within the budget for bad files."""
    if not plan.fresh:
        progress.say(f"index: {len(plan.units):,} files or parts of files, all indexed before")
        return Snapshot(plan.pool_uris, plan.units)
    _check_cluster(plan, ray.cluster, plan.out, progress)
    bad: dict[str, UnitOutcome] = {}
    counted_by: set[str] = set()
    with progress.stage("index", "files or parts", len(plan.fresh)) as ticker:
        items = [{"unit": json.dumps(asdict(unit))} for unit, _ in plan.fresh]
        task, workers = partial(_index_item, plan.pools), plan.config.workers
        cpus, most = workers.cpus_per_index_task, workers.index_tasks_max
        for row in stream_tasks(items, task, cpus, workers.index_resources, most):
            outcome = UnitOutcome(**json.loads(row["outcome"]))
            counted_by.add(outcome.counted_by)
            done.troubles.requests_repeated += outcome.repeated
            done.read.add(outcome.key)
            if outcome.error:
                bad[outcome.key] = outcome
            ticker.advance(1)
            _tell(outcome, ticker.state.total - ticker.state.done)
        done.index_seconds += ticker.state.seconds
    if "tokenizers" in counted_by:
        progress.say(
            "warning: tokens were counted with the slow reference library; gigatoken cannot take this tokenizer"
        )
    check_bad_files(list(bad.values()), plan.config.max_bad_files, progress)
    good = tuple(item for item in plan.units if item[1] not in bad)
    unreadable = tuple((unit.pool, unit.path, bad[key].error or "") for unit, key in plan.units if key in bad)
    return Snapshot(plan.pool_uris, good, unreadable)


def _tell(outcome: UnitOutcome, left: int) -> None:
    """Count what was just indexed, for those who watch."""
    progressed("index", left)
    count("s2r_rows_indexed", outcome.traces)
    count("s2r_store_retries", outcome.repeated)
    for reason, rows in outcome.excluded.items():
        count("s2r_rows_excluded", rows, reason=reason)


def _index_item(pools: Sequence[PoolIndex], row: dict[str, Any]) -> dict[str, Any]:
    """One unit in a Ray task."""
    content = json.loads(row["unit"])
    groups = content.pop("row_groups")
    unit = Unit(**content, row_groups=tuple(groups) if groups else None)
    return {"outcome": json.dumps(asdict(index_unit(pools[unit.pool], unit)))}


def check_bad_files(bad: Sequence[UnitOutcome], budget: int, progress: Progress) -> None:
    """Tell of files that could not be read.

    Raises:
        S2RError: there are more than the budget.
    """
    files = sorted({outcome.path: outcome.error or "" for outcome in bad}.items())
    for _, error in files[:_FAULTS_SHOWN]:
        progress.say(f"warning: {error}")
    if len(files) > budget:
        names = ", ".join(path for path, _ in files[:_FAULTS_SHOWN]) + (", …" if len(files) > _FAULTS_SHOWN else "")
        raise S2RError(
            f"{len(files)} unreadable files, at most {budget} allowed: {names}. First: {files[0][1]}. "
            "Repair or remove them, or raise --max-bad-files; the other files are indexed and will not be read again."
        )


def _check_mapping(pool: PoolIndex, units: Sequence[Unit], asked: Collection[str]) -> None:
    """Hold the mapping against a pool's first file before any work, and the labels that a user asked for against a few:
    some may lack them. A file that cannot be read is met later."""
    columns = _columns(pool, units[0], pool.mapping.columns(), pool.mapping.check)
    wanted = {pool.mapping.labels[label] for label in asked}
    step = -(-len(units) // _LOOKED_AT)
    for unit in units[step::step]:
        if wanted <= columns.keys():
            return
        columns |= _columns(pool, unit)
    absent = sorted(wanted - columns.keys())
    if absent and columns:
        raise UsageError(
            f"label of column {', '.join(map(one_line, absent))}: there is no such column in {pool.root}; it has "
            f"{one_line(', '.join(columns))}"
        )


def _columns(
    pool: PoolIndex, unit: Unit, read: Sequence[str] = (), check: Callable[[Sequence[str], str], None] | None = None
) -> dict[str, None]:
    """The columns of a file, once its first rows were read; none of one that cannot be read."""
    columns: dict[str, None] = {}

    def look(found: Sequence[str], where: str) -> None:
        columns.update(dict.fromkeys(found))
        if check is not None:
            check(found, where)

    with contextlib.suppress(BadFileError):
        next(read_unit(pool.root, unit, read, look), None)
    return columns


def _judge(
    plan: Plan,
    ray: Connection,
    snapshot: Snapshot,
    signal: Signal,
    store: ScoreStore,
    asked: Distinct,
    pending: Pending,
    progress: Progress,
    done: Done,
) -> None:
    """Stage 2 for one signal."""
    total = done.judged.setdefault(signal.name, Judged(0, 0))
    if not len(pending):
        told = f"{pending.distinct:,} distinct {signal.subject}s, all judged before"
        told = told if pending.distinct else f"no trace passed the guards, so there is no {signal.subject} to judge"
        progress.say(f"{signal.name}: {told}")
        return
    for said in announced(plan.out, snapshot, signal, pending):
        progress.say(f"{signal.name}: {said}")
    cluster = ray.cluster
    if not plan.fresh:  # otherwise it was checked before the first file was read
        _check_cluster(plan, cluster, plan.out, progress)
    resources, custom = signal.resources(cluster.total("GPU")), plan.config.workers.index_resources
    pools = [RunPool(name, pool.root, pool.mapping) for name, pool in zip(plan.pool_uris, plan.pools, strict=True)]
    prepare_signal(plan.out, snapshot, signal, asked, pools, resources, custom, progress)
    judged = score_missing(plan.out, snapshot, signal, store, asked, pending, pools, resources, custom, progress)
    total.join(judged)
    done.troubles.requests_repeated += judged.repeated
    done.troubles.workers_replaced += len(judged.replaced)
    done.troubles.restarts += judged.restarts


def _settled(store: ScoreStore, asked: Distinct, troubles: Troubles, progress: Progress) -> Settled:
    """Which of those asked need no judging, after parts that cannot be read were set aside."""
    settled = store.settled(asked.keys)
    for damage in settled.damaged:
        damage.place.set_aside()
        progress.say(f"warning: {damage}; set aside, its {store.subject}s are judged again")
    troubles.damaged_files += len(settled.damaged)
    return settled


def _file_counts(units: Sequence[tuple[Unit, str]], fresh: Sequence[tuple[Unit, str]]) -> dict[str, int]:
    """Files of all pools, and those of them of which any part was read now."""
    files, read = ({(unit.pool, unit.path) for unit, _ in some} for some in (units, fresh))
    return {"files": len(files), "files_read": len(read), "files_reused": len(files - read)}


def _nothing_done(scored: Scored) -> dict[str, Any]:
    """The counts of a run that takes everything from the store."""
    units = len(scored.snapshot.units)
    counts = _file_counts(scored.snapshot.units, ())
    counts |= {"units": units, "units_read": 0, "units_reused": units}
    for name, about in scored.stores.items():
        asked = scored.counts[f"{about['subject']}s"]
        counts |= {f"{about['subject']}s": asked, f"{name}_judged": 0, f"{name}_reused": asked}
        counts[f"{name}_prompt_tokens"] = 0
    return counts


def _write_scored(out: Place, scored: Scored) -> None:
    """Snapshots are kept by content, so that an older run can be ranked again; `scored.json` names the last."""
    data = scored.snapshot.to_json()
    digest = scored.snapshot.digest()
    snapshot_place(out, digest).write_bytes(data)
    rest = {name: value for name, value in vars(scored).items() if name != "snapshot"}
    out.child("index", "scored.json").write_bytes(json.dumps({"snapshot": digest, **rest}, indent=1).encode())


def _read_scored(out: Place) -> Scored:
    place = out.child("index", "scored.json")
    if not place.exists():
        raise UsageError(f"{out}: nothing has been scored here yet; run `s2r score` or `s2r run` with this --out first")
    try:
        content = place.read_json() or {}
        snapshot = snapshot_place(out, content.pop("snapshot"))
        for about in content["stores"].values():
            about["subject"], about["ranked"], about["vector"]
        return Scored(Snapshot.from_json(snapshot.read_bytes() if snapshot.exists() else b""), **content)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{place}, or the snapshot that it names, is damaged or was left by another version; run `s2r score` with "
            "this --out again"
        ) from error


def summarize(plan: Plan) -> dict[str, Any]:
    """What a plan comes to, for `s2r plan`: only what can be known without reading the pool.

    What is to judge is None while there are files to read: their questions are not known yet.
    """
    fresh = set(plan.fresh)
    indexed = Snapshot(plan.pool_uris, tuple(item for item in plan.units if item not in fresh))
    summary: dict[str, Any] = {
        "pools": list(plan.pool_uris),
        "output": plan.out.uri,
        "files_or_parts": len(plan.units),
        "to_read": len(plan.fresh),
        "bytes_to_read": sum(unit.size for unit, _ in plan.fresh if unit.first_row == 0),
        "tokenizer": plan.pools[0].tokenizer.name,
    }
    for signal, asked in _asked(plan, indexed):
        pending = asked.pending(ScoreStore.of(plan.out, signal).settled(asked.keys).mask)
        summary |= {
            f"{signal.name}_fingerprint": fingerprint_digest(signal.fingerprint()),
            f"{signal.name}_to_judge": None if fresh else len(pending),
            f"{signal.name}_judged_before": pending.distinct - len(pending),
        }
        if not fresh and len(pending):
            told = announced(plan.out, indexed, signal, pending)
            summary |= {f"{signal.name}_cost": " ".join(told)} if told else {}
    return summary
