"""Fine-tuning a checkpoint into a judge: both kinds, on a tiny model, as `s2r run` would then read them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from s2r_ray.config import load_config
from s2r_ray.errors import UsageError
from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.judge.evaluate import Examples, Source, spearman
from s2r_ray.judge.train import TrainResult
from s2r_ray.judge.tune import TuneConfig, _Collator, stated_range, tune_judge
from s2r_ray.signals.base import Subject
from s2r_ray.signals.difficulty import Difficulty

KINDS: tuple[Literal["head", "labels"], ...] = ("head", "labels")


def examples(rows: int = 160) -> Examples:
    """Questions whose pass rate shows in one word."""
    rng = np.random.default_rng(0)
    words = ["add", "subtract", "multiply", "integrate", "prove"]
    levels = rng.integers(0, 5, rows)
    questions = tuple(f"Please {words[level]} {rng.integers(100)} and {rng.integers(100)}." for level in levels)
    source = Source("labels.parquet", "question", "difficulty")
    return Examples(questions, levels / 4, tuple("ab"[row % 2] for row in range(rows)), 3, source)


def config(base: Path, kind: Literal["head", "labels"]) -> TuneConfig:
    return TuneConfig(base=str(base), kind=kind, epochs=4, patience=2, learning_rate=2e-3, holdout_fraction=0.25)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TrainResult]]:
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind) / "judge"
        found[kind] = (folder, tune_judge(examples(), folder, config(EMBEDDED_JUDGE, kind), lambda _: None))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_measured_is_what_a_run_reads(kind: str, tuned: dict[str, tuple[Path, TrainResult]]) -> None:
    """Catches: weights of the last epoch under the figures of the best, a state read at the padding, labels the wrong
    way round, a head that a run takes for one that needs a sigmoid."""
    folder, result = tuned[kind]
    assert result.held_out["spearman"] > 0.8
    assert result.held_out["n"] == 40
    judge = {"model": str(folder), "engine": "transformers", "min_label_mass": 0}
    signal = Difficulty.from_config(load_config(None, {"judge": judge}))
    assert signal.settings.kind == kind
    signal.open()
    order = np.random.default_rng(0).permutation(160)
    held = examples().take(np.sort(order[:40]))
    found = signal.score([Subject(b"", question) for question in held.questions])
    assert not found.faults
    assert spearman(found.values, held.labels) == pytest.approx(result.held_out["spearman"], abs=0.02)
    means = [found.values[held.labels == label].mean() for label in (0, 1)]
    assert means[1] - means[0] > 0.3
    told = json.loads((folder / "held_out.json").read_text())["held_out"]
    assert told["spearman"] == pytest.approx(result.held_out["spearman"])


def test_the_card_says_what_was_measured(tuned: dict[str, tuple[Path, TrainResult]]) -> None:
    """Catches: a judge that nobody can tell the worth of, and files beside it that are pickles."""
    for kind, (folder, result) in tuned.items():
        card = (folder / "README.md").read_text()
        assert f"| this judge | 40 | {result.held_out['spearman']:.3f} |" in card
        assert f"--kind {kind}" in card
        assert "--patience" in card
        assert "--holdout-fraction" in card
        assert "3 rows had none and were dropped" in card
        assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt")]


def test_training_ends_when_it_no_longer_gains(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: epochs that are paid for after the held-out questions said enough."""
    stuck = dataclasses.replace(config(tiny_judge, "head"), learning_rate=0.0, patience=1)
    result = tune_judge(examples(80), tmp_path / "judge", stuck, lambda _: None)
    assert len(result.history) == 2
    assert result.best_epoch == 1


def test_what_cannot_be_trained_is_told(tiny_judge: Path, tmp_path: Path) -> None:
    """Catches: a traceback for a folder that is no model, and for labels that say nothing."""
    with pytest.raises(UsageError, match=r"base .*: config\.json not found in it"):
        tune_judge(examples(), tmp_path / "a", config(tmp_path, "head"), lambda _: None)
    same = dataclasses.replace(examples(), labels=np.full(160, 3.0))
    with pytest.raises(UsageError, match="at least two different"):
        tune_judge(same, tmp_path / "b", config(tiny_judge, "head"), lambda _: None)


def test_shares_keep_their_scale() -> None:
    """Catches: pass rates of 0.2 to 0.6 stretched to 0..1, so that a score is no share any more."""
    assert stated_range(np.array([0.2, 0.6])) == (0.0, 1.0)
    assert stated_range(np.array([1.0, 5.0])) is None


def test_a_batch_is_padded_where_nothing_is_read() -> None:
    """Catches: positions that count the padding, and a last column that is padding where the last one is read."""
    items = [{"ids": [5, 6, 7], "target": 0.5}, {"ids": [8], "target": 1.0}]
    left, right = _Collator(0, left=True)(items), _Collator(0, left=False)(items)
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right["labels"].tolist() == [0.5, 1.0]
