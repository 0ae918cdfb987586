"""The linear model behind the judge's training: TF-IDF over token n-grams with ridge regression, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2r_ray.judge.evaluate import FloatArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sparse:
    """A sparse [height, width] matrix as (row, column, value) of each cell that is not zero."""

    rows: IntArray
    columns: IntArray
    values: FloatArray
    height: int
    width: int

    def dot(self, vector: FloatArray) -> FloatArray:
        """The matrix times a [width] vector."""
        return _sums(self.rows, self.values * vector[self.columns], self.height)

    def transposed_dot(self, vector: FloatArray) -> FloatArray:
        """The transposed matrix times a [height] vector."""
        return _sums(self.columns, self.values * vector[self.rows], self.width)

    def only(self, keep: NDArray[np.bool_]) -> Sparse:
        """The same matrix with the other rows all zero."""
        cells = keep[self.rows]
        return Sparse(self.rows[cells], self.columns[cells], self.values[cells], self.height, self.width)


def _sums(index: IntArray, values: FloatArray, size: int) -> FloatArray:
    """[size] sums of the values that share an index."""
    sums: FloatArray = np.bincount(index, values, minlength=size).astype(np.float64)
    return sums


def vocabulary(prompts: Sequence[Sequence[int]], longest: int) -> tuple[IntArray, FloatArray]:
    """([width] ascending keys, [width] inverse document frequencies) of the n-grams in two prompts or more.

    1 + ln((1 + n) / (1 + df)), as scikit-learn has it with min_df=2.
    """
    rows, keys = _ngrams(prompts, longest)
    known, columns = np.unique(keys, return_inverse=True)
    frequency = np.bincount(np.unique(rows * len(known) + columns) % len(known), minlength=len(known))
    kept = frequency > 1
    return known[kept], 1.0 + np.log((1 + len(prompts)) / (1 + frequency[kept]))


def weighted(prompts: Sequence[Sequence[int]], longest: int, keys: IntArray, inverse: FloatArray) -> Sparse:
    """(1 + ln tf) * idf of the known n-grams, each row scaled to length one."""
    rows, found = _ngrams(prompts, longest)
    columns = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
    known = keys[columns] == found
    cells, counts = np.unique(rows[known] * len(keys) + columns[known], return_counts=True)
    rows, columns = np.divmod(cells, len(keys))
    values = (1.0 + np.log(counts)) * inverse[columns]
    values /= np.sqrt(_sums(rows, values**2, len(prompts)))[rows]
    return Sparse(rows, columns, values, len(prompts), len(keys))


def _ngrams(prompts: Sequence[Sequence[int]], longest: int) -> tuple[IntArray, IntArray]:
    """(prompt, key) of every n-gram in every prompt; a key is the token ids + 1, 20 bits each, so n goes up to 3."""
    tokens = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts]) + 1
    owner = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
    rows, keys, key = [owner], [tokens], tokens
    for n in range(2, longest + 1):
        key = (key[:-1] << 20) | tokens[n - 1 :]
        whole = owner[: len(key)] == owner[n - 1 :]
        rows.append(owner[: len(key)][whole])
        keys.append(key[whole])
    return np.concatenate(rows), np.concatenate(keys)


def fit_ridge(
    features: Sparse, targets: FloatArray, fitted: NDArray[np.bool_], penalty: float
) -> tuple[FloatArray, float]:
    """([width] weights, mean of the fitted targets) of a ridge regression, by conjugate gradients.

    Minimises |X w - (y - mean)|^2 + penalty |w|^2 over the rows in `fitted`; the other rows of X are all zero.
    """
    mean = float(targets[fitted].mean())
    weights = np.zeros(features.width)
    residual = features.transposed_dot(np.where(fitted, targets - mean, 0.0))
    direction, square = residual, float(residual @ residual)
    limit = square * 1e-10
    for _ in range(100):
        if square <= limit:
            break
        image = features.transposed_dot(features.dot(direction)) + penalty * direction
        step = square / float(direction @ image)
        weights, residual = weights + step * direction, residual - step * image
        square, previous = float(residual @ residual), square
        direction = residual + (square / previous) * direction
    return weights, mean


@dataclass(frozen=True)
class FoldModels:
    """Linear models that were each fitted without one fold, for forecasts that do not know the label in question.

    Attributes:
        longest: of the n-grams.
        keys, inverse: [width] known n-grams and their inverse document frequencies.
        weights: [folds + 1, width] of the model without each fold; the last row is the mean of all.
        means: [folds + 1] to add.
    """

    longest: int
    keys: IntArray
    inverse: FloatArray
    weights: FloatArray
    means: FloatArray

    def forecast(self, prompts: Sequence[Sequence[int]], fold: IntArray) -> FloatArray:
        """[n] forecasts for n prompts, each by the model without its fold; fold -1: the mean of all models."""
        features = weighted(prompts, self.longest, self.keys, self.inverse)
        values = features.values * self.weights[fold[features.rows], features.columns]
        return _sums(features.rows, values, len(prompts)) + self.means[fold]


def fit_folds(
    prompts: Sequence[Sequence[int]], targets: FloatArray, fold: IntArray, *, longest: int, penalty: float
) -> FoldModels:
    """Fit one model per fold on the prompts of the others; prompts in fold -1 take no part, nor do their targets."""
    taking = [prompt for prompt, number in zip(prompts, fold, strict=True) if number >= 0]
    keys, inverse = vocabulary(taking, longest)
    features = weighted(prompts, longest, keys, inverse)
    models = []
    for held in range(int(fold.max()) + 1):
        fitted = (fold >= 0) & (fold != held)
        models.append(fit_ridge(features.only(fitted), targets, fitted, penalty))
    weights = np.array([weights for weights, _ in models])
    means = np.array([mean for _, mean in models])
    return FoldModels(
        longest, keys, inverse, np.vstack([weights, weights.mean(axis=0)]), np.append(means, means.mean())
    )


def deal(count: int, rows: IntArray, folds: int, seed: int) -> IntArray:
    """[count] fold of each row: 0..folds - 1 at random, as even as can be, for those in `rows`; -1 for the others."""
    fold = np.full(count, -1)
    fold[rows] = np.random.default_rng(seed).permutation(len(rows)) % folds
    return fold
