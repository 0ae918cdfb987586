"""The teacher of the judge's training: kernel ridge regression over how alike two questions look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from s2r_ray.judge.evaluate import FloatArray
from s2r_ray.judge.ridge import IntArray, Postings, Sparse, sums, vocabulary, weighted

Floats32 = NDArray[np.float32]

# What the likeness of two questions is made of: their tokens, pairs and triples of tokens, their meaning, their size.
_NGRAM_SHARES = (0.28, 0.14, 0.08)
_MEANING_SHARE = 0.28
_SIZE_SHARE = 0.22
_WINDOW = 8
_DIMENSIONS = 200
_CHUNK = 512
_LARGEST = 1e9


def sizes(questions: Sequence[str]) -> FloatArray:
    """[n, 5] ln(1 + x) of the numbers of characters, words, numbers and letters, and of the largest number."""
    return np.log1p([_sizes(question) for question in questions])


def _sizes(question: str) -> tuple[float, ...]:
    words, numbers = re.findall("[A-Za-z]+", question), re.findall("[0-9]+", question)
    largest = max((min(float(number), _LARGEST) for number in numbers), default=0.0)
    return len(question), len(words), len(numbers), sum(map(len, words)), largest


def token_vectors(prompts: Sequence[Sequence[int]], known: IntArray) -> FloatArray:
    """[width, d] vectors of length one for the `known` tokens (ascending), alike if they stand beside the same tokens.

    The leading singular vectors, times the root of their values, of the positive pointwise mutual information of
    tokens at most `_WINDOW` apart; a pair k apart counts 1/k. (Levy & Goldberg 2014; chance of a context ^ 0.75.)
    """
    size = len(known)
    counts = _neighbours(prompts, known)
    total = sums(counts.rows, counts.values, size)
    context = total**0.75 / (total**0.75).sum()
    information = np.log(counts.values / (total[counts.rows] * context[counts.columns]))
    kept = information > 0
    matrix = Sparse(counts.rows[kept], counts.columns[kept], information[kept], size, size)
    wanted = min(_DIMENSIONS, size)
    basis = np.random.default_rng(0).normal(size=(size, min(wanted + 20, size)))
    for _ in range(4):
        basis, _ = np.linalg.qr(matrix.times(basis))
    left, values, _ = np.linalg.svd(matrix.times(basis), full_matrices=False)
    return _unit(left[:, :wanted] * np.sqrt(values[:wanted]))


def _neighbours(prompts: Sequence[Sequence[int]], known: IntArray) -> Sparse:
    """[width, width] how often two known tokens stand near each other, the nearer the more; symmetric."""
    tokens = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts])
    owner = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
    place = np.minimum(np.searchsorted(known, tokens), len(known) - 1)
    usable = known[place] == tokens
    cells, weights = [], []
    for apart in range(1, _WINDOW + 1):
        both = (owner[:-apart] == owner[apart:]) & usable[:-apart] & usable[apart:]
        first, second = place[:-apart][both], place[apart:][both]
        cells += [first * len(known) + second, second * len(known) + first]
        weights.append(np.full(2 * len(first), 1.0 / apart))
    found, inverse = np.unique(np.concatenate(cells), return_inverse=True)
    rows, columns = np.divmod(found, len(known))
    return Sparse(rows, columns, sums(inverse, np.concatenate(weights), len(found)), len(known), len(known))


def _unit(rows: FloatArray) -> FloatArray:
    """The same rows scaled to length one; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: FloatArray = rows / np.where(length > 0, length, 1.0)
    return unit


@dataclass(frozen=True)
class View:
    """Questions as the likeness sees them: n-gram weights, [n, d] meanings and [n, 5] standard sizes."""

    ngrams: Sparse
    meanings: Floats32
    sizes: Floats32


