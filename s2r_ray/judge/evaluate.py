"""How well a judge's scores agree with labels: pure functions over arrays, and the reader of labelled files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2r_ray.errors import UsageError
from s2r_ray.storage import DEFAULT_STORAGE, Place, StorageOptions

FloatArray = NDArray[np.float64]

MAX_LEVELS = 20
"""Labels with more distinct values than this have no mean score per level."""


@dataclass(frozen=True)
class Source:
    """Where labelled questions came from: the name of the file or folder without its path, and the columns read."""

    name: str = ""
    question_column: str = ""
    label_column: str = ""
    group_column: str = ""


@dataclass(frozen=True)
class Examples:
    """Labelled questions, in file order.

    Attributes:
        questions: n texts.
        labels: [n] finite numbers, larger is harder.
        groups: n values of the group column as text ("" where it is null); empty if no such column was asked for.
        dropped: rows left out because question or label was null, empty or not a finite number.
        source: where they came from; empty if they were not read from a file.
    """

    questions: tuple[str, ...]
    labels: FloatArray
    groups: tuple[str, ...] = ()
    dropped: int = 0
    source: Source = Source()

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Examples:
        """The rows at these positions, in this order."""
        return Examples(
            tuple(self.questions[row] for row in rows),
            self.labels[np.asarray(rows, dtype=np.int64)],
            tuple(self.groups[row] for row in rows) if self.groups else (),
            source=self.source,
        )


def read_labelled(
    path_or_uri: str,
    question_column: str,
    label_column: str,
    *,
    group_column: str | None = None,
    storage: StorageOptions = DEFAULT_STORAGE,
) -> Examples:
    """Read labelled questions from Parquet or JSONL files: a file, folder or glob, local or s3://.

    Rows without a usable question or label are dropped and counted.

    Raises:
        UsageError: nothing is there, a column is missing, labels are not numbers, or no row is left.
        S2RError: a file cannot be read.
    """
    from s2r_ray.readers import plan_units, pool_files, read_unit

    columns = [question_column, label_column, *([group_column] if group_column else [])]

    def check(found: Sequence[str], where: str) -> None:
        missing = [name for name in columns if name not in found]
        if missing:
            raise UsageError(f"{where}: no column {', '.join(map(repr, missing))}; the file has {', '.join(found)}")

    root, files = Place.of(path_or_uri, storage).glob()
    questions: list[str] = []
    labels: list[float] = []
    groups: list[str] = []
    rows = 0
    for unit in plan_units(root, 0, pool_files(files, path_or_uri)):
        for batch in read_unit(root, unit, list(dict.fromkeys(columns)), check):
            for offset, fault in batch.faults.items():
                raise UsageError(f"{path_or_uri}: row {batch.first_row + offset + 1}: {fault}")
            for question, label, *group in zip(*(batch.columns[name] for name in columns), strict=True):
                rows += 1
                value = _label(label, label_column, path_or_uri)
                if value is None or not isinstance(question, str) or not question.strip():
                    continue
                questions.append(question)
                labels.append(value)
                groups += ["" if name is None else str(name) for name in group]
    if not questions:
        raise UsageError(f"{path_or_uri}: none of {rows} rows has both {question_column!r} and {label_column!r}")
    source = Source(path_or_uri.rstrip("/").rpartition("/")[2], question_column, label_column, group_column or "")
    return Examples(tuple(questions), np.array(labels, dtype=np.float64), tuple(groups), rows - len(questions), source)


def _label(value: Any, column: str, where: str) -> float | None:
    """The label as a number; None where there is none."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: column {column!r} holds {value!r}; expected numbers (larger is harder)") from error
    return number if math.isfinite(number) else None


