"""TF-IDF and ridge regression against scikit-learn, and products of sparse matrices against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from s2r_ray.judge.evaluate import FloatArray
from s2r_ray.judge.ridge import Postings, Sparse, fit_ridge, vocabulary, weighted


def test_equals_scikit_learn() -> None:
    """Would catch n-grams across two questions, a wrong weight, or conjugate gradients that stop too early."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 9, rng.integers(1, 12)).tolist() for _ in range(60)]
    targets = rng.random(60)
    features = weighted(prompts, 3, *vocabulary(prompts, 3))
    weights = fit_ridge(features, targets, 2.0)

    def grams(prompt: list[int]) -> list[tuple[int, ...]]:
        return [tuple(prompt[i : i + n]) for n in (1, 2, 3) for i in range(len(prompt) - n + 1)]

    matrix = TfidfVectorizer(analyzer=grams, sublinear_tf=True, min_df=2).fit_transform(prompts)
    centred = Ridge(alpha=2.0, fit_intercept=False).fit(matrix, targets - targets.mean())
    assert features.dot(weights) == pytest.approx(centred.predict(matrix), abs=1e-4)


def test_products_of_rows_and_matrices() -> None:
    """Would catch a column's postings taken for its neighbour's, and a question without known tokens that breaks it."""
    rng = np.random.default_rng(2)
    dense, other = (rng.random(shape) * (rng.random(shape) < 0.4) for shape in ((7, 5), (4, 5)))
    dense[3] = other[0] = 0.0
    right = rng.random((5, 2))

    def sparse(matrix: FloatArray) -> Sparse:
        rows, columns = np.nonzero(matrix)
        return Sparse(rows, columns, matrix[rows, columns], *matrix.shape)

    assert sparse(dense).times(right) == pytest.approx(dense @ right)
    assert Postings.of(sparse(dense)).products(sparse(other)) == pytest.approx(other @ dense.T, rel=1e-5)
