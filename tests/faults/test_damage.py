"""What was written well and is found damaged later: set aside, said so, made anew."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from s2r_ray import pipeline
from s2r_ray.config import load_config
from s2r_ray.diff import diff_runs
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.progress import Progress
from s2r_ray.storage import Place
from tests.command import results
from tests.faults.conftest import Cluster, job, judged_rows, published, score_parts, take_apart

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
    take_apart(out)
    index = tmp_path / "out" / "index"
    victims = [
        tmp_path / "out" / "scores" / score_parts(out)[3],
        sorted(index.rglob("*.questions.parquet"))[1],
        sorted(index.rglob("*.candidates.parquet"))[4],
    ]
    judged, held = len(judged_rows(out)), pq.read_metadata(victims[0]).num_rows
    for victim in victims:
        damage(victim)
    running.start()
    assert running.wait() == 0, running.log()
    record, run = published(out)
    assert results(run) == results(published(undisturbed[0])[1])
    for victim in victims:
        assert f"warning: {victim} is damaged" in running.log()
        assert victim.with_name(f"{victim.name}.damaged").exists()
    assert record["counts"]["damaged_files"] == len(victims)
    assert record["counts"]["difficulty_judged"] == held, "what the part held, and nothing else"
    assert len(judged_rows(out)) == judged

    damage(tmp_path / "out" / "scores" / score_parts(out)[0])
    with pytest.raises(S2RError, match=r"is damaged.*s2r score. with this --out makes it anew"):
        pipeline.select(load_config(None, {"out": out.uri}), Progress(quiet=True))
    assert published(out)[0]["run_id"] == record["run_id"], "a half-done selection that was published"


def test_files_that_are_whole_but_wrong(
    tmp_path: Path, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: a file that is gone, another one's copy or no table of ours, told as a bug, met again by each later run,
    or taken for what it is called; counts of the last pass alone where damage was repaired on the way."""
    shutil.copytree(undisturbed[0].uri, tmp_path / "out")
    out = Place.of(tmp_path / "out")
    take_apart(out)
    candidates, questions = (sorted((tmp_path / "out" / "index").rglob(f"*.{kind}.parquet"))
                             for kind in ("candidates", "questions"))  # fmt: skip
    parts = [tmp_path / "out" / "scores" / part for part in score_parts(out)]
    held = sum(pq.read_metadata(parts[number]).num_rows for number in (0, 2))
    shutil.copy(candidates[0], candidates[1])
    questions[2].unlink()
    shutil.copy(next(pool.glob("*.parquet")), candidates[3])
    shutil.copy(next(pool.glob("*.parquet")), parts[0])
    shutil.copy(parts[1], parts[2])
    (tmp_path / "out" / "latest.json").write_bytes(b"")
    running = job(tmp_path, pool, tokenizer_dir, cluster, seconds=0.0)
    running.start()
    assert running.wait() == 0, running.log()
    record, run = published(out)
    assert results(run) == results(published(undisturbed[0])[1])
    assert record["counts"]["damaged_files"] == 5
    assert record["counts"]["files_read"] == record["counts"]["units_read"] == 3
    assert record["counts"]["difficulty_judged"] == held
    assert record["counts"]["difficulty_reused"] == undisturbed[1] - held
    assert record["seconds"]["index"] > 0
    for place, said in ((candidates[1], "under another name"), (candidates[3], "it has no column")):
        assert re.search(rf"{re.escape(str(place))} is damaged: .*{said}", running.log()), running.log()

    index = tmp_path / "out" / "index"
    for file in (*index.glob("snapshots/*.json"), index / "scored.json"):
        file.write_bytes(b'{"units": [[')
        with pytest.raises(UsageError, match=r"scored\.json, or the .* is damaged .*`s2r score` with this --out again"):
            pipeline.select(load_config(None, {"out": out.uri}), Progress(quiet=True))
    shutil.rmtree(Path(run.uri) / "ranking")
    first = published(undisturbed[0])[0]["run_id"]
    with pytest.raises(UsageError, match=r"is damaged or gone .*; name two other runs"):
        diff_runs(out, first, record["run_id"])
    (tmp_path / "out" / "runs" / first / "run.json").write_bytes(b"{")
    with pytest.raises(UsageError, match=r"run\.json is damaged"):
        diff_runs(out, first, record["run_id"])
