"""The `s2r` command. Results go to standard output, everything for people to standard error.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. Heavy modules are imported inside the commands, so that
`s2r --help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from s2r_ray import __version__
from s2r_ray.errors import S2RError, TooManyErrors
from s2r_ray.quiet import own_stream

# Typer's base class of usage errors has no public name; its public errors derive from it.
_WRONG_USAGE: Any = typer.BadParameter.__bases__[0].__bases__[0]

_INTERRUPTED = 130
_TERMINATED = 128 + signal.SIGTERM
_STOPPED = "stopped; what was indexed and judged is kept, run the same command again to go on"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Pick the few per cent of a pool of reasoning traces that are worth training on.",
)
judge_app = typer.Typer(no_args_is_help=True, help="Train and examine judges.")
app.add_typer(judge_app, name="judge")

Pools = Annotated[list[str] | None, typer.Option("--pool", help="File, folder or glob; a path or s3://. Repeatable.")]
Out = Annotated[str | None, typer.Option("--out", help="Where everything is written; a path or s3://.")]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file; options override it.")]
Preset = Annotated[str | None, typer.Option(help="Column mapping by name. Default: openr1-math-220k.")]
LabelOptions = Annotated[
    list[str] | None,
    typer.Option("--label", help="Column of the pool to call samples by: NAME=COLUMN, or just COLUMN. Repeatable."),
]
Tokenizer = Annotated[str | None, typer.Option(help="Folder or hub id of the student's tokenizer.")]
Judge = Annotated[str | None, typer.Option(help="Folder or hub id of the judge. Default: the embedded one.")]
Engine = Annotated[str | None, typer.Option(help="vllm or transformers. Default: vllm.")]
Candidates = Annotated[str | None, typer.Option(help="Traces that compete per problem: first, longest or all.")]
BadFiles = Annotated[int | None, typer.Option("--max-bad-files", help="Unreadable files to put up with. Default: 0.")]
ErrorRate = Annotated[
    str | None,
    typer.Option("--max-error-rate", help="Share of broken rows or unjudged questions to put up with. Default: 0.1%."),
]
WeightOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--weight", help="NAME=VALUE, repeatable; unnamed signals weigh 0. Default: difficulty=0.25 length=0.75."
    ),
]
Budgets = Annotated[
    list[str] | None, typer.Option("--budget", help="Share to select, repeatable. Default: 2%, 5% and 10%.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the logs of Ray and the engine.")]


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"s2r_ray {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Pick the few per cent of a pool of reasoning traces that are worth training on."""


