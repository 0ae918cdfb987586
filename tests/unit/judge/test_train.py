"""Training the judge: its parts on made-up data, a tiny training end to end, and the judge that ships."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s2r_ray.errors import UsageError
from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.judge.evaluate import Examples, Source, evaluate, read_labelled
from s2r_ray.judge.prompt import PAPER_PROMPT, PromptEncoder
from s2r_ray.judge.train import (
    TrainConfig,
    _Task,
    fit_teacher,
    scale_labels,
    score_prompts,
    split_rows,
    train_judge,
)

TINY = TrainConfig(
    vocabulary=300,
    width=32,
    layers=2,
    feed_forward=32,
    heads=1,
    head_width=32,
    epochs=4,
    batch=16,
    learning_rate=1e-2,
    holdout_fraction=0.2,
    teacher_rows=100,
    refit=False,
    average=0.8,
    threads=1,
    bfloat16=False,
)
BYTES_ON_DISK = 4 << 20


def _examples(rows: int = 240) -> Examples:
    """Questions whose level shows in one word; the group alternates."""
    rng = np.random.default_rng(0)
    words = ["add", "subtract", "multiply", "integrate", "prove"]
    levels = rng.integers(0, 5, rows)
    questions = tuple(f"Please {words[level]} {rng.integers(100)} and {rng.integers(100)}." for level in levels)
    groups = tuple("even" if row % 2 == 0 else "odd" for row in range(rows))
    return Examples(questions, levels + 1.0, groups)


@pytest.fixture(scope="module")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out_dir = tmp_path_factory.mktemp("judge")
    return out_dir, train_judge(_examples(), out_dir, TINY, lambda _: None)


def _scores(folder: Path, questions: tuple[str, ...]) -> tuple[Any, Any]:
    """Scores and label masses as any user of the folder gets them."""
    from transformers import AutoModelForCausalLM

    encoder = PromptEncoder(folder, PAPER_PROMPT)
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    return score_prompts(model, encoder.encode(questions), encoder.label_ids)


def test_training_learns_and_answers_with_labels_only(tiny_judge: tuple[Path, Any]) -> None:
    """Would catch swapped labels (a negative correlation), targets out of step with their questions, and a loss that
    lets probability leak to other tokens."""
    _, result = tiny_judge
    assert result.held_out["spearman"] > 0.8
    assert result.held_out["label_mass_min"] > 0.9
    assert len(result.history) == TINY.epochs
    assert result.train_rows == 192


def test_mass_weight_keeps_probability_on_the_labels(tmp_path: Path) -> None:
    """Would catch a term for the label mass that is left out, or that pushes the mass away."""
    masses = []
    for weight in (0.0, 3.0):
        config = dataclasses.replace(TINY, epochs=1, learning_rate=2e-3, mass_weight=weight)
        masses.append(
            train_judge(_examples(), tmp_path / str(weight), config, lambda _: None).held_out["label_mass_min"]
        )
    assert masses[1] > masses[0]


def test_saved_folder_gives_the_figures_reported(tiny_judge: tuple[Path, Any]) -> None:
    """Would catch saving the last weights instead of the best average, or float16 rounding that changes scores."""
    folder, result = tiny_judge
    examples = _examples()
    _, held_rows = split_rows(examples, TINY)
    held = examples.take(held_rows)
    scores, masses = _scores(folder, held.questions)
    assert evaluate(scores, held.labels, 4.0)["spearman"] == pytest.approx(result.held_out["spearman"], abs=2e-3)
    assert float(masses.min()) == pytest.approx(result.held_out["label_mass_min"], abs=2e-3)


def test_saved_weights_load_as_float32(tiny_judge: tuple[Path, Any]) -> None:
    """Would catch a folder that runs in float16 because its file is float16: slow on CPUs and other scores."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_judge[0]))
    assert model.dtype == torch.float32
    assert json.loads((tiny_judge[0] / "config.json").read_text())["dtype"] == "float32"


def test_same_seed_gives_same_weights(tmp_path: Path) -> None:
    """Would catch a random number that does not come from the seed, so that nobody can train the judge again."""
    short = dataclasses.replace(TINY, epochs=1)
    for name in ("a", "b"):
        train_judge(_examples(), tmp_path / name, short, lambda _: None)
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_holds_out_whole_groups() -> None:
    """Would catch a hold-out that leaks rows of the held-out group into training."""
    examples = _examples()
    train_rows, held_rows = split_rows(examples, dataclasses.replace(TINY, holdout_values=("odd",)))
    assert {examples.groups[row] for row in held_rows} == {"odd"}
    assert {examples.groups[row] for row in train_rows} == {"even"}
    assert len(train_rows) + len(held_rows) == len(examples)


@pytest.mark.parametrize("change", [{"holdout_values": ("none",)}, {"holdout_fraction": 0.0}], ids=str)
def test_impossible_splits_are_refused(change: dict[str, Any]) -> None:
    """Would catch a misspelt group that silently holds out nothing, and a best epoch chosen on no question."""
    with pytest.raises(UsageError):
        split_rows(_examples(), dataclasses.replace(TINY, **change))


def test_teacher_of_several_parts_knows_no_other_labels() -> None:
    """Would catch parts that answer for each other's questions, and held-out labels that reach the forecasts, which
    would make every held-out figure worthless."""
    rng = np.random.default_rng(2)
    prompts = [[1, int(word), 2] for word in rng.integers(10, 14, 60)]
    held = np.arange(60) % 2 == 1
    targets = np.where(held, np.nan, [prompt[1] % 2 for prompt in prompts])
    task = _Task(Path(), prompts, rng.random((60, 5)), targets, (3, 4), dataclasses.replace(TINY, teacher_rows=12))
    rows = np.flatnonzero(~held)
    teacher = fit_teacher(task, rows)
    assert len(teacher.models) == 3
    assert teacher.left_out()[held].tolist() == [0.0] * 30
    assert np.corrcoef(teacher.left_out()[rows], targets[rows])[0, 1] > 0.9
    some = rows[[4, 20, 5]]
    found = teacher.forecast([prompts[row] for row in some], some)
    assert found == pytest.approx(np.clip(teacher.left_out()[some], 0.0, 1.0), abs=1e-4)


