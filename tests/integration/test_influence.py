"""Influence on a pool with wrong answers in it, from training to pruning: an example as much as a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import s2r_ray
from tests.alphabet import WRONG, pool_rows, write_case


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray", "one_thread")
def test_wrong_answers_are_in_the_harmful_tail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a harm that does not tell right answers from wrong ones, a sign that is turned on the way from gradient
    to rank, workers that use another curvature than was prepared, samples that are judged twice.

    Each letter has a code. The pool asks for it in four wordings; of eight letters it gives a wrong one. A small model
    that knew the codes of sixteen letters is tuned on all of it. What it has learned and what it has unlearned is asked
    in three other wordings.
    """
    case = write_case(tmp_path)
    assert all(case[name].read_text().count("\n") >= 3 for name in ("fixed", "broke")), "tuning did both"
    mapping = {"id": "id", "question": "question", "traces": "response"}
    settings: dict[str, Any] = {
        "pools": [{"uri": str(case["pool"]), "mapping": mapping}],
        "out": str(tmp_path / "out"),
        "tokenizer": str(case["tuned"]),
        "influence": {"model": str(case["tuned"]), "fixed": str(case["fixed"]), "broke": str(case["broke"])},
        "student": {"batch": 16},
        "signals": ["influence"],
        "weights": {"benefit": 0.5, "harm": 0.5},
        "budgets": ["50%", "100%"],
    }
    run = s2r_ray.run(s2r_ray.load_config(None, settings))
    said = capsys.readouterr().err
    assert "influence: 104 samples of" in said
    assert "influence: preparing with 104 samples of the pool" in said
    assert run.record["counts"]["influence_judged"] == 104

    ranking = run.manifest("100%").to_pydict()
    planted = np.array([sample[0] in WRONG for sample in ranking["sample_id"]])
    assert planted.sum() == sum(row["planted"] for row in pool_rows())
    assert roc_auc_score(planted, ranking["harm"]) >= 0.8

    most_harmful = {"filter": "not (harm > 0 and harm_rank > 0.9)"}  # the paper's thresholds on score and rank together
    pruned = s2r_ray.select(s2r_ray.load_config(None, settings | most_harmful)).manifest("100%", ["sample_id"])
    dropped = sorted(set(ranking["sample_id"]).difference(pruned["sample_id"].to_pylist()))
    assert 8 <= len(dropped) <= 11
    assert np.mean([sample[0] in WRONG for sample in dropped]) >= 0.8

    again = s2r_ray.run(s2r_ray.load_config(None, settings | {"budgets": ["10%"]}))
    assert again.record["counts"]["influence_judged"] == 0
    assert "preparing" not in capsys.readouterr().err
