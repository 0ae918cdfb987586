"""A signal that makes something of the pool before its workers start: once, of the same subjects whatever the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import s2r_ray
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.fakes import DrawnJudge, write_tokenizer


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_subjects_are_drawn_by_content_and_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: lots that depend on files or rows, workers that start before what they need is there, a preparation that
    is made anew for a pool that grew."""
    drawn = []
    for rows_per_file in (7, 50):
        folder = tmp_path / str(rows_per_file)
        write_pool(Place.of(folder / "pool"), 50, seed=3, rows_per_file=rows_per_file)
        settings = {"pools": [{"uri": str(folder / "pool")}], "out": str(folder / "out"), "budgets": [100]}
        config = s2r_ray.load_config(None, {**settings, "tokenizer": str(write_tokenizer(folder / "tokenizer"))})
        signal = DrawnJudge(file=str(folder / "seen.json"), workers=2, batch=8)
        run = s2r_ray.run(config, signals=[signal])
        seen = json.loads((folder / "seen.json").read_text())
        assert len(set(seen)) == 10
        ranked = run.manifest(100, ["question_key", "difficulty"]).to_pylist()
        assert 0 < len({row["question_key"] for row in ranked if row["difficulty"]}) <= 10
        drawn.append(seen)
    said = capsys.readouterr().err
    assert said.count("difficulty: preparing with 10 questions of the pool") == 2
    assert said.count("difficulty: saw 10 of them") == 2
    assert drawn[0] == drawn[1]

    write_pool(Place.of(folder / "pool"), 60, seed=3, rows_per_file=50)
    s2r_ray.run(config, signals=[signal])
    assert json.loads((folder / "seen.json").read_text()) == drawn[0]
    assert "preparing" not in capsys.readouterr().err
