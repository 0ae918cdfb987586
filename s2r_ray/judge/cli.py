"""`s2r judge`: train a judge, and hold one against labels."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from s2r_ray.errors import UsageError
from s2r_ray.options import JUDGING, AsJson, Quiet, configured, print_json

if TYPE_CHECKING:
    from s2r_ray.config import Config

app = typer.Typer(no_args_is_help=True, help="Train and examine judges.")

Labels = Annotated[str, typer.Option(metavar="FILE", help="Parquet or JSONL with questions and labels.")]
QuestionColumn = Annotated[str, typer.Option(metavar="COLUMN", help="Column of the questions.")]
LabelColumn = Annotated[str, typer.Option(metavar="COLUMN", help="Column of the labels: numbers, larger is harder.")]
Threshold = Annotated[
    float | None,
    typer.Option(metavar="LABEL", help="Labels from here on count as hard.", show_default="none: no AUC"),
]


@app.command()
@configured("out", "pool", "preset", "label", "base_model", "rollouts", "questions", "max_bad_files", "verbose")
def rollouts(settings: Config, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Let a base model solve the pool's problems, and write its pass rates as labels for `train`."""
    from s2r_ray.judge.rollouts import roll_out, summary
    from s2r_ray.progress import Progress

    done = roll_out(settings, Progress(quiet=quiet))
    if as_json:
        print_json(summary(done))
        return
    graded = done.status.get("ok", 0)
    sys.stdout.write(f"{done.problems:,} problems, {graded:,} with a pass rate: {done.labels.uri}\n")
    if done.mean_pass_rate is not None:
        never, always = done.never / graded, done.always / graded
        sys.stdout.write(f"mean {done.mean_pass_rate:.3f}; never solved {never:.1%}, always solved {always:.1%}\n")
    for status, count in sorted(done.status.items()):
        if status != "ok":
            sys.stdout.write(f"{status}: {count:,} (see the column detail)\n")


@app.command("eval")
@configured(*JUDGING)
def evaluate(
    settings: Config,
    labels: Labels,
    question_column: QuestionColumn,
    label_column: LabelColumn,
    threshold: Threshold = None,
    source_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of sources, for the mean score of each.", show_default="none"),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="SVG to write: mean label over score, with counts.", show_default="none"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold a judge's scores against labels: agreement, calibration, and what should not move them."""
    from s2r_ray.judge.evaluate import outcomes, read_labelled
    from s2r_ray.judge.examine import examine

    options = settings.storage.options()
    examples = read_labelled(labels, question_column, label_column, group_column=source_column, storage=options)
    if plot and outcomes(examples.labels, threshold) is None:
        raise UsageError("--plot needs labels of 0..1, which is what scores state, or --threshold")
    if plot and not Path(plot).expanduser().parent.is_dir():
        raise UsageError(f"--plot {plot}: there is no such folder")
    figures = examine(settings, examples, threshold)
    if plot:
        from s2r_ray.judge.reliability import reliability_plot

        found = figures["calibration"]
        Path(plot).expanduser().write_text(reliability_plot(found["table"], found["error"]), encoding="utf-8")
    if as_json:
        print_json(figures)
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name.replace('_', ' '):<22} {_shown(value)}\n")


def _shown(figure: object) -> str:
    if isinstance(figure, dict):
        return ", ".join(f"{name}: {_shown(value)}" for name, value in figure.items())
    if isinstance(figure, list):
        return "".join(f"\n    {_shown(item)}" for item in figure)
    return f"{figure:.4g}" if isinstance(figure, float) else "-" if figure is None else f"{figure}"


@app.command()
def train(
    labels: Labels,
    question_column: QuestionColumn,
    label_column: LabelColumn,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where to write the judge; must not hold one yet.")],
    base: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Checkpoint to fine-tune.", show_default="none: from scratch")
    ] = None,
    kind: Annotated[
        Literal["head", "labels"],
        typer.Option(help="With --base: a head of one logit that states the label, or two answers of the model."),
    ] = "head",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the questions, at the most.", show_default="7; with --base 10"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Peak learning rate.", show_default="7e-4; with --base 1e-5"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --base: questions per step and device.")] = 16,
    patience: Annotated[int, typer.Option(min=1, help="With --base: epochs without a gain before it ends.")] = 2,
    seed: Annotated[int, typer.Option(help="The same seed and thread count give the same judge.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="torch's choice")] = None,
    threshold: Threshold = None,
    holdout_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Hold out whole groups of this column.", show_default="none")
    ] = None,
    holdout_value: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="A group to hold out. Repeatable.", show_default="none")
    ] = None,
    holdout_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the questions that only choose the epoch; 0..1.",
            show_default="0.05; with --base 0.1",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a judge on labelled questions: from scratch, as the embedded one was, or from a checkpoint."""
    from s2r_ray.judge.evaluate import read_labelled
    from s2r_ray.judge.train import TrainConfig, train_judge
    from s2r_ray.judge.tune import TuneConfig, tune_judge
    from s2r_ray.progress import Progress

    target = Path(out).expanduser()
    if (target / "config.json").exists():
        raise UsageError(f"--out {out}: there is a model in it already; choose an empty folder")
    if bool(holdout_column) != bool(holdout_value):
        raise UsageError("--holdout-column and --holdout-value go together")
    examples = read_labelled(labels, question_column, label_column, group_column=holdout_column)
    given: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate, "holdout_fraction": holdout_fraction}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"seed": seed, "threads": threads, "threshold": threshold, "holdout_values": tuple(holdout_value or ())}
    say = Progress(quiet=quiet).say
    if base is None:
        result = train_judge(examples, target, TrainConfig(**given), say)
    else:
        tuning = TuneConfig(base=base, kind=kind, batch=batch, patience=patience, **given)
        result = tune_judge(examples, target, tuning, say)
    if int(os.environ.get("RANK", "0")):  # of several processes on one training, the first tells
        return
    figures = {
        "judge": str(result.out_dir),
        "parameters": result.parameters,
        "train_rows": result.train_rows,
        "best_epoch": result.best_epoch,
        "held_out": result.held_out,
        "seconds": round(result.seconds, 1),
    }
    if as_json:
        print_json(figures)
        return
    sys.stdout.write(f"judge of {result.parameters:,} parameters: {result.out_dir}\n")
    for name in ("n", "spearman", "auc"):
        if result.held_out.get(name) is not None:
            sys.stdout.write(f"held out {name:<10} {result.held_out[name]:.4g}\n")
