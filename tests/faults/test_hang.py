"""Workers that do not die, but do not go on either."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2r_ray.storage import Place
from tests.command import results
from tests.faults.conftest import Cluster, job, judged_rows, published

pytestmark = [pytest.mark.ray, pytest.mark.faults]


def test_a_worker_that_hangs_is_replaced(
    tmp_path: Path, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: a run that waits for ever for one worker, or replaces it and does not say so."""
    freeze = tmp_path / "freeze"
    freeze.touch()
    running = job(tmp_path, pool, tokenizer_dir, cluster, seconds=0.0, freeze=str(freeze), hang_seconds=3)
    running.start()
    assert running.wait() == 0, running.log()
    assert (tmp_path / "freeze.found").exists()
    assert "warning: a difficulty worker died, or hung for more than 3 s, and was replaced" in running.log()
    out = Place.of(tmp_path / "out")
    record, run = published(out)
    assert record["counts"]["workers_replaced"] == 1
    assert results(run) == results(published(undisturbed[0])[1])
    assert len(judged_rows(out)) == undisturbed[1]
