"""The judge's own noise: how far a value moves when the same question is judged in another batch.

Engines add up in another order when a batch is made up otherwise. How far that moves a value depends on model, engine
and device, so it is measured, once per fingerprint, and left beside the scores as `noise.json`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from s2r_ray.signals.base import Scores, Signal, Subject
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore, fingerprint_digest

_PAIRS = 64
_GROUP = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Noise:
    """Differences of values judged twice, in the signal's own unit, before rounding to the grid.

    `pairs`: how many were judged twice; `largest`: the largest difference; `rms`: the root of their mean square.
    """

    pairs: int
    largest: float
    rms: float


def noise_place(store: ScoreStore) -> Place:
    """Where a store keeps the record."""
    return store.place.child("noise.json")


def read_noise(store: ScoreStore) -> Noise | None:
    """What was measured, None if nothing was or the record is damaged."""
    place = noise_place(store)
    found = place.read_json() if place.exists() else None
    return Noise(**found) if found and found.keys() == {field.name for field in fields(Noise)} else None


def noise_of(out: Place, fingerprints: Mapping[str, dict[str, Any]], signal: str) -> Noise | None:
    """What was measured for a signal of a run with these fingerprints; None also for a signal's further columns."""
    if signal not in fingerprints:
        return None
    return read_noise(ScoreStore.at(out, signal, fingerprint_digest(fingerprints[signal]), ()))


def leave_noise(signal: Signal, store: ScoreStore, subjects: Sequence[Subject], scores: Scores) -> None:
    """Measure and write the record unless there is one from as many pairs as this batch can give.

    What goes wrong here is logged and no more: the batch is judged and stored already.
    """
    try:
        fit = [i for i in np.flatnonzero(np.isfinite(scores.values)).tolist() if i not in scores.faults]
        known = read_noise(store)
        if min(_PAIRS, len(fit)) <= (known.pairs if known else 0):
            return
        found = measure(signal, [subjects[i] for i in fit], scores.values[fit])
        if found is not None:
            noise_place(store).write_bytes(json.dumps(asdict(found)).encode())
    except Exception:  # noqa: BLE001  # a measurement beside the work must not end it
        _log.exception("the noise of %s was not measured", signal.name)


def measure(signal: Signal, subjects: Sequence[Subject], values: Sequence[float] | np.ndarray) -> Noise | None:
    """Judge up to 64 subjects, spread over these, once more: last first, in groups of eight.

    Args:
        values: float[len(subjects)], what the first judging gave.

    Returns:
        None where nothing was judged twice.
    """
    chosen = np.unique(np.linspace(0, len(subjects) - 1, min(_PAIRS, len(subjects))).astype(int))[::-1].tolist()
    forget = getattr(signal, "forget", None)
    if forget is not None:
        forget()
    differences: list[float] = []
    for start in range(0, len(chosen), _GROUP):
        group = chosen[start : start + _GROUP]
        again = signal.score([subjects[i] for i in group])
        pairs = zip(group, again.values, strict=True)
        differences += [float(value - values[i]) for at, (i, value) in enumerate(pairs) if at not in again.faults]
    found = np.array(differences)
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    return Noise(len(found), float(np.abs(found).max()), float(np.sqrt(np.mean(found**2))))
