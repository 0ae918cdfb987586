"""Workers that do not go on, and questions that they do not survive."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
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


def test_a_question_that_kills_its_worker(
    tmp_path: Path, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: one question that keeps all others from being judged, for ever or until somebody looks; and one that
    fails, which was taken for a second one that is left, so that neither the run nor its next try came to an end."""
    questions = sorted(
        question
        for file in (Path(undisturbed[0].uri) / "index").rglob("*.questions.parquet")
        for question in pq.read_table(file)["question"].to_pylist()
    )
    alone = (question for question in questions[100:] if sum(question in other for other in questions) == 1)
    poison, failing = next(alone), next(alone)
    running = job(
        tmp_path, pool, tokenizer_dir, cluster, seconds=0.0, poison=poison, failing=failing, batch=64, restarts=1
    )
    running.config["max_error_rate"] = 0.1
    running.start()
    assert running.wait() == 0, running.log()
    record, run = published(Place.of(tmp_path / "out"))
    assert record["counts"]["questions"] == undisturbed[1]
    assert record["excluded"]["difficulty_failed"] >= 1
    excluded = pq.read_table(run.child("excluded.parquet").uri)
    failed = excluded.filter(pc.equal(excluded["reason"], "difficulty_failed"))
    assert len(set(failed["question_key"].to_pylist())) == 2
    details = sorted(set(failed["detail"].to_pylist()))
    assert details[0] == "ValueError: no number comes of this"
    assert details[1].startswith("its worker died each time")
    assert "starting again for what is left: one question" in running.log()
    assert "or hung for longer than workers.hang_seconds; starting again" in running.log()
    assert "Worker exit" not in running.log(), "Ray's own guesses"
