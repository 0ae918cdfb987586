"""TF-IDF over token n-grams and ridge regression on it, in numpy: what the judge's training is built on."""

from __future__ import annotations

import itertools
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
        return sums(self.rows, self.values * vector[self.columns], self.height)

    def transposed_dot(self, vector: FloatArray) -> FloatArray:
        """The transposed matrix times a [height] vector."""
        return sums(self.columns, self.values * vector[self.rows], self.width)

    def times(self, matrix: FloatArray) -> FloatArray:
        """The matrix, whose cells must ascend by row, times a [width, d] matrix."""
        ends = np.searchsorted(self.rows, np.arange(self.height + 1)).tolist()
        found = np.zeros((self.height, matrix.shape[1]))
        for row, (start, end) in enumerate(itertools.pairwise(ends)):
            found[row] = self.values[start:end] @ matrix[self.columns[start:end]]
        return found


@dataclass(frozen=True)
class Postings:
    """A sparse matrix by column: `rows` and `values` of column c are at starts[c]..starts[c + 1]."""

    starts: IntArray
    rows: IntArray
    values: NDArray[np.float32]
    height: int

    @classmethod
    def of(cls, matrix: Sparse) -> Postings:
        """The postings of a matrix."""
        order = np.argsort(matrix.columns, kind="stable")
        starts = np.searchsorted(matrix.columns[order], np.arange(matrix.width + 1))
        return cls(starts, matrix.rows[order], matrix.values[order].astype(np.float32), matrix.height)

    def products(self, other: Sparse) -> NDArray[np.float32]:
        """[other.height, height] dot products of the other matrix's rows with the rows of this one."""
        found = np.zeros((other.height, self.height), dtype=np.float32)
        cells = zip(other.rows.tolist(), other.columns.tolist(), other.values.tolist(), strict=True)
        for row, column, value in cells:
            span = slice(self.starts[column], self.starts[column + 1])
            found[row, self.rows[span]] += value * self.values[span]
        return found


def sums(index: IntArray, values: FloatArray, size: int) -> FloatArray:
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
    values /= np.sqrt(sums(rows, values**2, len(prompts)))[rows]
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


def fit_ridge(features: Sparse, targets: FloatArray, penalty: float) -> FloatArray:
    """[width] weights w of a ridge regression, by conjugate gradients.

    Minimises |X w - (y - mean y)|^2 + penalty |w|^2.
    """
    weights = np.zeros(features.width)
    residual = features.transposed_dot(targets - targets.mean())
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
    return weights
