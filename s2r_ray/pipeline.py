"""The whole job: index, score, rank, publish. Read it top to bottom; everything it calls is below it.

Each stage leaves something durable behind and begins with what is there already, so running again after a kill, a
change of the pool or a change of weights pays only for what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import Any, TypeVar

from s2r_ray.baselines import Baselines, baseline_folder
from s2r_ray.candidates import told_reasons
from s2r_ray.cluster import Cluster, Connection, cluster_address, stream_tasks
from s2r_ray.config import Config, WorkersSection
from s2r_ray.error_rate import check_judged, check_rows
from s2r_ray.errors import S2RError
from s2r_ray.groups import check_groups
from s2r_ray.index import (
    Snapshot,
    UnitOutcome,
    damaged_units,
    forget_unit,
    index_unit,
    unit_of,
)
from s2r_ray.metrics import count, progressed
from s2r_ray.models import EMBEDDED
from s2r_ray.pending import Distinct, Pending
from s2r_ray.plan import Plan, asked_by_signal, check_row_filter, check_selection, labels_of, prepare, stated_by
from s2r_ray.pool_rows import RunPool
from s2r_ray.preflight import check_cluster, cpus_at_once
from s2r_ray.preparation import announced, prepare_signal
from s2r_ray.progress import Progress
from s2r_ray.publish import RunRecord, new_run_id, now, publish, recorded_config
from s2r_ray.ranking import Weights, parse_weights
from s2r_ray.readers import Unit
from s2r_ray.report.page import write_report
from s2r_ray.retries import take_repeated
from s2r_ray.score import Judged, score_missing
from s2r_ray.scored import (
    Scored,
    better_of,
    check_weights,
    file_counts,
    named_stores,
    nothing_done,
    other_settings,
    read_scored,
    write_scored,
)
from s2r_ray.selection import rank
from s2r_ray.signals.base import Resources, Signal, vector_length
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, Settled, fingerprint_digest
from s2r_ray.tables import DamagedError

_FAULTS_SHOWN = 5
_REPAIRS = 20
_READ_HERE_BYTES = 64 << 20
_OF_SELECTION = ("signals", "weights", "directions", "filter", "budgets", "strata", "baselines", "seed")
"""Parts of the configuration that ranking depends on and nothing before it."""

_T = TypeVar("_T")


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
    scored = read_scored(out)
    scored = replace(scored, stores=named_stores(config, scored))
    better = better_of(config, scored)
    check_weights(config, scored)
    weights = parse_weights(config.weights, list(better))
    labels, stated = (scored.index.get(name, []) for name in ("labels", "stated"))
    with_vectors = [name for name, about in scored.stores.items() if about["vector"]]
    check_selection(config, list(better), labels, with_vectors)
    columns = [column for name, about in scored.stores.items() for column in (name, *about["extras"])]
    check_row_filter(config, columns, list(better), stated, labels)
    chosen = recorded_config(config)
    for said in other_settings(config, scored):
        progress.say(f"warning: {said}")
    scored.config.update({name: chosen[name] for name in _OF_SELECTION})
    scored = replace(scored, counts=nothing_done(scored), seconds={})
    try:
        return rank_and_publish(out, scored, weights, config, started, progress)
    except DamagedError as error:
        raise S2RError(f"{error}; `s2r run` or `s2r score` with this --out makes it anew") from error


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
        **file_counts(plan.units, read),
        "units": len(snapshot.units),
        "units_read": len(read),
        "units_reused": len(plan.units) - len(read),
    }
    seconds: dict[str, float] = {"index": done.index_seconds} if read else {}
    for signal, asked in asked_by_signal(plan, snapshot):
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
            "labels": labels_of(plan.pools),
            "stated": stated_by(plan.pools),
        },
        recorded_config(plan.config),
        counts,
        seconds,
    )
    write_scored(plan.out, scored)
    return scored


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
    strata, baselines, better = config.strata, Baselines(config.baselines, config.seed), better_of(config, scored)
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
    if not _reads_here(plan, ray):
        _check_cluster(plan, ray.cluster, plan.out, progress)
    bad: dict[str, UnitOutcome] = {}
    counted_by: set[str] = set()
    with progress.stage("index", "files or parts", len(plan.fresh)) as ticker:
        for outcome in _outcomes(plan, ray):
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
    errors: dict[tuple[int, str], str] = {}
    for unit, key in plan.units:
        if key in bad:
            errors.setdefault((unit.pool, unit.path), bad[key].error or "")
    return Snapshot(plan.pool_uris, good, tuple((*file, error) for file, error in errors.items()))


def _reads_here(plan: Plan, ray: Connection) -> bool:
    """Whether this process reads what is new: little, while a Ray of our own starts, and sooner done than Ray's
    processes are there."""
    local = not any(place.is_remote for place in (plan.out, *(pool.root for pool in plan.pools)))
    return ray.ahead and local and plan.bytes_to_read <= _READ_HERE_BYTES


def _outcomes(plan: Plan, ray: Connection) -> Iterator[UnitOutcome]:
    """What reading each new file or part came to, as it is ready, in any order."""
    if _reads_here(plan, ray):
        yield from (index_unit(plan.pools[unit.pool], unit) for unit, _ in plan.fresh)
        return
    yield from read_in_tasks(index_unit, plan.pools, [unit for unit, _ in plan.fresh], plan.config.workers)


def _tell(outcome: UnitOutcome, left: int) -> None:
    """Count what was just indexed, for those who watch."""
    progressed("index", left)
    count("s2r_rows_indexed", outcome.traces)
    count("s2r_store_retries", outcome.repeated)
    for reason, rows in outcome.excluded.items():
        count("s2r_rows_excluded", rows, reason=reason)


def read_in_tasks(
    read: Callable[[_T, Unit], UnitOutcome], pools: Sequence[_T], units: Sequence[Unit], workers: WorkersSection
) -> Iterator[UnitOutcome]:
    """What reading each unit, with the pool that it is of, came to, as it is ready, in any order; connected to Ray."""
    cpus, most = workers.cpus_per_index_task, workers.index_tasks_max
    task = partial(_read_unit, read, pools)
    return stream_tasks(units, task, cpus, workers.index_resources, most, attrgetter("path"))


def _read_unit(read: Callable[[_T, Unit], UnitOutcome], pools: Sequence[_T], unit: Unit) -> UnitOutcome:
    return read(pools[unit.pool], unit)


def check_bad_files(bad: Sequence[UnitOutcome], budget: int, progress: Progress) -> None:
    """Tell of files that could not be read.

    Raises:
        S2RError: there are more than the budget.
    """
    files = sorted({(outcome.pool, outcome.path): outcome.error or "" for outcome in bad}.items())
    for _, error in files[:_FAULTS_SHOWN]:
        progress.say(f"warning: {error}")
    if len(files) > budget:
        names = ", ".join(path for (_, path), _ in files[:_FAULTS_SHOWN])
        names += ", …" if len(files) > _FAULTS_SHOWN else ""
        raise S2RError(
            f"{len(files)} unreadable files, at most {budget} allowed: {names}. First: {files[0][1]}. "
            "Repair or remove them, or raise --max-bad-files; the other files are indexed and will not be read again."
        )


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
    if not plan.fresh or _reads_here(plan, ray):  # otherwise it was checked before the first file was read
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
