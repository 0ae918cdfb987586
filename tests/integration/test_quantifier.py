"""The judge of the paper's later version, end to end on the CPU: a base model, its pass rates, a judge trained on them.

Read it as an example of `s2r synth --task arithmetic`, `s2r judge rollouts`, `s2r judge train` and `s2r judge eval`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer.testing
import yaml

from s2r_ray.cli import app
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.command import assert_told, documented, s2r
from tests.solver import write_solver

pytestmark = [pytest.mark.engine, pytest.mark.ray]

QUESTIONS = ["--question-column", "question", "--label-column", "difficulty"]


def said(*arguments: str | Path) -> dict[str, Any]:
    done = typer.testing.CliRunner().invoke(app, ["judge", *map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_solver(tmp_path_factory.mktemp("solver") / "base")


@pytest.fixture(scope="module")
def work(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool of problems, a configuration, and room for the rest."""
    folder = tmp_path_factory.mktemp("quantifier")
    write_pool(Place.of(folder / "pool"), 700, 99, task="arithmetic")
    rollouts = {"model": str(base), "engine": "transformers", "max_tokens": 12, "max_prompt_tokens": 100}
    settings = {
        "pools": [{"uri": str(folder / "pool")}],
        "out": str(folder / "out"),
        "rollouts": {**rollouts, "prompt": {"user": "{question}"}},
        "judge": {"engine": "transformers"},
    }
    (folder / "s2r.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def drawn(work: Path, local_ray: None) -> dict[str, Any]:
    del local_ray
    return said("rollouts", "--config", work / "s2r.yaml", "--quiet")


def labels(drawn: dict[str, Any]) -> pl.DataFrame:
    return pl.read_parquet(drawn["labels"])


def test_pass_rates(drawn: dict[str, Any]) -> None:
    """Catches: grading that passes all or nothing, counts that do not add up, problems lost or there twice."""
    assert set(drawn) == documented()["judge rollouts"]
    rows = labels(drawn)
    assert drawn["status"] == {"ok": drawn["problems"]} == {"ok": rows.height}
    assert rows.select("question", "answer").is_duplicated().sum() == 0
    assert rows["rollouts"].to_list() == [8] * rows.height
    assert (rows["pass_rate"] == rows["passes"] / 8).all()
    assert (rows["difficulty"] == 1 - rows["pass_rate"]).all()
    assert 0.2 < drawn["mean_pass_rate"] < 0.9
    assert ((rows["passes"] > 0) & (rows["passes"] < 8)).mean() > 0.2
    assert {"problem_type", "source"} <= set(rows.columns)


def test_nothing_is_drawn_twice(work: Path, drawn: dict[str, Any]) -> None:
    """Catches: a second command, or a larger n, that draws again what is in the store; sums over the wrong draws."""
    before = labels(drawn)
    parts = {file.path for file in Place.of(work / "out").child("scores").files() if "part-" in file.path}
    again = said("rollouts", "--config", work / "s2r.yaml", "--quiet")
    assert again["judged"] == 0
    more = said("rollouts", "--config", work / "s2r.yaml", "--rollouts", "12", "--questions", "100", "--quiet")
    assert (more["judged"], more["problems"]) == (100, 100)
    after = labels(more).join(before, on=["question", "answer"], suffix="_before", how="inner")
    assert after.height == 100
    assert after["rollouts"].to_list() == [12] * 100
    gained = after["passes"] - after["passes_before"]
    assert gained.min() >= 0
    assert 0 < gained.max() <= 4
    new = {file.path for file in Place.of(work / "out").child("scores").files() if "part-" in file.path} - parts
    rows = sum(pl.read_parquet(work / "out" / "scores" / path).height for path in new)
    assert rows == 100
    said("rollouts", "--config", work / "s2r.yaml", "--quiet")  # what the other tests read is that of all problems


@pytest.mark.parametrize("kind", ["head", "labels"])
def test_a_judge_learns_them(kind: str, work: Path, base: Path, drawn: dict[str, Any]) -> None:
    """Catches: a trained judge that knows no more of difficulty than the question's length says, a card with other
    figures than `eval` finds, questions of the test among those of the training."""
    rows = labels(drawn).sample(fraction=1.0, shuffle=True, seed=1)
    rows.head(150).write_parquet(work / "test.parquet")
    rows.tail(-150).write_parquet(work / "train.parquet")
    judge = work / f"judge-{kind}"
    options = [
        "--base",
        base,
        "--kind",
        kind,
        "--out",
        judge,
        "--learning-rate",
        "1e-3",
        "--epochs",
        "4",
        "--threads",
        "1",
        "--quiet",
    ]
    trained = said("train", "--labels", work / "train.parquet", *QUESTIONS, *options)
    assert set(trained) == documented()["judge train"]
    options = ["--config", work / "s2r.yaml", "--judge", judge, "--source-column", "source"]
    plot = work / f"{kind}.svg"
    found = said("eval", "--labels", work / "test.parquet", *QUESTIONS, *options, "--plot", plot)
    assert set(found) == documented()["judge eval"]
    assert (found["n"], found["unanswered"]) == (150, 0)
    assert abs(found["spearman_question_length"]) < 0.3
    assert found["spearman"] > abs(found["spearman_question_length"]) + 0.3
    assert found["calibration"]["error"] < 0.2
    assert sum(line["n"] for line in found["calibration"]["table"]) == 150
    assert sum(source["n"] for source in found["sources"].values()) == 150
    assert found["edits"]["white_space"]["n"] == 150
    assert plot.read_text().count("<svg") == 1
    assert f"{trained['held_out']['spearman']:.3f}" in (judge / "README.md").read_text()


def test_problems_without_an_answer_have_a_reason(work: Path, drawn: dict[str, Any], tmp_path: Path) -> None:
    """Catches: a pass rate of 0, which is a difficulty of 1, for what nothing was held against."""
    del drawn
    rows = pl.DataFrame(
        {"q": ["What is $2 + 2$?", "What is $2 + 3$?", "Prove it."], "a": ["t"] * 3, "gold": ["4", None, "proof"]}
    )
    (tmp_path / "pool").mkdir()
    rows.write_parquet(tmp_path / "pool" / "rows.parquet")
    settings = yaml.safe_load((work / "s2r.yaml").read_text())
    mapping = {"question": "q", "traces": "a", "answer": "gold"}
    settings |= {"pools": [{"uri": str(tmp_path / "pool"), "mapping": mapping}], "out": str(tmp_path / "out")}
    (tmp_path / "s2r.yaml").write_text(yaml.safe_dump(settings))
    found = said("rollouts", "--config", tmp_path / "s2r.yaml", "--quiet")
    assert found["status"] == {"ok": 1, "ungradable": 2}
    told = {row["question"]: row for row in labels(found).to_dicts()}
    assert told["Prove it."]["detail"] == "its solution is a proof"
    assert told["What is $2 + 3$?"]["detail"] == "there is no reference answer"
    assert [told["Prove it."][name] for name in ("passes", "pass_rate", "difficulty")] == [None] * 3
    (file,) = (tmp_path / "out" / "problems").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-9])  # a file of ours that is torn is made anew by the next try
    torn = s2r("judge", "rollouts", "--config", tmp_path / "s2r.yaml", "--quiet")
    assert_told(torn, 1, "is damaged", "start the same command again")
    again = said("rollouts", "--config", tmp_path / "s2r.yaml", "--quiet")
    assert (again["judged"], again["status"]) == (0, found["status"])
