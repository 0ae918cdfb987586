"""What the selection is compared with: other orders of the same candidates.

`random` and `stratified:LABEL` (random inside of each group, groups in proportion) depend on the seed, the samples'
questions and traces, and the labels, on nothing else: not on files, rows, or the version of a library. `longest` and
`shortest` go by tokens after repeat removal, a signal's name, such as `difficulty`, by that signal alone, and
`middle:SIGNAL` takes those first whose rank in it is nearest to the middle (Middle of the official script, Mid-PPL of
arXiv 2510.06108). `round_robin:SIGNAL`, of signals with vectors, lets queries take turns (RDS+, see round_robin.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from s2r_ray.candidate_table import CandidateTable
from s2r_ray.errors import UsageError
from s2r_ray.groups import read_groups
from s2r_ray.index import Snapshot, sample_keys
from s2r_ray.keys import Places, halves
from s2r_ray.ranking import ALL_HIGH, Better, Ints, Takeable, average_ranks, order_rows, select_top
from s2r_ray.round_robin import round_robin
from s2r_ray.signals import INDEX_SIGNALS
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.strata import fill

_STRATIFIED = "stratified"
_MIDDLE = "middle:"
_ROUND_ROBIN = "round_robin:"
_NO_STORES: Mapping[str, ScoreStore] = {}


@dataclass(frozen=True)
class Baselines:
    """Which baselines a run makes, by name, and the seed of those that draw lots."""

    names: tuple[str, ...] = ()
    seed: int = 0

    def columns(self) -> list[str]:
        """What of signals they may need."""
        return [name.removeprefix(_MIDDLE).removeprefix(_ROUND_ROBIN) for name in self.names]

    def labels(self) -> list[str]:
        """The labels that they need."""
        return [name.partition(":")[2] for name in self.names if name.startswith(f"{_STRATIFIED}:")]


def check_baselines(
    names: Sequence[str], signals: Collection[str], labels: Collection[str], with_vectors: Collection[str] = ()
) -> None:
    """Hold names against what there is.

    Args:
        signals: those that have scores; `with_vectors`: those of them that have vectors.
        labels: those of the pools.

    Raises:
        UsageError: there is no such baseline.
    """
    known = ["random", "longest", "shortest", *signals, *(_MIDDLE + name for name in (*signals, *INDEX_SIGNALS))]
    known += [_ROUND_ROBIN + name for name in with_vectors]
    for name in names:
        kind, colon, label = name.partition(":")
        if name not in known and not (kind == _STRATIFIED and label in labels):
            possible = [*known, *(f"{_STRATIFIED}:{label}" for label in labels)]
            more = f"; {how_to_label(label)}" if colon and kind == _STRATIFIED else ""
            raise UsageError(f"no baseline {name}; expected one of: {', '.join(possible)}{more}")


def how_to_label(label: str) -> str:
    """What to do for a label that no pool has."""
    name = label or "NAME"
    return f"`s2r run --label {name}=COLUMN`, or `labels` of a pool in the configuration, makes a label of a column"


def baseline_folder(name: str) -> str:
    """Where in a run a baseline's manifests are."""
    return f"baselines/{name.replace(':', '-')}"


def baseline_place(run: Place, name: str, budget: str) -> Place:
    """A baseline's manifest for a budget in per cent."""
    return run.child(baseline_folder(name), f"top-{budget}pct.parquet")


def baseline_order(
    name: str,
    seed: int,
    out: Place,
    snapshot: Snapshot,
    candidates: CandidateTable,
    ids: Takeable,
    k: int,
    better: Mapping[str, Better] = ALL_HIGH,
    stores: Mapping[str, ScoreStore] = _NO_STORES,
) -> Places:
    """The first k candidates of a baseline, in its order: int64[k]. Ties: the longer trace, then the sample id.

    `stores` are those of the signals with vectors, at the least.
    """
    if name.startswith(_ROUND_ROBIN):
        signal = name.removeprefix(_ROUND_ROBIN)
        return round_robin(signal, stores[signal], out, snapshot, candidates, ids, k)
    label = name.partition(":")[2] if name.startswith(f"{_STRATIFIED}:") else ""
    joint = _order(name, seed, out, snapshot, candidates, better)
    if label:
        groups = read_groups(out, snapshot, candidates, label)
        return fill(groups, joint, joint.max() - joint, ids, k, "proportional")  # lots decide between groups, too
    joint[candidates.left_out] = joint.max() + 1
    return order_rows(select_top(joint, k), joint, candidates.length, ids, k=k)


def _order(
    name: str, seed: int, out: Place, snapshot: Snapshot, candidates: CandidateTable, better: Mapping[str, Better]
) -> Ints:
    """What to sort candidates by, least first: int64[n], none negative; of those that are left out it says nothing."""
    if name == "longest":
        longest = int(candidates.length.max())
        return longest - candidates.length.astype(np.int64)
    if name == "shortest":
        return candidates.length.astype(np.int64)
    found = np.zeros(len(candidates), np.int64)
    column = name.removeprefix(_MIDDLE)
    if column in candidates.scores or column in INDEX_SIGNALS:
        values = candidates.column(column)
        table = average_ranks(candidates.counts(column), better.get(column, "high"), column)
        for rows in candidates.blocks():
            doubled = table.doubled(values[rows])
            found[rows] = doubled if column == name else np.abs(doubled - (table.rows + 1))
        return found
    start = 0
    for keys in sample_keys(out, snapshot):
        found[start : start + len(keys)] = draw(keys, seed, name)
        start += len(keys)
    return found


def draw(keys: pa.Array | pa.ChunkedArray, seed: int, purpose: str) -> Ints:
    """A lot for each 16-byte key, int64[n] in [0, 2^62), another one for each seed and purpose.

    The keys are hashes (see `content_key`); their first eight bytes go through a mixing function of 64 bits after a
    secret was added, so that different keys have different lots but for the last two bits. The function is the
    finalizer of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014).
    """
    secret = hashlib.blake2b(purpose.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    lots = halves(keys)[0] ^ np.uint64(int.from_bytes(secret, "big"))
    lots = (lots ^ (lots >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    lots = (lots ^ (lots >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((lots ^ (lots >> np.uint64(31))) >> np.uint64(2)).astype(np.int64)
