"""The signal `influence`: what it says before it begins, what it leaves out, and what it makes only once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2r_ray.candidates import content_key
from s2r_ray.config import load_config
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.pairs import Overlap, Pair
from s2r_ray.signals.base import Status, Subject, Workload
from s2r_ray.signals.influence import Influence
from tests.fakes import write_validation_sets

QUESTIONS = ("2 + 2 = ?", "Why?", "Count to ten.", "a b c")


def subject(question: str, response: str = "It is so.") -> Subject:
    return Subject(content_key(question, response), question, response)


def work(samples: int, tokens: int, *pool: str) -> Workload:
    """Of a pool with these questions."""

    def overlap(pairs: Sequence[Pair]) -> Overlap:
        inside = np.array([pair.question in pool for pair in pairs])
        return Overlap(inside, np.zeros(len(pairs), np.bool_))

    return Workload(samples, tokens, overlap)


@pytest.fixture
def settings(tiny_judge: Path, tmp_path: Path) -> dict[str, Any]:
    sets = write_validation_sets(tmp_path)
    return {"influence": {"model": str(tiny_judge), "samples": 4, **sets}, "student": {}, "out": str(tmp_path / "out")}


def influence(settings: dict[str, Any], **changes: Any) -> Influence:
    """With settings of the sections influence or student changed."""
    sections = {
        name: {**settings[name], **{key: value for key, value in changes.items() if key in keys_of}}
        for name, keys_of in (("influence", changes.keys() - {"max_tokens"}), ("student", {"max_tokens"}))
    }
    return Influence.from_config(load_config(None, {**settings, **sections}))


def test_what_is_missing_is_told_first(settings: dict[str, Any], tmp_path: Path) -> None:
    """Catches: an empty or missing set, or no model, that is met after hours, or that gives scores of 0."""
    (tmp_path / "empty.jsonl").write_text("")
    for changes, told in (
        ({"model": ""}, "set influence.model"),
        ({"model": str(tmp_path)}, "tuned student .*config.json not found"),
        ({"broke": ""}, "influence.broke is not set"),
        ({"fixed": str(tmp_path / "empty.jsonl")}, "influence.fixed: .* has no rows"),
        ({"question_column": "q"}, "influence.fixed: .* has no column 'q'"),
        ({"broke": settings["influence"]["fixed"]}, r"influence.fixed and influence.broke have \d+ pairs in common"),
        ({"modules": "attention"}, "'attention' is in no name of a linear layer"),
    ):
        with pytest.raises(UsageError, match=told):
            influence(settings, **changes)
    with pytest.raises(UsageError, match=r"influence.modules: .* is no regular expression"):
        influence(settings, modules="(")


def test_the_cost_is_told_and_bounded(settings: dict[str, Any]) -> None:
    """Catches: GPU days that begin unasked; a sum that is off by a factor."""
    signal = influence(settings, limit=1000, teraflops=1e-5, samples=500)
    parameters = signal.settings.parameters
    (told,) = signal.announce(work(1000, 300_000, "Who?"))
    operations = 8 * parameters * 300 * (1000 + 2 * 500 + 3 + 3)
    assert f"1,000 samples of 300 tokens through {parameters:,} parameters, and 1,000 passes" in told
    assert f"{operations:.1e} operations" in told
    assert f"{operations / 1e7 / 3600:,.2g} hours" in told
    (quick,) = influence(settings, teraflops=1e3).announce(work(10, 3_000, "Who?"))
    assert "less than 0.1 hours" in quick
    with pytest.raises(UsageError, match=r"1,001 samples of .*hours.* more than influence.limit, 1,000 samples"):
        signal.announce(work(1001, 300_000, "Who?"))


def test_validation_questions_in_the_pool(settings: dict[str, Any]) -> None:
    """Catches: samples that are rewarded for being their own test."""
    workload = work(10, 1000, "20 + 1 = ?", "22 + 1 = ?", "21 - 1 = ?", "Who?")
    said = "of the 3 pairs of influence.fixed, 2 are questions of the pool"
    with pytest.raises(UsageError, match=rf"{said}.* influence.broke, 1 are .*influence.overlap: allow"):
        influence(settings).announce(workload)
    told = influence(settings, overlap="allow").announce(workload)
    assert told[0].startswith(f"warning: {said}")


def test_samples_that_cannot_be_judged_have_a_reason(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a trace that is cut, an empty response that scores 0, a NaN that gets a rank."""
    signal = influence(settings, max_tokens=100)
    assert signal.to_prepare() == 4
    assert signal.prepare([*map(subject, QUESTIONS[:3]), subject("Long?", "word " * 200)]) == [
        "curvature fitted on 3 of 4 samples; the others have too many tokens, or a loss that is not finite"
    ]
    assert influence(settings, max_tokens=100).to_prepare() == 0
    signal.open()
    batch = [subject("Who?"), subject("Long?", "word " * 200), subject("No?", ""), subject("NaN?")]
    plain = signal._model.products
    monkeypatch.setattr(signal._model, "products", lambda sample, directions: plain(sample, directions) * worth.pop(0))
    worth = [1.0, np.nan]
    scores = signal.score(batch)
    assert {place: fault.status for place, fault in scores.faults.items()} == {
        1: Status.TOO_LONG,
        2: Status.NO_ANSWER,
        3: Status.FAILED,
    }
    assert "at most 100" in scores.faults[1].detail
    assert np.isfinite(scores.values[0])
    assert scores.values[0] == scores.extras["benefit"][0] - scores.extras["harm"][0] != 0


def test_a_set_that_is_too_long(settings: dict[str, Any], tmp_path: Path) -> None:
    """Catches: a set that is empty after all, and pairs left out in silence."""
    rows = [{"question": f"{n} + 1 = ?", "response": "x" * (1 if n == 1 else 500)} for n in range(3)]
    (tmp_path / "long.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    drawn = [subject(question) for question in QUESTIONS]
    told = influence(settings, fixed=str(tmp_path / "long.jsonl"), max_tokens=100).prepare(drawn)
    assert told == [
        "warning: of 3 pairs of influence.fixed, 2 have no or more than 100 tokens, 0 a loss that is not finite; "
        "left out"
    ]
    (tmp_path / "long.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(S2RError, match=r"influence\.fixed: all pairs have no or more than 100 tokens"):
        influence(settings, fixed=str(tmp_path / "long.jsonl"), max_tokens=100).prepare(drawn)


def test_the_curvature_is_fitted_once(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: GPU hours spent again for another damping or another set; scores of one damping taken for another's."""
    drawn = [subject(question) for question in QUESTIONS]
    first = influence(settings)
    first.prepare(drawn)
    monkeypatch.setattr("kronfluence.analyzer.Analyzer._get_dataloader", None)
    other = influence(settings, damping=10.0)
    assert other.to_prepare() == 4
    other.prepare(drawn)
    found = []
    for signal in (first, other):
        signal.open()
        found.append(signal.score(drawn).values)
    assert np.isfinite(found).all()
    assert not np.allclose(found[0], found[1])