def test_labels_are_scaled_and_clipped() -> None:
    """Would catch targets outside 0..1, for which the cross-entropy has no minimum."""
    labels = np.array([1.0, 3.0, 5.0])
    assert scale_labels(labels, None).tolist() == [0.0, 0.5, 1.0]
    assert scale_labels(labels, (2.0, 4.0)).tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(UsageError):
        scale_labels(np.ones(3), None)


def test_refit_trains_on_the_held_out_questions_too(tmp_path: Path) -> None:
    """Would catch a refit that changes nothing, or figures taken after the model has seen the held-out questions."""
    config = dataclasses.replace(TINY, epochs=2)
    once = train_judge(_examples(), tmp_path / "once", config, lambda _: None)
    again = train_judge(_examples(), tmp_path / "again", dataclasses.replace(config, refit=True), lambda _: None)
    assert again.held_out == once.held_out
    assert (once.train_rows, again.train_rows) == (192, 240)
    assert (tmp_path / "once/model.safetensors").read_bytes() != (tmp_path / "again/model.safetensors").read_bytes()
    scores, _ = _scores(tmp_path / "again", _examples().questions)
    assert (evaluate(scores, _examples().labels, 4.0)["spearman"] or 0.0) > 0.5


def test_card_states_the_figures_and_the_command(tmp_path: Path) -> None:
    """Would catch a card of another training, a path of this machine in it, and a setting that the command leaves
    out, so that running it gives another judge."""
    source = Source("levels.parquet", "question", "level", "subject")
    examples = dataclasses.replace(_examples(), source=source)
    config = dataclasses.replace(TINY, epochs=1, holdout_values=("odd",), seed=3)
    result = train_judge(examples, tmp_path, config, lambda _: None)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (
        "s2r judge train --labels levels.parquet --question-column question --label-column level "
        "--holdout-column subject --holdout-value odd --threshold 4 --epochs 1 --learning-rate 0.01 --seed 3 "
        "--threads 1 --holdout-fraction 0.2 --out DIR\n"
    ) in card
    assert f"| held out | 120 | {result.held_out['spearman']:.3f} | {result.held_out['auc']:.3f} |" in card
    assert f"{result.parameters:,} parameters" in card
    assert "vocabulary 300, width 32, feed_forward 32, heads 1, head_width 32, batch 16" in card
    assert str(tmp_path) not in card


def test_new_model_starts_as_a_linear_model_of_its_tokens(tmp_path: Path) -> None:
    """Would catch a start that is lost in the random weights, or that reads the labels the wrong way round."""
    examples = _examples()
    config = dataclasses.replace(TINY, epochs=1, learning_rate=0.0)
    assert train_judge(examples, tmp_path / "bag", config, lambda _: None).held_out["spearman"] > 0.5
    random = dataclasses.replace(config, start_penalty=0.0)
    assert train_judge(examples, tmp_path / "random", random, lambda _: None).held_out["spearman"] < 0.5


def test_embedded_judge_is_small_and_complete() -> None:
    """Would catch a judge over the size limit, one without a card, or labels that are not single tokens."""
    files = {path.name: path.stat().st_size for path in EMBEDDED_JUDGE.iterdir() if path.is_file()}
    assert sum(files.values()) <= BYTES_ON_DISK
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)
    card = (EMBEDDED_JUDGE / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "s2r judge train --labels train.parquet --question-column question --label-column level" in card
    assert "--threshold 4 --threads 1 --out DIR" in card
    assert {oct(path.stat().st_mode & 0o777) for path in EMBEDDED_JUDGE.iterdir() if path.is_file()} == {"0o644"}
    encoder = PromptEncoder(EMBEDDED_JUDGE, PAPER_PROMPT)
    scores, masses = _scores(EMBEDDED_JUDGE, ("What is $1+1$?", "Prove that <|im_end|>0 is a limit point of $S$."))
    assert len(set(encoder.label_ids)) == 2
    assert float(masses.min()) > 0.9
    assert scores[0] < scores[1]


@pytest.fixture(scope="module")
def math500() -> dict[str, Any]:
    """The embedded judge's figures on MATH-500, and its least label mass there."""
    data = Path(__file__).parents[4] / "shared" / "data" / "math_levels" / "test.parquet"
    if not data.exists():
        pytest.skip("the labelled questions of ../shared/data are not here")
    examples = read_labelled(str(data), "question", "level")
    scores, masses = _scores(EMBEDDED_JUDGE, examples.questions)
    return {**evaluate(scores, examples.labels, 4.0), "least_mass": float(masses.min())}


def test_embedded_judge_is_what_its_card_says(math500: dict[str, Any]) -> None:
    """Would catch weights that are not those the model card describes, and a judge that got worse."""
    card = (EMBEDDED_JUDGE / "README.md").read_text(encoding="utf-8")
    assert f"| MATH-500 | 500 | {math500['spearman']:.3f} | {math500['auc']:.3f} |" in card
    assert math500["least_mass"] > 0.9


def test_embedded_judge_reaches_the_bar(math500: dict[str, Any]) -> None:
    """Would catch a judge that got worse than the aim it was trained for."""
    assert math500["spearman"] >= 0.60
    assert math500["auc"] >= 0.79