@app.command()
def run(
    pool: Pools = None,
    out: Out = None,
    preset: Preset = None,
    label: LabelOptions = None,
    config: ConfigFile = None,
    tokenizer: Tokenizer = None,
    judge: Judge = None,
    engine: Engine = None,
    candidates: Candidates = None,
    weight: WeightOptions = None,
    budget: Budgets = None,
    max_bad_files: BadFiles = None,
    max_error_rate: ErrorRate = None,
    compare: Annotated[bool, typer.Option("--diff", help="Then show what changed since the run before.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Index the pools, judge what is new, rank everything and write manifests and a report."""
    from s2r_ray import pipeline
    from s2r_ray.progress import Progress

    settings = _config(
        config,
        _overrides(
            pool,
            out,
            preset,
            tokenizer,
            judge,
            engine,
            candidates,
            weight,
            budget,
            max_bad_files,
            max_error_rate,
            verbose,
            label=label,
        ),
    )
    progress = Progress(quiet=quiet)
    record, place = pipeline.run(settings, progress)
    _show_run(record, place, as_json, _diff_before(settings.out_place(), record.run_id, progress) if compare else None)


@app.command()
def plan(
    pool: Pools = None,
    out: Out = None,
    preset: Preset = None,
    label: LabelOptions = None,
    config: ConfigFile = None,
    tokenizer: Tokenizer = None,
    judge: Judge = None,
    engine: Engine = None,
    candidates: Candidates = None,
    weight: WeightOptions = None,
    budget: Budgets = None,
    max_bad_files: BadFiles = None,
    max_error_rate: ErrorRate = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would read and judge, and check everything it needs. Changes nothing."""
    from s2r_ray import pipeline

    settings = _config(
        config,
        _overrides(
            pool,
            out,
            preset,
            tokenizer,
            judge,
            engine,
            candidates,
            weight,
            budget,
            max_bad_files,
            max_error_rate,
            label=label,
        ),
    )
    planned = pipeline.prepare(settings)
    pipeline.try_cluster(planned)
    summary = pipeline.summarize(planned)
    if as_json:
        _print_json(summary)
        return
    for name, value in summary.items():
        shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else value
        shown = "not known before the files are read" if value is None else shown
        sys.stdout.write(f"{name.replace('_', ' '):<28} {shown}\n")


@app.command()
def score(
    pool: Pools = None,
    out: Out = None,
    preset: Preset = None,
    label: LabelOptions = None,
    config: ConfigFile = None,
    tokenizer: Tokenizer = None,
    judge: Judge = None,
    engine: Engine = None,
    candidates: Candidates = None,
    max_bad_files: BadFiles = None,
    max_error_rate: ErrorRate = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Index the pools and judge what is new; `select` does the rest."""
    from s2r_ray import pipeline
    from s2r_ray.progress import Progress

    settings = _config(
        config,
        _overrides(
            pool,
            out,
            preset,
            tokenizer,
            judge,
            engine,
            candidates,
            None,
            None,
            max_bad_files,
            max_error_rate,
            verbose,
            label=label,
        ),
    )
    scored = pipeline.score(settings, Progress(quiet=quiet))
    if as_json:
        _print_json({"counts": scored.counts, "seconds": scored.seconds, "snapshot": scored.snapshot.digest()})
        return
    sys.stdout.write(f"scored; now: s2r select --out {settings.out}\n")


@app.command()
def select(
    out: Out = None,
    config: ConfigFile = None,
    weight: WeightOptions = None,
    budget: Budgets = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rank again from what is stored, with other weights or budgets: no model, no GPU, a new run."""
    from s2r_ray import pipeline
    from s2r_ray.progress import Progress

    settings = _config(config, _overrides(out=out, weight=weight, budget=budget))
    record, place = pipeline.select(settings, Progress(quiet=quiet))
    _show_run(record, place, as_json)


@app.command()
def diff(
    run_a: Annotated[
        str | None, typer.Argument(help="The earlier run: an id or its beginning. Default: before B.")
    ] = None,
    run_b: Annotated[str | None, typer.Argument(help="The later run. Default: the newest finished one.")] = None,
    out: Out = None,
    config: ConfigFile = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", help="Share to compare, repeatable. Default: all that both have.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which samples entered and left the selection between two runs, and why."""
    from s2r_ray.diff import choose_runs, diff_runs
    from s2r_ray.summary import diff_summary, diff_text

    settings = _config(config, _overrides(out=out, budget=budget))
    place = settings.out_place()
    place.check_reachable()
    found = diff_runs(place, *choose_runs(place, run_a, run_b), settings.budgets if budget else ())
    if as_json:
        _print_json(diff_summary(found))
    else:
        sys.stdout.write(diff_text(found))


@app.command()
def synth(
    out: Annotated[str, typer.Option(help="Folder to write the pool to; a path or s3://.")],
    rows: Annotated[int, typer.Option(min=1, help="Problems to make up.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pool.")] = 0,
    rows_per_file: Annotated[int, typer.Option(min=1, help="Rows of one Parquet file.")] = 1000,
) -> None:
    """Make up a pool of any size in the columns of OpenR1-Math-220k."""
    from s2r_ray.storage import Place
    from s2r_ray.synth import write_pool

    files = write_pool(Place.of(out), rows, seed, rows_per_file)
    sys.stdout.write(f"{rows:,} problems in {files} files: {out}\n")


@judge_app.command("eval")
def judge_eval(
    labels: Annotated[str, typer.Option(help="Parquet or JSONL with questions and labels.")],
    question_column: Annotated[str, typer.Option(help="Column of the questions.")],
    label_column: Annotated[str, typer.Option(help="Column of the labels: numbers, larger is harder.")],
    judge: Judge = None,
    threshold: Annotated[float | None, typer.Option(help="Labels from here on count as hard, for the AUC.")] = None,
    engine: Engine = None,
    config: ConfigFile = None,
) -> None:
    """Hold a judge's scores against labels and print the figures as JSON."""
    from s2r_ray.judge.evaluate import read_labelled
    from s2r_ray.judge.examine import examine

    settings = _config(config, _overrides(judge=judge, engine=engine))
    examples = read_labelled(labels, question_column, label_column)
    _print_json(examine(settings, examples, threshold))


@judge_app.command("train")
def judge_train(
    labels: Annotated[str, typer.Option(help="Parquet or JSONL with questions and labels.")],
    question_column: Annotated[str, typer.Option(help="Column of the questions.")],
    label_column: Annotated[str, typer.Option(help="Column of the labels: numbers, larger is harder.")],
    out: Annotated[str, typer.Option(help="Folder to write the judge to; must not hold a judge yet.")],
    base: Annotated[str | None, typer.Option(help="Checkpoint folder to fine-tune. Default: from scratch.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the questions, at the most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed and thread count give the same judge.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: torch's choice.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Labels from here on count as hard, for the AUC.")] = None,
    holdout_column: Annotated[str | None, typer.Option(help="Hold out whole groups of this column.")] = None,
    holdout_value: Annotated[list[str] | None, typer.Option(help="A group to hold out. Repeatable.")] = None,
    holdout_fraction: Annotated[float | None, typer.Option(help="Share of questions that choose the epoch.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a judge on labelled questions; the defaults are the recipe of the embedded one."""
    from dataclasses import replace

    from s2r_ray.errors import UsageError
    from s2r_ray.judge.evaluate import read_labelled
    from s2r_ray.judge.train import TrainConfig, train_judge
    from s2r_ray.progress import Progress

    target = Path(out).expanduser()
    if (target / "config.json").exists():
        raise UsageError(f"--out {out}: there is a model in it already; choose an empty folder")
    if bool(holdout_column) != bool(holdout_value):
        raise UsageError("--holdout-column and --holdout-value go together")
    recipe = TrainConfig()
    settings = replace(
        recipe,
        seed=seed,
        threads=threads,
        threshold=threshold,
        base=base,
        holdout_values=tuple(holdout_value or ()),
        epochs=epochs or recipe.epochs,
        learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
        holdout_fraction=recipe.holdout_fraction if holdout_fraction is None else holdout_fraction,
    )
    examples = read_labelled(labels, question_column, label_column, group_column=holdout_column)
    result = train_judge(examples, target, settings, Progress(quiet=quiet).say)
    figures = {
        "judge": str(result.out_dir),
        "parameters": result.parameters,
        "train_rows": result.train_rows,
        "best_epoch": result.best_epoch,
        "held_out": result.held_out,
        "seconds": round(result.seconds, 1),
    }
    if as_json:
        _print_json(figures)
        return
    sys.stdout.write(f"judge of {result.parameters:,} parameters: {result.out_dir}\n")
    for name in ("n", "spearman", "auc"):
        if result.held_out.get(name) is not None:
            sys.stdout.write(f"held out {name:<10} {result.held_out[name]:.4g}\n")


def main() -> None:
    """The console script: runs a command and turns known errors into a message and an exit code."""
    signal.signal(signal.SIGTERM, partial(_stop, own_stream(sys.stderr)))  # `ray job stop`, a pod that is moved
    try:
        exit_code = app(standalone_mode=False) or 0
    except TooManyErrors as error:
        sys.stderr.write(error.table + "\n")
        _fail(str(error), error.exit_code)
    except S2RError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001  # the edge: nobody should meet a traceback
        if isinstance(error, _WRONG_USAGE):
            error.show()
            sys.exit(2)
        log = Path(tempfile.gettempdir()) / f"s2r-error-{os.getpid()}.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        _fail(f"unexpected {type(error).__name__}: {error}. Please report it with {log}", 1)
    if exit_code == _INTERRUPTED:  # what typer makes of Ctrl-C
        _fail(_STOPPED, exit_code)
    sys.exit(exit_code)


def _stop(stream: TextIO, *_: object) -> NoReturn:
    """End at once. An exception out of a signal handler can meet native code of Ray, which aborts; what is written is
    written whole or not at all, so nothing needs to be put in order."""
    stream.write(f"error: {_STOPPED}\n")
    stream.flush()
    os._exit(_TERMINATED)


def _fail(message: str, exit_code: int) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(exit_code)


def _overrides(
    pool: list[str] | None = None,
    out: str | None = None,
    preset: str | None = None,
    tokenizer: str | None = None,
    judge: str | None = None,
    engine: str | None = None,
    candidates: str | None = None,
    weight: list[str] | None = None,
    budget: list[str] | None = None,
    max_bad_files: int | None = None,
    max_error_rate: str | None = None,
    verbose: bool = False,
    label: list[str] | None = None,
) -> dict[str, Any]:
    """Options as configuration keys; what was not given is left out."""
    from s2r_ray.errors import UsageError

    if preset and not pool:
        raise UsageError("--preset goes with --pool; for pools of the configuration file set `preset` there")
    if label and not pool:
        raise UsageError("--label goes with --pool; for pools of the configuration file set `labels` there")
    judge_keys = {name: value for name, value in {"model": judge, "engine": engine}.items() if value is not None}
    keys: dict[str, Any] = {
        "pools": [{"uri": uri, "preset": preset, "labels": _labels(label or [])} for uri in pool] if pool else None,
        "out": out,
        "tokenizer": tokenizer,
        "judge": judge_keys or None,
        "candidates": candidates,
        "weights": _weights(weight) if weight else None,
        "budgets": budget or None,
        "max_bad_files": max_bad_files,
        "max_error_rate": max_error_rate,
        "workers": {"logs": True} if verbose else None,
    }
    return {name: value for name, value in keys.items() if value is not None}


def _labels(options: list[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    return {name: column if separator else name for name, separator, column in pairs}


def _weights(options: list[str]) -> dict[str, str]:
    from s2r_ray.errors import UsageError

    pairs = [option.partition("=") for option in options]
    for option, (name, separator, value) in zip(options, pairs, strict=True):
        if not name or not separator or not value:
            raise UsageError(f"--weight {option}: expected NAME=VALUE, such as difficulty=0.25")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _config(file: str | None, overrides: dict[str, Any]) -> Any:
    from s2r_ray.config import load_config

    return load_config(file, overrides)


def _show_run(record: Any, place: Any, as_json: bool, difference: Any = None) -> None:
    from s2r_ray.summary import diff_summary, diff_text, run_summary, top_table

    if as_json:
        _print_json(run_summary(record, place) | ({"diff": diff_summary(difference)} if difference else {}))
    else:
        sys.stdout.write(top_table(record, place) + (f"\n{diff_text(difference)}" if difference else ""))


def _diff_before(out: Any, run_id: str, progress: Any) -> Any:
    """This run against the finished one before it; None, and a word about it, where they cannot be compared."""
    from s2r_ray.diff import choose_runs, diff_runs
    from s2r_ray.errors import UsageError

    try:
        return diff_runs(out, *choose_runs(out, after=run_id))
    except UsageError as error:
        progress.say(f"no diff: {error}")
        return None


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
