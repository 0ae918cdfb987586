"""The linear model behind the training, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from s2r_ray.judge.ridge import deal, fit_folds, fit_ridge, vocabulary, weighted


def test_equals_scikit_learn() -> None:
    """Would catch n-grams across two questions, a wrong weight, or conjugate gradients that stop too early."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 9, rng.integers(1, 12)).tolist() for _ in range(60)]
    targets = rng.random(60)
    fitted = np.arange(60) < 50
    features = weighted(prompts, 3, *vocabulary(prompts, 3))
    weights, mean = fit_ridge(features.only(fitted), targets, fitted, 2.0)

    def grams(prompt: list[int]) -> list[tuple[int, ...]]:
        return [tuple(prompt[i : i + n]) for n in (1, 2, 3) for i in range(len(prompt) - n + 1)]

    matrix = TfidfVectorizer(analyzer=grams, sublinear_tf=True, min_df=2).fit_transform(prompts)
    centred = Ridge(alpha=2.0, fit_intercept=False).fit(matrix[:50], targets[:50] - mean)
    assert features.dot(weights) == pytest.approx(centred.predict(matrix), abs=1e-4)


def test_never_forecasts_what_it_was_fitted_on() -> None:
    """Would catch forecasts in sample: with a word of its own per pair they would repeat the labels."""
    prompts = [[1, 10 + row // 2, 10 + row // 2, 2] for row in range(40)]
    targets = np.arange(40) % 2 * 1.0
    fold = deal(40, np.arange(40), 40, 0)
    forecast = fit_folds(prompts, targets, fold, longest=3, penalty=0.01).forecast(prompts, fold)
    assert np.corrcoef(forecast, targets)[0, 1] < 0


def test_reads_no_target_outside_its_rows() -> None:
    """Would catch held-out labels that reach the forecasts, which would make every held-out figure worthless."""
    rng = np.random.default_rng(2)
    prompts = [[1, int(word), 2] for word in rng.integers(10, 14, 60)]
    targets = np.array([prompt[1] % 2 for prompt in prompts], dtype=np.float64)
    fold = deal(60, np.arange(0, 60, 2), 3, 0)
    held = fold < 0
    forecast = fit_folds(prompts, targets, fold, longest=3, penalty=2.0).forecast(prompts, fold)
    assert np.corrcoef(forecast[held], targets[held])[0, 1] > 0.9
    changed = np.where(held, np.nan, targets)
    assert (
        fit_folds(prompts, changed, fold, longest=3, penalty=2.0).forecast(prompts, fold).tolist() == forecast.tolist()
    )


def test_forecasts_a_changed_prompt_with_the_model_of_its_fold() -> None:
    """Would catch a teacher that gives a masked question the forecast of the whole one, or of another fold's model."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(1, 9, 6).tolist() for _ in range(30)]
    targets = rng.random(30)
    fold = deal(30, np.arange(30), 3, 0)
    models = fit_folds(prompts, targets, fold, longest=2, penalty=1.0)
    masked = [[0, *prompt[1:]] for prompt in prompts]
    found = models.forecast(masked, fold)
    for row in (0, 1, 2, 3):
        fitted = fold != fold[row]
        everyone = weighted(prompts, 2, models.keys, models.inverse)
        weights, mean = fit_ridge(everyone.only(fitted), targets, fitted, 1.0)
        alone = weighted([masked[row]], 2, models.keys, models.inverse)
        assert found[row] == pytest.approx(float(alone.dot(weights)[0]) + mean, abs=1e-9)


def test_folds_are_even() -> None:
    """Would catch a fold without rows, whose model would be fitted on what it forecasts."""
    fold = deal(13, np.arange(2, 13), 3, 0)
    assert np.bincount(fold[2:]).tolist() == [4, 4, 3]
    assert fold[:2].tolist() == [-1, -1]
