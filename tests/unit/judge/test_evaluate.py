"""Agreement figures against scipy and scikit-learn, and the reader of labelled files."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from s2r_ray.errors import UsageError
from s2r_ray.judge.evaluate import (
    MAX_LEVELS,
    auc,
    calibration,
    evaluate,
    outcomes,
    question_chars,
    ranks,
    read_labelled,
    spearman,
)
from s2r_ray.judge.reliability import reliability_plot
from s2r_ray.storage import StorageOptions
from tests.object_store import s3_server

few_values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, -3.5]), min_size=2, max_size=40)


@given(few_values)
def test_ranks_equal_scipy(values: list[float]) -> None:
    """Would catch ties that get the lowest or an arbitrary rank instead of their mean."""
    assert ranks(np.array(values)).tolist() == rankdata(values).tolist()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.7]), st.integers(1, 5)), min_size=3, max_size=40))
def test_spearman_equals_scipy(pairs: list[tuple[float, int]]) -> None:
    """Would catch the shortcut 1 - 6 d^2 / (n^3 - n), which is wrong under ties, and a NaN for constant input."""
    first, second = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second)[0], abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.9]), st.booleans()), min_size=2, max_size=40))
def test_auc_equals_sklearn(pairs: list[tuple[float, bool]]) -> None:
    """Would catch ties between the classes that count as wins, and a division by zero with one class."""
    scores = np.array([score for score, _ in pairs])
    positive = np.array([flag for _, flag in pairs])
    if positive.all() or not positive.any():
        assert auc(scores, positive) is None
    else:
        assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_equals_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    """Catches: a question in two bins or in none (0 and 1 most of all), and bins weighted alike whatever they hold."""
    scores, happened = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    found = calibration(scores, happened)
    assert sum(line["n"] for line in found["table"]) == len(pairs)
    for line in found["table"]:
        assert line["from"] - 1e-9 <= line["mean_score"] <= line["to"] + 1e-9
    edges = np.linspace(0, 1, 11)[1:-1]
    if np.abs(scores * 10 - np.round(scores * 10)).min() > 1e-6:  # on an edge scikit-learn takes the other bin
        true, stated = calibration_curve(happened, scores, n_bins=10)
        sizes = np.bincount(np.searchsorted(edges, scores), minlength=10)
        sizes = sizes[sizes > 0]
        assert found["error"] == pytest.approx(float((sizes * np.abs(true - stated)).sum() / len(pairs)), abs=1e-9)


def test_what_is_calibrated_has_no_error() -> None:
    """Catches: a judge that states the pass rates themselves and is told that it is off; a plot of nothing."""
    rates = np.arange(9) / 8
    found = calibration(rates, rates)
    assert found["error"] == 0
    drawing = reliability_plot(found["table"], found["error"])
    assert drawing.count("<svg") == 1
    assert "expected calibration error 0.000" in drawing
    assert "<script" not in drawing


def test_what_scores_state() -> None:
    """Catches: levels of 1 to 5 held against scores of 0..1 as if they were shares."""
    levels = np.array([1.0, 4.0, 5.0])
    assert outcomes(levels, None) is None
    reached = outcomes(levels, 4)
    assert reached is not None
    assert reached.tolist() == [0, 1, 1]
    assert outcomes(levels / 5, None) is not None


def test_evaluate_is_plain_json() -> None:
    """Would catch numpy numbers or NaN, which json writes as something other tools cannot read, and a threshold
    that excludes the level it names."""
    scores, labels = np.array([0.1, 0.4, 0.3, 0.9]), np.array([1.0, 3.0, 4.0, 5.0])
    figures = evaluate(scores, labels, 4.0, np.array([10.0, 10.0, 10.0, 10.0]))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["n"] == 4
    assert figures["auc"] == 0.75
    assert figures["mean_score_per_level"] == {"1": 0.1, "3": 0.4, "4": 0.3, "5": 0.9}
    assert figures["spearman_question_length"] is None


def test_continuous_labels_have_no_levels() -> None:
    """Would catch a report with one "level" per row for labels such as pass rates."""
    labels = np.linspace(0.0, 1.0, MAX_LEVELS + 1)
    figures = evaluate(labels, labels, None)
    assert figures["mean_score_per_level"] is None
    assert figures["auc"] is None
    assert figures["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scores", "labels"), [([], []), ([0.1], [1.0, 2.0]), ([float("nan"), 0.2], [1.0, 2.0])], ids=str
)
def test_evaluate_refuses(scores: list[float], labels: list[float]) -> None:
    """Would catch figures computed over rows that do not belong together or have no score."""
    with pytest.raises(UsageError):
        evaluate(np.array(scores), np.array(labels), None)


def _parquet(path: Path, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_reads_parquet_and_counts_what_it_drops(tmp_path: Path) -> None:
    """Would catch labels that slip by one row when a row before them is dropped."""
    file = _parquet(
        tmp_path / "a.parquet",
        q=["one", None, "three", " ", "five"],
        level=[1, 2, 3, 4, None],
        subject=["A", "B", None, "D", "E"],
    )
    examples = read_labelled(file, "q", "level", group_column="subject")
    assert examples.questions == ("one", "three")
    assert examples.labels.tolist() == [1.0, 3.0]
    assert examples.groups == ("A", "")
    assert examples.dropped == 3
    assert question_chars(examples).tolist() == [3.0, 5.0]


def test_reads_jsonl(tmp_path: Path) -> None:
    """Would catch a reader that knows Parquet only, or numbers in quotes that become text labels."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"q": "x", "y": "0.5"}\n{"q": "z", "y": 1}\n', encoding="utf-8")
    examples = read_labelled(str(file), "q", "y")
    assert examples.labels.tolist() == [0.5, 1.0]
    assert examples.groups == ()


def test_missing_column_names_those_there_are(tmp_path: Path) -> None:
    """Would catch a KeyError, or a message that leaves the user to open the file."""
    file = _parquet(tmp_path / "a.parquet", question=["x"], grade=[1])
    with pytest.raises(UsageError, match=r"'level'.*question, grade"):
        read_labelled(file, "question", "level")


def test_words_as_labels_are_refused(tmp_path: Path) -> None:
    """Would catch a file of "easy"/"hard" labels that silently loses every row."""
    file = _parquet(tmp_path / "a.parquet", question=["x"], level=["hard"])
    with pytest.raises(UsageError, match="'hard'"):
        read_labelled(file, "question", "level")


def test_no_usable_row_is_refused(tmp_path: Path) -> None:
    """Would catch an empty result that fails later, far from its cause."""
    file = _parquet(tmp_path / "a.parquet", question=pa.array([None], pa.string()), level=[1])
    with pytest.raises(UsageError, match="none of 1 rows"):
        read_labelled(file, "question", "level")


def test_labels_in_an_object_store_of_ones_own() -> None:
    """Catches: the endpoint and keys of the configuration left aside, so that AWS is asked for a bucket of another."""
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    with s3_server() as endpoint:
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="labelled")
        client.put_object(Bucket="labelled", Key="rows.jsonl", Body=b'{"q": "a", "d": 1}\n{"q": "b", "d": 0}\n')
        storage = StorageOptions(endpoint, "us-east-1", "key", "secret")
        examples = read_labelled("s3://labelled/rows.jsonl", "q", "d", storage=storage)
    assert examples.questions == ("a", "b")
