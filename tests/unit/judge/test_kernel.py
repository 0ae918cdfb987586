"""The teacher: kernel ridge regression that leaves out the question it is asked about."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

from s2r_ray.judge.evaluate import FloatArray
from s2r_ray.judge.kernel import KernelModel, Reader, _neighbours, fit_kernel, sizes, token_vectors

SHARPNESS, PENALTY = 2.0, 0.3


def _data(count: int = 40) -> tuple[list[list[int]], FloatArray, FloatArray]:
    """Prompts of random tokens, sizes and targets."""
    rng = np.random.default_rng(0)
    prompts = [[1, *rng.integers(10, 30, rng.integers(3, 12)).tolist(), 2] for _ in range(count)]
    return prompts, rng.random((count, 5)), rng.random(count)


def _fit(prompts: list[list[int]], size: FloatArray, targets: FloatArray) -> KernelModel:
    return fit_kernel(prompts, size, targets, sharpness=SHARPNESS, penalty=PENALTY)


def _full_kernel(model: KernelModel) -> FloatArray:
    """The kernel of the fitted questions, from the inverse that the model keeps."""
    return np.linalg.inv(model.inverse.astype(np.float64)) - PENALTY * np.eye(len(model.weights))


def test_leaves_out_the_question() -> None:
    """Would catch forecasts in sample, or a shortcut for leaving one out that is not the model fitted on the others."""
    prompts, size, targets = _data()
    model = _fit(prompts, size, targets)
    kernel, centred = _full_kernel(model), targets - targets.mean()
    for row in (0, 7, 39):
        others = np.arange(40) != row
        alone = KernelRidge(alpha=PENALTY, kernel="precomputed")
        alone.fit(kernel[np.ix_(others, others)], centred[others])
        wanted = float(alone.predict(kernel[row, others][None])[0]) + targets.mean()
        found = model.forecast([prompts[row]], size[[row]], np.array([row]))
        assert found[0] == pytest.approx(wanted, abs=1e-4)
        assert model.left_out[row] == pytest.approx(wanted, abs=1e-4)


def test_reads_a_changed_prompt_with_its_own_question_left_out() -> None:
    """Would catch a teacher that gives a masked question the forecast of the whole one, or leaves out another."""
    prompts, size, targets = _data()
    model = _fit(prompts, size, targets)
    masked = [[prompt[0], 0, 0, *prompt[3:]] for prompt in prompts[:3]]
    found = model.forecast(masked, size[:3], np.arange(3))
    assert np.abs(found - model.left_out[:3]).min() > 1e-4
    louder = targets.copy()
    louder[1] += 5.0
    again = _fit(prompts, size, louder).forecast(masked, size[:3], np.arange(3))
    shift = louder.mean() - targets.mean()
    assert abs(again[1] - found[1]) < 3 * shift < abs(louder[1] - targets[1])


def test_likeness_of_equals_is_one() -> None:
    """Would catch shares that do not add up, n-grams or meanings that are not of length one, and a wrong size term."""
    prompts, size, targets = _data(30)
    kernel = _full_kernel(_fit(prompts * 2, np.tile(size, (2, 1)), np.tile(targets, 2)))
    equals = np.abs(np.arange(60)[:, None] - np.arange(60)) % 30 == 0
    assert kernel[equals] == pytest.approx(np.ones(120), abs=1e-3)
    assert np.exp(-2 * SHARPNESS) < kernel[~equals].min() < kernel[~equals].max() < 0.99


def test_neighbours_are_counted_within_a_question() -> None:
    """Would catch neighbours across two questions, an unknown token taken for a known one, and a wrong distance."""
    found = _neighbours([[5, 6, 7], [6, 9, 5]], np.array([5, 6, 7]))
    dense = np.zeros((3, 3))
    dense[found.rows, found.columns] = found.values
    assert dense.tolist() == [[0.0, 1.5, 0.5], [1.5, 0.0, 1.0], [0.5, 1.0, 0.0]]


def test_tokens_that_stand_in_the_same_places_are_alike() -> None:
    """Would catch vectors in another order than the tokens, or of another length than one."""
    rng = np.random.default_rng(4)
    sides = [(11, 12, 13), (21, 22, 23)]
    prompts = [[int(rng.choice(sides[row % 2])), 31 + row % 2, int(rng.choice(sides[row % 2]))] for row in range(200)]
    vectors = token_vectors(prompts, np.array([11, 12, 13, 21, 22, 23, 31, 32]))
    likeness = vectors @ vectors.T
    assert np.diag(likeness) == pytest.approx(np.ones(8))
    assert likeness[0, 1:3].min() > 0.5
    assert np.abs(likeness[0, 3:6]).max() < 0.2


def test_sizes_count_what_they_name() -> None:
    """Would catch columns that change places, and a number too large for a float."""
    assert np.expm1(sizes(["Add 12 to $x$."]))[0] == pytest.approx([14, 3, 1, 6, 12])
    assert np.expm1(sizes(["9" * 400]))[0, 4] == pytest.approx(1e9)


def test_unknown_tokens_are_ignored() -> None:
    """Would catch masked or new tokens that are taken for the nearest known one."""
    prompts, size, _ = _data()
    reader = Reader.fit(prompts, size)
    plain, strange = (reader.view([ids], size[:1]) for ids in ([1, 15, 2], [1, 15, 2, 99]))
    assert (plain.ngrams.columns.tolist(), plain.ngrams.values.tolist()) == (
        strange.ngrams.columns.tolist(),
        strange.ngrams.values.tolist(),
    )
    assert plain.meanings.tolist() == strange.meanings.tolist()
