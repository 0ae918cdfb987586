"""What was written well and is found damaged later: set aside, said so, made anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2r_ray import pipeline
from s2r_ray.config import load_config
from s2r_ray.errors import S2RError
from s2r_ray.progress import Progress
from s2r_ray.storage import Place
from tests.command import results
from tests.faults.conftest import BATCH, Cluster, job, judged_rows, published, score_parts

pytestmark = [pytest.mark.ray, pytest.mark.faults]


def damage(path: Path) -> None:
    """Cut it short, as a full disk or a lost block does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def test_damaged_files_are_made_anew(
    tmp_path: Path, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: one torn file in the score store or the index that stops every later run, is read as if it were whole,
    or costs more than what it held."""
    running = job(tmp_path, pool, tokenizer_dir, cluster, seconds=0.0)
    out = Place.of(tmp_path / "out")
    running.start()
    assert running.wait() == 0, running.log()
    index = tmp_path / "out" / "index"
    victims = [
        tmp_path / "out" / "scores" / score_parts(out)[3],
        sorted(index.rglob("*.questions.parquet"))[1],
        sorted(index.rglob("*.candidates.parquet"))[4],
    ]
    lost = len(judged_rows(out))
    for victim in victims:
        damage(victim)
    before = len(score_parts(out))
    running.start()
    assert running.wait() == 0, running.log()
    record, run = published(out)
    assert results(run) == results(published(undisturbed[0])[1])
    for victim in victims:
        assert f"warning: {victim} is damaged" in running.log()
        assert victim.with_name(f"{victim.name}.damaged").exists()
    assert record["counts"]["damaged_files"] == len(victims)
    assert record["counts"]["difficulty_judged"] == BATCH, "what the part held, and nothing else"
    assert len(score_parts(out)) == before, "one part was lost, and one written with the same questions"
    assert len(judged_rows(out)) == lost

    damage(tmp_path / "out" / "scores" / score_parts(out)[0])
    with pytest.raises(S2RError, match=r"is damaged.*s2r score. with this --out makes it anew"):
        pipeline.select(load_config(None, {"out": out.uri}), Progress(quiet=True))
    assert published(out)[0]["run_id"] == record["run_id"], "a half-done selection that was published"
