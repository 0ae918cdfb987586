"""`s2r judge`: what it prints for people and for machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer.testing

from s2r_ray.cli import app
from s2r_ray.judge.train import TrainResult
from s2r_ray.judge.tune import TuneConfig
from tests.command import documented

COLUMNS = ["--question-column", "question", "--label-column", "level"]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    questions = [f"What is {number} + {number}?" for number in range(12)]
    pl.DataFrame({"question": questions, "level": [1, 2, 3, 4] * 3}).write_parquet(tmp_path / "labels.parquet")
    return tmp_path / "labels.parquet"


def said(*arguments: str | Path) -> str:
    done = typer.testing.CliRunner().invoke(app, ["judge", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_eval(labels: Path, tiny_judge: Path) -> None:
    """Catches: a figure that the reference does not name, or JSON that a person must read."""
    options = ["--labels", labels, *COLUMNS, "--judge", tiny_judge, "--engine", "transformers", "--config", labels]
    config = labels.with_name("s2r.yaml")
    config.write_text("judge: {min_label_mass: 0}\n")
    options[-1] = config
    figures = json.loads(said("eval", *options, "--threshold", "3", "--json"))
    assert set(figures) == documented()["judge eval"]
    assert (figures["n"], figures["unanswered"]) == (12, 0)
    people = said("eval", *options)
    assert not people.startswith("{")
    for name in figures:
        assert f"\n{name.replace('_', ' ')} " in f"\n{people}"


def test_train(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: options that do not reach the training, and a result without its documented keys."""
    held_out = {"n": 3, "spearman": 0.5, "auc": None}
    asked: list[Any] = []

    def train_judge(examples: Any, out: Path, config: Any, _say: Any) -> TrainResult:
        asked.append((len(examples), config))
        return TrainResult(out, 1000, 9, 2, held_out, 1.25)

    monkeypatch.setattr("s2r_ray.judge.train.train_judge", train_judge)
    options = ["--labels", labels, *COLUMNS, "--out", tmp_path / "judge", "--epochs", "3", "--threads", "1"]
    figures = json.loads(said("train", *options, "--json"))
    assert set(figures) == documented()["judge train"]
    assert figures["held_out"] == held_out
    assert [(rows, config.epochs, config.threads) for rows, config in asked] == [(12, 3, 1)]
    assert "1,000 parameters" in said("train", *options)
    monkeypatch.setattr("s2r_ray.judge.tune.tune_judge", train_judge)
    tuned = json.loads(said("train", *options, "--base", "checkpoint", "--kind", "labels", "--patience", "5", "--json"))
    assert set(tuned) == documented()["judge train"]
    _, config = asked[-1]
    assert config == TuneConfig("checkpoint", kind="labels", epochs=3, patience=5, threads=1)