@dataclass(frozen=True)
class Reader:
    """Turns prompts into views, with what was learnt from one set of prompts. Other n-grams than theirs are ignored.

    Attributes:
        keys, inverse: of the n-grams (`vocabulary`); word_keys, word_inverse: of single tokens.
        vectors: [width of word_keys, d]; centre: [d] mean meaning, which is taken off.
        size_mean, size_deviation: [5].
    """

    keys: IntArray
    inverse: FloatArray
    word_keys: IntArray
    word_inverse: FloatArray
    vectors: FloatArray
    centre: FloatArray
    size_mean: FloatArray
    size_deviation: FloatArray

    @classmethod
    def fit(cls, prompts: Sequence[Sequence[int]], question_sizes: FloatArray) -> Reader:
        """Learn from prompts and the `sizes` of their questions."""
        word_keys, word_inverse = vocabulary(prompts, 1)
        vectors = token_vectors(prompts, word_keys - 1)
        centre = weighted(prompts, 1, word_keys, word_inverse).times(vectors).mean(axis=0)
        deviation = question_sizes.std(axis=0)
        return cls(
            *vocabulary(prompts, len(_NGRAM_SHARES)),
            word_keys,
            word_inverse,
            vectors,
            centre,
            question_sizes.mean(axis=0),
            np.where(deviation > 0, deviation, 1.0),
        )

    def view(self, prompts: Sequence[Sequence[int]], question_sizes: FloatArray) -> View:
        """How prompts look. The sizes are of the whole question, even where a prompt has masked tokens."""
        words = weighted(prompts, 1, self.word_keys, self.word_inverse)
        meanings = _unit(words.times(self.vectors) - self.centre)
        standard = np.clip((question_sizes - self.size_mean) / self.size_deviation, -3.0, 3.0)
        return View(self._ngrams(prompts), meanings.astype(np.float32), standard.astype(np.float32))

    def _ngrams(self, prompts: Sequence[Sequence[int]]) -> Sparse:
        """The weights of `weighted`, but n-grams of each length have length one, times the root of their share."""
        found = weighted(prompts, len(_NGRAM_SHARES), self.keys, self.inverse)
        longer = sum((self.keys >> 20 * n > 0).astype(np.int64) for n in range(1, len(_NGRAM_SHARES)))
        kind = np.asarray(longer)[found.columns]
        group = found.rows * len(_NGRAM_SHARES) + kind
        length = np.sqrt(sums(group, found.values**2, found.height * len(_NGRAM_SHARES)))
        values = found.values / length[group] * np.sqrt(_NGRAM_SHARES)[kind]
        return Sparse(found.rows, found.columns, values, found.height, found.width)


@dataclass(frozen=True)
class KernelModel:
    """A fitted kernel ridge regression that can leave out any one of its questions.

    With K the kernel of n questions, C = (K + penalty I)^-1 and w = C (y - mean), the forecast for a question with
    kernel k to the n is k w + mean. The weights without question i are w - C[:, i] w[i] / C[i, i], exactly.

    Attributes:
        postings, known: the fitted questions. sharpness: the kernel is exp(sharpness (likeness - 1)).
        weights: w, [n]; inverse: C, [n, n]; mean: of the targets.
        left_out: [n] forecast for each question without it.
    """

    reader: Reader
    postings: Postings
    known: View
    sharpness: float
    weights: Floats32
    inverse: Floats32
    mean: float
    left_out: FloatArray

    def forecast(self, prompts: Sequence[Sequence[int]], question_sizes: FloatArray, without: IntArray) -> FloatArray:
        """[m] forecasts for m prompts; `without`: [m] position of the fitted question to leave out of each."""
        view = self.reader.view(prompts, question_sizes)
        kernel = _kernel(view, self.postings, self.known, self.sharpness)
        shift = self.weights[without] / self.inverse[without, without]
        own = np.einsum("mn,mn->m", kernel, self.inverse[without])
        forecasts: FloatArray = kernel @ self.weights - shift * own + self.mean
        return forecasts


def fit_kernel(
    prompts: Sequence[Sequence[int]],
    question_sizes: FloatArray,
    targets: FloatArray,
    *,
    sharpness: float,
    penalty: float,
) -> KernelModel:
    """Fit to [n] targets. Time grows with n^3, memory is 12 n^2 bytes for a moment, then 4 n^2."""
    import torch

    reader = Reader.fit(prompts, question_sizes)
    known = reader.view(prompts, question_sizes)
    postings = Postings.of(known.ngrams)
    kernel = np.empty((len(prompts), len(prompts)), dtype=np.float32)
    for start in range(0, len(prompts), _CHUNK):
        part = slice(start, start + _CHUNK)
        kernel[part] = _kernel(reader.view(prompts[part], question_sizes[part]), postings, known, sharpness)
    kernel[np.diag_indices_from(kernel)] += penalty
    factor = torch.linalg.cholesky(torch.from_numpy(kernel))
    del kernel
    inverse: Floats32 = torch.cholesky_inverse(factor).numpy()
    mean = float(targets.mean())
    weights = inverse @ (targets - mean).astype(np.float32)
    left_out = targets - (weights / inverse.diagonal()).astype(np.float64)
    return KernelModel(reader, postings, known, sharpness, weights, inverse, mean, left_out)


def _kernel(view: View, postings: Postings, known: View, sharpness: float) -> Floats32:
    """[m, n] exp(sharpness (likeness - 1)) of m questions and n known ones; the likeness of equals is 1."""
    likeness = postings.products(view.ngrams)
    likeness += np.float32(_MEANING_SHARE) * (view.meanings @ known.meanings.T)
    squares = (view.sizes**2).sum(axis=1)[:, None] + (known.sizes**2).sum(axis=1) - 2 * view.sizes @ known.sizes.T
    likeness += np.float32(_SIZE_SHARE) * np.exp(squares / np.float32(-4 * view.sizes.shape[1]))
    found: Floats32 = np.exp(np.float32(sharpness) * (likeness - np.float32(1)))
    return found
