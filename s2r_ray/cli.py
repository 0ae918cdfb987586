"""The `s2r` command. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 Ctrl-C, 143 SIGTERM. Heavy modules are imported inside
the commands, so that `s2r --help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import platform
import signal
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer

from s2r_ray import __version__, completion
from s2r_ray.errors import S2RError, TooManyErrors, UsageError
from s2r_ray.judge.cli import app as judge_app
from s2r_ray.options import JUDGING, RANKING, READING, AsJson, Quiet, configured, print_json
from s2r_ray.quiet import own_stream

if TYPE_CHECKING:
    from s2r_ray.config import Config
    from s2r_ray.diff import Diff
    from s2r_ray.progress import Progress
    from s2r_ray.publish import RunRecord
    from s2r_ray.storage import Place

# Typer's base class of usage errors has no public name; its public errors derive from it.
_WRONG_USAGE: Any = typer.BadParameter.__bases__[0].__bases__[0]

_INTERRUPTED = 130
_TERMINATED = 128 + signal.SIGTERM
_STOPPED = "stopped; what was indexed and judged is kept, run the same command again to go on"
_BEGIN_AGAIN = "stopped; nothing half-done counts, run the same command again"
_GO_ON = ("run", "score")

RunName = Annotated[
    str,
    typer.Option(
        metavar="RUN", help="Id of a run or its beginning, its folder, or latest.", autocompletion=completion.runs
    ),
]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pick the few per cent of a pool of reasoning traces that are worth training on.",
)
app.add_typer(judge_app, name="judge")


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"s2r_ray {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Pick the few per cent of a pool of reasoning traces that are worth training on."""


