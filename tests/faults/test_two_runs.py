"""Two runs at once on one output place."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2r_ray.storage import Place
from tests.command import results
from tests.faults.conftest import Cluster, job, judged_rows, published

pytestmark = [pytest.mark.ray, pytest.mark.faults]


def test_a_retry_that_overlaps_its_predecessor(
    tmp_path: Path, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: two processes that spoil each other's files, lose a score, or leave latest.json at the older run."""
    both = [job(tmp_path / name, pool, tokenizer_dir, cluster, seconds=0.02) for name in ("first", "second")]
    out = Place.of(tmp_path / "out")
    for one in both:
        one.folder.mkdir()
        one.config["out"] = out.uri
        one.judge["workers"] = 1
    both[0].start()
    both[0].wait_for_scores(out, 2)
    both[1].start()
    for one in both:
        assert one.wait() == 0, one.log()
    runs = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert len(runs) == 2
    record, _ = published(out)
    assert record["run_id"] == runs[-1]
    expected = results(published(undisturbed[0])[1])
    for name in runs:
        assert results(out.child("runs", name)) == expected
    assert len(set(judged_rows(out))) == undisturbed[1]
    assert not list((tmp_path / "out").rglob("*.tmp")), "a temporary file that nobody removed"
