"""What stages 1 and 2 leave for ranking, kept as `OUT/index/scored.json` so that `s2r select` goes on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from s2r_ray.config import Config
from s2r_ray.errors import UsageError
from s2r_ray.index import Snapshot, snapshot_place
from s2r_ray.plan import named_columns, needed_signals
from s2r_ray.ranking import Better
from s2r_ray.readers import Unit
from s2r_ray.signals import FURTHER, INDEX_SIGNALS, SIGNALS
from s2r_ray.storage import Place

_OF_SCORES = ("judge", "student", "rethinking", "rds", "influence")
"""Sections of the configuration that scores depend on."""


_ABOUT = {"digest", "extras", "subject", "ranked", "vector", "fingerprint"}
"""What is said of each store."""


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


def named_stores(config: Config, scored: Scored) -> dict[str, dict[str, Any]]:
    """The stores of what is asked for or named, also of signals that live outside the package.

    Raises:
        UsageError: as `needed_signals` does.
    """
    names = {*needed_signals(config), *named_columns(config)}
    return {
        name: about
        for name, about in scored.stores.items()
        if not names.isdisjoint((name, *about["extras"], *about["ranked"]))
    }


def check_weights(config: Config, scored: Scored) -> None:
    """See whether what weights name has scores.

    Raises:
        UsageError: a signal of the table has none here. Of other names `parse_weights` tells.
    """
    there = better_of(config, scored)
    absent = [name for name in config.weights if name not in there and name in (*SIGNALS, *FURTHER)]
    if absent:
        raise UsageError(
            f"weight for {', '.join(absent)}, which has no scores in what was scored last here; `s2r run` or "
            f"`s2r score` with this weight computes them. Scored: {', '.join(there)}"
        )


def other_settings(config: Config, scored: Scored) -> list[str]:
    """What the configuration says of models and signals, and was otherwise when they were scored."""
    now = config.model_dump(mode="json")
    told = []
    for name in _OF_SCORES:
        section, then = getattr(config, name), scored.config.get(name) or {}
        for key in sorted(section.model_fields_set & then.keys()):
            if now[name][key] != then[key]:
                told.append(
                    f"{name}.{key} is {now[name][key]} in the configuration, and was {then[key]} when this was scored; "
                    "`s2r select` ranks what was scored, `s2r run` scores anew"
                )
    return told


def better_of(config: Config, scored: Scored) -> dict[str, Better]:
    """What is better in each column that gets ranks: as the signals say, unless the configuration says otherwise."""
    better = {column: side for about in scored.stores.values() for column, side in about["ranked"].items()}
    return better | dict.fromkeys(INDEX_SIGNALS, "high") | config.directions


def file_counts(units: Sequence[tuple[Unit, str]], fresh: Sequence[tuple[Unit, str]]) -> dict[str, int]:
    """Files of all pools, and those of them of which any part was read now."""
    files, read = ({(unit.pool, unit.path) for unit, _ in some} for some in (units, fresh))
    return {"files": len(files), "files_read": len(read), "files_reused": len(files - read)}


def nothing_done(scored: Scored) -> dict[str, Any]:
    """The counts of a run that takes everything from the store."""
    units = len(scored.snapshot.units)
    counts = file_counts(scored.snapshot.units, ())
    counts |= {"units": units, "units_read": 0, "units_reused": units}
    for name, about in scored.stores.items():
        asked = scored.counts[f"{about['subject']}s"]
        counts |= {f"{about['subject']}s": asked, f"{name}_judged": 0, f"{name}_reused": asked}
        counts[f"{name}_prompt_tokens"] = 0
    return counts


def write_scored(out: Place, scored: Scored) -> None:
    """Snapshots are kept by content, so that an older run can be ranked again; `scored.json` names the last.

    What was scored before of the same snapshot, and not now, stays in it: all of it can be combined.
    """
    digest = scored.snapshot.digest()
    snapshot_place(out, digest).write_bytes(scored.snapshot.to_json())
    stores, counts = _scored_before(out, digest, scored.index)
    content = {name: value for name, value in vars(scored).items() if name != "snapshot"}
    content |= {"snapshot": digest, "stores": stores | scored.stores, "counts": counts | scored.counts}
    _place(out).write_bytes(json.dumps(content, indent=1).encode())


def _scored_before(out: Place, digest: str, index: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stores and counts of the same snapshot, indexed alike; none where something else was scored last."""
    place = _place(out)
    earlier = (place.read_json() if place.exists() else None) or {}
    if earlier.get("snapshot") != digest or earlier.get("index") != index:
        return {}, {}
    return earlier["stores"], earlier["counts"]


def read_scored(out: Place) -> Scored:
    """What was last scored below an output place.

    Raises:
        UsageError: nothing was, or what is there is damaged or of another version.
    """
    place = _place(out)
    if not place.exists():
        raise UsageError(f"{out}: nothing has been scored here yet; run `s2r score` or `s2r run` with this --out first")
    try:
        content = place.read_json() or {}
        snapshot = snapshot_place(out, content.pop("snapshot"))
        if any(not about.keys() >= _ABOUT for about in content["stores"].values()):
            raise ValueError("a store without what this version says of it")
        return Scored(Snapshot.from_json(snapshot.read_bytes() if snapshot.exists() else b""), **content)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{place}, or the snapshot that it names, is damaged or was left by another version; run `s2r score` with "
            "this --out again"
        ) from error


def _place(out: Place) -> Place:
    return out.child("index", "scored.json")