@app.command()
@configured("out", *READING, *JUDGING, *RANKING, "verbose")
def run(
    settings: Config,
    compare: Annotated[
        bool, typer.Option("--diff", metavar="", help="Then show what changed since the run before.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Index the pools, judge what is new, rank everything and write manifests and a report."""
    from s2r_ray import pipeline
    from s2r_ray.progress import Progress

    progress = Progress(quiet=quiet)
    record, place = pipeline.run(settings, progress)
    _show_run(record, place, as_json, _diff_before(settings.out_place(), record.run_id, progress) if compare else None)


@app.command()
@configured("out", *READING, *JUDGING, *RANKING)
def plan(settings: Config, as_json: AsJson = False) -> None:
    """Say what a run would read and judge, and check everything it needs. Changes nothing."""
    from s2r_ray.pipeline import try_cluster
    from s2r_ray.plan import prepare, summarize
    from s2r_ray.progress import Progress

    planned = prepare(settings)
    try_cluster(planned, Progress())
    summary = summarize(planned)
    if as_json:
        print_json(summary)
        return
    for name, value in summary.items():
        shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else value
        shown = "not known before the files are read" if value is None else shown
        sys.stdout.write(f"{name.replace('_', ' '):<28} {shown}\n")


@app.command()
@configured("out", *READING, *JUDGING, "verbose")
def score(settings: Config, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Index the pools and judge what is new; `select` does the rest."""
    from s2r_ray import pipeline
    from s2r_ray.progress import Progress

    scored = pipeline.score(settings, Progress(quiet=quiet))
    if as_json:
        print_json({"counts": scored.counts, "seconds": scored.seconds, "snapshot": scored.snapshot.digest()})
        return
    sys.stdout.write(f"scored; now: s2r select --out {settings.out}\n")


@app.command()
@configured("out", *RANKING)
def select(settings: Config, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Rank again from what is stored, with other weights or budgets: no model, no GPU, a new run."""
    from s2r_ray import pipeline
    from s2r_ray.progress import Progress

    record, place = pipeline.select(settings, Progress(quiet=quiet))
    _show_run(record, place, as_json)


@app.command("export")
@configured("out")
def export_selection(
    settings: Config,
    to: Annotated[str, typer.Option(metavar="URI", help="Folder to write to; a path or s3://.")],
    form: Annotated[
        Literal["llamafactory", "trl", "openr1", "jsonl", "parquet"],
        typer.Option(
            "--format",
            help="llamafactory: data, entry in dataset_info.json and training file; trl: column `messages`; "
            "openr1: all columns of the pool; jsonl, parquet: texts and scores.",
        ),
    ],
    run: RunName = "latest",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Budget of the run, in per cent.",
            show_default="the run's only one",
            autocompletion=completion.budgets,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Baseline of the run to write instead.", show_default="the joint ranking"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Shuffle with this seed.", show_default="the order of rank, best first"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of file and data set.",
            show_default="train; llamafactory: s2r_top_SHAREpct and the like",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace what is there already.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the selected rows with their texts, in the form that a training framework takes."""
    from s2r_ray.config import load_config
    from s2r_ray.export import export, find_selection, summary, text
    from s2r_ray.progress import Progress
    from s2r_ray.storage import Place

    asked = load_config(None, {"budgets": [budget]}).budgets[0] if budget is not None else None
    selection = find_selection(*_named_run(settings, run), asked, baseline)
    target = Place.of(to, settings.storage.options())
    exported = export(selection, form, target, Progress(quiet=quiet), name=name, seed=seed, force=force)
    if as_json:
        print_json(summary(exported))
    else:
        sys.stdout.write(text(exported))


@app.command()
@configured("out")
def report(
    settings: Config,
    run: RunName = "latest",
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="NAME", help="Label whose shares to show. Repeatable.", show_default="all of the index"
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="URI", help="File to write; a path or s3://.", show_default="report.html of the run"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Write over the file that --to names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the report of a finished run anew, from what the run and the index have stored."""
    from s2r_ray.report.page import remake_report
    from s2r_ray.storage import Place

    out, run_id = _named_run(settings, run)
    target = Place.of(to, settings.storage.options()) if to else None
    if target and target.exists() and not force:
        raise UsageError(f"--to {target} is there already; give --force to write over it")
    place = remake_report(out, run_id, label or (), target)
    if as_json:
        print_json({"run_id": run_id, "report": place.uri})
    else:
        sys.stdout.write(f"{place.uri}\n")


@app.command()
@configured("out")
def diff(
    settings: Config,
    run_a: Annotated[
        str | None,
        typer.Argument(
            help="The earlier run: an id or its beginning.",
            show_default="the one before B",
            autocompletion=completion.runs,
        ),
    ] = None,
    run_b: Annotated[
        str | None,
        typer.Argument(help="The later run.", show_default="the newest finished one", autocompletion=completion.runs),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARE",
            help="Budget to compare, in per cent. Repeatable.",
            show_default="all that both runs have",
            autocompletion=completion.budgets,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which samples entered and left the selection between two runs, and why."""
    from s2r_ray.config import load_config
    from s2r_ray.diff import choose_runs, diff_runs
    from s2r_ray.summary import diff_summary, diff_text

    place = settings.out_place()
    place.check_reachable()
    budgets = load_config(None, {"budgets": budget}).budgets if budget else ()
    found = diff_runs(place, *choose_runs(place, run_a, run_b), budgets)
    if as_json:
        print_json(diff_summary(found))
    else:
        sys.stdout.write(diff_text(found))


@app.command()
def init(
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Column mapping of the pool.", autocompletion=completion.presets)
    ] = "openr1-math-220k",
    out: Annotated[str, typer.Option(metavar="FILE", help="File to write; a path or s3://.")] = "s2r.yaml",
    force: Annotated[bool, typer.Option("--force", metavar="", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a configuration file to begin with: every key with its default and what it means."""
    from s2r_ray.config_file import starter_config
    from s2r_ray.storage import Place

    file = Place.of(out)
    text = starter_config(preset)
    if file.exists() and not file.is_file():
        raise UsageError(f"--out {out}: that is a folder; give the name of a file")
    if file.exists() and not force:
        raise UsageError(f"--out {out}: it is there already; choose another name, or --force to write over it")
    file.write_bytes(text.encode())
    if as_json:
        print_json({"config": file.uri, "preset": preset})
        return
    sys.stdout.write(f"{out}: fill in `pools` and `out`, then: s2r plan --config {out}\n")


@app.command()
def synth(
    out: Annotated[str, typer.Option(metavar="URI", help="Folder to write the pool to; a path or s3://.")],
    rows: Annotated[int, typer.Option(min=1, help="Problems to make up.")] = 2000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pool.")] = 0,
    rows_per_file: Annotated[int, typer.Option(min=1, help="Rows of one Parquet file.")] = 1000,
    task: Annotated[
        Literal["stories", "arithmetic"],
        typer.Option(help="stories: several operations; arithmetic: one, which a very small model can partly learn."),
    ] = "stories",
    as_json: AsJson = False,
) -> None:
    """Make up a pool of any size in the columns of OpenR1-Math-220k."""
    from s2r_ray.storage import Place
    from s2r_ray.synth import write_pool

    pool = Place.of(out)
    files = write_pool(pool, rows, seed, rows_per_file, task)
    if as_json:
        print_json({"pool": pool.uri, "rows": rows, "files": files})
        return
    sys.stdout.write(f"{rows:,} problems in {files} files: {out}\n")


def main() -> None:
    """The console script: runs a command and turns known errors into a message and an exit code."""
    stream = own_stream(sys.stderr)
    atexit.register(gc.freeze)  # looking for cycles before the memory goes anyway takes 0.3 s
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):  # elsewhere pyarrow may be built without it
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")  # holds a fifth less than the default
    signal.signal(signal.SIGTERM, partial(_stop, stream, _TERMINATED))  # `ray job stop`, a pod that is moved
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell said to ignore it
        signal.signal(signal.SIGINT, partial(_interrupt, stream))
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
        _fail(_stopped(), exit_code)
    sys.exit(exit_code)


def _interrupt(stream: TextIO, *_: object) -> NoReturn:
    """Where Ray works, Ctrl-C unwinds, so that it and its workers end in order, within seconds; a second one ends at
    once. Elsewhere it ends at once: an exception may be swallowed by a callback of the interpreter's own."""
    ray = sys.modules.get("ray")
    if ray is None or not getattr(ray, "is_initialized", bool)():
        _stop(stream, _INTERRUPTED)
    signal.signal(signal.SIGINT, partial(_stop, stream, _INTERRUPTED))
    raise KeyboardInterrupt


def _stop(stream: TextIO, exit_code: int, *_: object) -> NoReturn:
    """End at once. An exception out of a signal handler can meet native code of Ray, which aborts; what is written is
    written whole or not at all, so nothing needs to be put in order."""
    show_cursor = "\x1b[?25h" if stream.isatty() else ""  # a bar hides it
    stream.write(f"{show_cursor}error: {_stopped()}\n")
    stream.flush()
    os._exit(exit_code)


def _stopped() -> str:
    given = sys.argv[1:3]
    return _STOPPED if (given[:1] and given[0] in _GO_ON) or given == ["judge", "rollouts"] else _BEGIN_AGAIN


def _fail(message: str, exit_code: int) -> NoReturn:
    from s2r_ray.progress import terminal

    console = terminal(sys.stderr)
    if console:
        console.print(f"error: {message}")
    else:
        sys.stderr.write(f"error: {message}\n")
    sys.exit(exit_code)


def _named_run(settings: Config, run: str) -> tuple[Place, str]:
    from s2r_ray.runs import named_run

    return named_run(run, settings.out_place() if settings.out else None, settings.storage.options())


def _show_run(record: RunRecord, place: Place, as_json: bool, difference: Diff | None = None) -> None:
    from s2r_ray.summary import diff_summary, diff_text, run_summary, top_table

    if as_json:
        print_json(run_summary(record, place) | ({"diff": diff_summary(difference)} if difference else {}))
    else:
        sys.stdout.write(top_table(record, place) + (f"\n{diff_text(difference)}" if difference else ""))


def _diff_before(out: Place, run_id: str, progress: Progress) -> Diff | None:
    """This run against the finished one before it; None, and a word about it, where they cannot be compared."""
    from s2r_ray.diff import choose_runs, diff_runs

    try:
        return diff_runs(out, *choose_runs(out, after=run_id))
    except UsageError as error:
        progress.say(f"no diff: {error}")
        return None


if __name__ == "__main__":
    main()
