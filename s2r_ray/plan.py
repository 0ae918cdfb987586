"""What a run would do, found and checked before it begins: the first half of `s2r run`, and all of `s2r plan`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from s2r_ray.baselines import Baselines, check_baselines, how_to_label
from s2r_ray.cluster import Connection
from s2r_ray.config import Config
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.filtering import STATED, check_filter
from s2r_ray.index import (
    PoolIndex,
    Snapshot,
    indexed_keys,
    unit_keys,
)
from s2r_ray.models import find_tokenizer
from s2r_ray.pending import Distinct, find_distinct
from s2r_ray.preparation import announced
from s2r_ray.printable import one_line
from s2r_ray.ranking import Weights, parse_weights
from s2r_ray.readers import BadFileError, Unit, plan_units, pool_files, read_unit, would_join
from s2r_ray.signals import FURTHER, INDEX_SIGNALS, SIGNALS, WITH_VECTORS, signals_for
from s2r_ray.signals.base import Signal, SubjectKind, vector_length
from s2r_ray.storage import FileInfo, Place
from s2r_ray.store import ScoreStore, fingerprint_digest
from s2r_ray.tokens import spell_out

_LOOKED_AT = 8


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

    @property
    def bytes_to_read(self) -> int:
        """The size of all files of which some is to be read."""
        return sum({(unit.pool, unit.path): unit.size for unit, _ in self.fresh}.values())


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
    if signals is None:
        columns = [*names, *(column for column, name in FURTHER.items() if name in names), *INDEX_SIGNALS]
    else:
        columns = [*(column for signal in signals for column in signal.ranked), *INDEX_SIGNALS]
    with_vectors = WITH_VECTORS if signals is None else [signal.name for signal in signals if vector_length(signal)]
    every = [*SIGNALS, *FURTHER, *INDEX_SIGNALS] if signals is None else columns
    weights = parse_weights(config.weights, every)  # those of the table that are named are among the columns
    tokenizer = find_tokenizer(config.tokenizer, storage=config.storage.options())
    pools: list[PoolIndex] = []
    units: list[Unit] = []
    try:
        for position, (place, section) in enumerate(zip(roots, config.pools, strict=True)):
            root, files = place.glob()
            check_apart(out, place, root, files)
            known = pool_files(files, str(place))
            mapping = section.resolved_mapping()
            pool = PoolIndex(root, out, mapping, config.guards, config.candidates, tokenizer)
            pools.append(pool)
            own = plan_units(root, position, known)
            units.extend(own)
            _check_mapping(pool, own, set(mapping.labels) if section.mapping else set(section.labels))
        check_selection(config, columns, labels_of(pools), [name for name in names if name in with_vectors])
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
    check_row_filter(config, made, ranked, stated_by(pools), labels_of(pools))
    return Plan(config, out, tuple(pools), tuple(keyed), fresh, tuple(signals), weights)


def needed_signals(config: Config) -> list[str]:
    """The signals of the table that a run computes: those asked for, and those that weights, filter and baselines name.

    Raises:
        UsageError: one that is asked for is not in the table.
    """
    stray = sorted(set(config.signals).difference(SIGNALS))
    if stray:
        raise UsageError(f"signals: there is no {', '.join(stray)}; expected some of: {', '.join(SIGNALS)}")
    return signals_for(config.signals, named_columns(config))


def named_columns(config: Config) -> list[str]:
    """What weights, filter and baselines name."""
    found = config.row_filter()
    return [*config.weights, *(found.columns if found else ()), *Baselines(config.baselines).columns()]


def labels_of(pools: Sequence[PoolIndex]) -> list[str]:
    """The names of all labels."""
    return sorted({label for pool in pools for label in pool.mapping.labels})


def stated_by(pools: Sequence[PoolIndex]) -> list[str]:
    """What of STATED any pool has a column for."""
    return [name for name in STATED if any(getattr(pool.mapping, name) for pool in pools)]


def check_selection(config: Config, columns: Sequence[str], labels: Sequence[str], with_vectors: Sequence[str]) -> None:
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


def check_row_filter(
    config: Config, columns: Sequence[str], ranked: Sequence[str], stated: Sequence[str], labels: Sequence[str]
) -> None:
    """See `check_filter`."""
    found = config.row_filter()
    if found is not None:
        check_filter(found, columns, ranked, stated, labels)


def check_apart(out: Place, pool: Place, root: Place, files: Sequence[FileInfo]) -> None:
    """Refuse an output place inside of a pool; `root` and `files` are what `Place.glob` says of it."""
    if would_join(out, pool.uri, root, [file.path for file in files]):
        raise UsageError(
            f"the output place {out} lies in the pool {root}, whose files it would join; choose another --out"
        )


def _check_columns(signals: Sequence[Signal]) -> None:
    columns = [name for signal in signals for name in (signal.name, *signal.extras)]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UsageError(
            f"two signals have a column called {', '.join(twice)}; signals and extras need their own names"
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


def asked_by_signal(plan: Plan, snapshot: Snapshot) -> Iterator[tuple[Signal, Distinct]]:
    """The signals, those that judge the same one after the other, and what they judge."""
    for subject, signals in groupby(sorted(plan.signals, key=_subject), key=_subject):
        asked = find_distinct(plan.out, snapshot, subject)
        yield from ((signal, asked) for signal in signals)


def _subject(signal: Signal) -> SubjectKind:
    return signal.subject


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
        "bytes_to_read": plan.bytes_to_read,
        "tokenizer": plan.pools[0].tokenizer.name,
    }
    for signal, asked in asked_by_signal(plan, indexed):
        pending = asked.pending(ScoreStore.of(plan.out, signal).settled(asked.keys).mask)
        summary |= {
            f"{signal.name}_fingerprint": fingerprint_digest(signal.fingerprint()),
            f"{signal.name}_to_judge": None if fresh else len(pending),
            f"{signal.name}_judged_before": pending.distinct - len(pending),
        }
        if not fresh and len(pending):
            told = announced(plan.out, indexed, signal, pending)
            summary |= {f"{signal.name}_told": " ".join(told)} if told else {}
    return summary
