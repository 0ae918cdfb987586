"""What makes a run final: the record, and latest.json that points to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2r_ray.errors import S2RError
from s2r_ray.publish import RunRecord, new_run_id, publish, read_latest
from s2r_ray.storage import Place


def record(run_id: str, **counts: int) -> RunRecord:
    return RunRecord(run_id, "", {}, [], "", {}, {}, counts=counts or {"indexed": 0, "ranked": 0})


def test_latest_only_moves_forward(tmp_path: Path) -> None:
    """Catches: the retry of an older run, finished late, that takes the place of a newer one."""
    out = Place.of(tmp_path)
    ids = [new_run_id() for _ in range(3)]
    for position in (1, 0, 2, 1):
        run = record(sorted(ids)[position])
        publish(out, out.child("runs", run.run_id), run)
        assert (tmp_path / "runs" / run.run_id / "run.json").exists()
    assert read_latest(out) == {"run_id": max(ids), "path": f"runs/{max(ids)}"}


def test_numbers_that_do_not_add_up_are_not_published(tmp_path: Path) -> None:
    """Catches: a run with rows that are neither ranked nor excluded."""
    out = Place.of(tmp_path)
    with pytest.raises(S2RError, match="3 rows indexed, but 2 ranked and 0 excluded"):
        publish(out, out.child("runs", "x"), record("x", indexed=3, ranked=2))
    assert not list(tmp_path.iterdir())


def test_run_ids_sort_by_time() -> None:
    """Catches: an id under which a later run counts as the older one."""
    ids = [new_run_id() for _ in range(200)]
    assert len(set(ids)) == 200
    times = [run_id.split("-")[0] for run_id in ids]
    assert times == sorted(times)
    assert json.dumps(ids[0]) == f'"{ids[0]}"'