def ranks(values: FloatArray) -> FloatArray:
    """Average ranks 1..n, ascending, of a [n] array: scipy.stats.rankdata(values, method="average")."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last: FloatArray = np.cumsum(counts).astype(np.float64)
    means: FloatArray = last - (counts - 1) / 2
    return means[inverse]


def spearman(first: FloatArray, second: FloatArray) -> float | None:
    """Spearman's rank correlation of two [n] arrays: Pearson's over average ranks. None if either is constant."""
    a = ranks(first) - (len(first) + 1) / 2
    b = ranks(second) - (len(second) + 1) / 2
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else None


def auc(scores: FloatArray, positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve of [n] scores, ties counting one half. None if one class is empty.

    Mann and Whitney's U / (n1 n0), with U = (sum of the positives' average ranks) - n1 (n1 + 1) / 2.
    """
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if not n1 or not n0:
        return None
    u = float(ranks(scores)[positive].sum()) - n1 * (n1 + 1) / 2
    return u / (n1 * n0)


def evaluate(
    scores: FloatArray,
    labels: FloatArray,
    threshold: float | None,
    question_chars: FloatArray | None = None,
) -> dict[str, Any]:
    """Agreement of scores with labels, ready for JSON.

    Args:
        scores: [n] judge scores, 0..1, larger is harder.
        labels: [n] labels, larger is harder.
        threshold: labels at or above it are the positives of the AUC; None leaves the AUC out.
        question_chars: [n] question lengths in characters, for the baseline that any judge has to beat.

    Returns:
        n, spearman, auc and threshold, mean_score_per_level (None with more than `MAX_LEVELS` distinct labels) and
        spearman_question_length. A figure that is not defined (constant input, one class only) is None.

    Raises:
        UsageError: the arrays are empty, of different length, or hold something that is not a finite number.
    """
    if scores.shape != labels.shape or scores.ndim != 1 or not len(scores):
        raise UsageError(f"found {scores.shape} scores for {labels.shape} labels; expected as many, and at least one")
    if not (np.isfinite(scores).all() and np.isfinite(labels).all()):
        raise UsageError("scores and labels must be finite numbers; leave out the rows that have none")
    levels = np.unique(labels)
    return {
        "n": len(scores),
        "spearman": spearman(scores, labels),
        "auc": None if threshold is None else auc(scores, labels >= threshold),
        "threshold": threshold,
        "mean_score_per_level": None
        if len(levels) > MAX_LEVELS
        else {f"{level:g}": float(scores[labels == level].mean()) for level in levels},
        "spearman_question_length": None if question_chars is None else spearman(question_chars, labels),
    }


def calibration(scores: FloatArray, outcomes: FloatArray, bins: int = 10) -> dict[str, Any]:
    """How far scores are from what they state, [n] each, 0..1.

    Returns:
        `table`: for each of the bins of equal width that has any, its `from`, `to`, `n`, `mean_score` and
        `mean_outcome`; `error`: the expected calibration error, which is the mean of |mean score - mean outcome| over
        the bins, weighted by their n (Naeini, Cooper and Hauskrecht 2015; outcomes may be shares, not only 0 and 1).
    """
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    table = []
    for number in np.unique(place).tolist():
        here = place == number
        means = {"mean_score": float(scores[here].mean()), "mean_outcome": float(outcomes[here].mean())}
        table.append({"from": number / bins, "to": (number + 1) / bins, "n": int(here.sum()), **means})
    gaps = [line["n"] * abs(line["mean_score"] - line["mean_outcome"]) for line in table]
    return {"table": table, "error": sum(gaps) / len(scores)}


def outcomes(labels: FloatArray, threshold: float | None) -> FloatArray | None:
    """What scores of 0..1 state: whether a label reaches the threshold, else the labels, if they are shares; [n]."""
    if threshold is not None:
        return (labels >= threshold).astype(np.float64)
    return labels if labels.min() >= 0 and labels.max() <= 1 else None


def question_chars(examples: Examples) -> FloatArray:
    """[n] question lengths in characters."""
    return np.array([len(question) for question in examples.questions], dtype=np.float64)
