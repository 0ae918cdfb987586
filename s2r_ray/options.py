"""Options of the `s2r` command that set a key of the configuration: each is said once, here, whoever takes it.

A command names the options it takes and gets the configuration that they make:

    @app.command()
    @configured("out", *RANKING)
    def select(settings: Config, as_json: AsJson = False) -> None: ...

Nothing heavy is imported: `--help` and shell completion read this file.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Literal

import typer

from s2r_ray import completion
from s2r_ray.errors import UsageError

if TYPE_CHECKING:
    from s2r_ray.config import Config

    Command = Callable[Concatenate[Config, ...], None]

AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", metavar="", help="No progress on standard error.")]
_ConfigFile = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="YAML file with settings, see `s2r init`; options override it."),
]


@dataclass(frozen=True)
class Setting:
    """An option for one key of the configuration.

    Attributes:
        key: of the configuration, dotted; `pools.` stands for each pool that --pool names.
        kind: what the option takes; a list: it may be repeated.
        text: what it is, with its unit.
        metavar: what stands for its value in the help; none for choices, empty for switches.
        default: of the key, in words as the option would take it; a test holds it against the configuration.
        flag: where it is not the option's name.
        complete: what a shell offers.
        read: from what was typed to the key's value.
    """

    key: str
    kind: Any
    text: str
    metavar: str | None = None
    default: str | None = None
    flag: str | None = None
    complete: Callable[..., Iterable[str]] | None = None
    read: Callable[[Any], Any] = lambda value: value

    def annotation(self, name: str) -> Any:
        """What typer makes an option from."""
        option = typer.Option(
            self.flag or f"--{name.replace('_', '-')}",
            help=self.text,
            show_default=self.default or False,
            metavar=self.metavar,
            autocompletion=self.complete,
        )
        return Annotated[self.kind | None, option]


def _labels(options: list[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    return {name: column if separator else name for name, separator, column in pairs}


def _weights(options: list[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for option, (name, separator, value) in zip(options, pairs, strict=True):
        if not name or not separator or not value:
            raise UsageError(f"--weight {option}: expected NAME=VALUE, such as difficulty=0.25")
    return {name.strip(): value.strip() for name, _, value in pairs}


SETTINGS: Mapping[str, Setting] = {
    "pool": Setting(
        "pools", list[str], "Pool to select from: file, folder or glob; a path or s3://. Repeatable.", "URI"
    ),
    "preset": Setting(
        "pools.preset",
        str,
        "Column mapping of the pools, by name.",
        "NAME",
        "openr1-math-220k",
        complete=completion.presets,
    ),
    "label": Setting(
        "pools.labels",
        list[str],
        "Column of the pools to call samples by, as NAME=COLUMN or just COLUMN. Repeatable.",
        "COLUMN",
        "those of the preset",
        read=_labels,
    ),
    "out": Setting("out", str, "Where everything is written and kept; a path or s3://.", "URI"),
    "tokenizer": Setting(
        "tokenizer",
        str,
        "Folder, s3:// or hub id of the student's tokenizer, for lengths in tokens.",
        "MODEL",
        "embedded",
    ),
    "candidates": Setting(
        "candidates", Literal["first", "longest", "all"], "Which traces of a problem compete.", default="first"
    ),
    "max_bad_files": Setting("max_bad_files", int, "Unreadable files to put up with.", "COUNT", "0"),
    "max_error_rate": Setting(
        "max_error_rate", str, "Share of broken rows, and of unjudged questions, to put up with.", "SHARE", "0.1%"
    ),
    "judge": Setting("judge.model", str, "Folder, s3:// or hub id of the judge.", "MODEL", "embedded"),
    "engine": Setting("judge.engine", Literal["vllm", "transformers"], "What runs the judge.", default="vllm"),
    "base_model": Setting("rollouts.model", str, "Folder, s3:// or hub id of the model that solves.", "MODEL"),
    "rollouts": Setting("rollouts.n", int, "Solutions drawn for each question.", "COUNT", "8"),
    "questions": Setting("rollouts.questions", int, "Questions at the most, drawn by lot.", "COUNT", "none"),
    "weight": Setting(
        "weights",
        list[str],
        "Weight of a signal's rank, as NAME=VALUE; signals that are not named weigh 0. Repeatable.",
        "NAME=VALUE",
        "difficulty=0.25 length=0.75",
        complete=completion.weights,
        read=_weights,
    ),
    "filter": Setting(
        "filter", str, "What a candidate must pass to be ranked, such as 'length_rank < 0.5'.", "TEXT", "none"
    ),
    "budget": Setting(
        "budgets",
        list[str],
        "Share of the ranked traces to select, in per cent. Repeatable.",
        "SHARE",
        "2% 5% 10%",
        complete=completion.budgets,
    ),
    "stratify_by": Setting(
        "strata.by", str, "Label inside of whose groups to rank and to fill budgets.", "LABEL", "none"
    ),
    "strata_share": Setting(
        "strata.share",
        Literal["proportional", "equal"],
        "What each group gets of a budget.",
        default="proportional",
    ),
    "baseline": Setting(
        "baselines",
        list[str],
        "Manifests to compare with: random, longest, shortest, a signal's name, middle:SIGNAL, round_robin:rds, "
        "stratified:LABEL. Repeatable.",
        "NAME",
        "none",
        complete=completion.baselines,
    ),
    "seed": Setting("seed", int, "Of the baselines that draw lots.", "NUMBER", "0"),
    "verbose": Setting("workers.logs", bool, "Show the logs of Ray and the engine.", ""),
}
"""Every option that sets a key, by its name in Python."""

READING = ("pool", "preset", "label", "tokenizer", "candidates", "max_bad_files", "max_error_rate")
"""What stage 1 takes."""
JUDGING = ("judge", "engine")
"""What stage 2 takes."""
RANKING = ("weight", "filter", "budget", "stratify_by", "strata_share", "baseline", "seed")
"""What stages 3 and 4 take."""


def configured(*names: str) -> Callable[[Command], Callable[..., None]]:
    """Give a command these options of SETTINGS, and --config, before its own; it is called with the configuration that
    they make in place of them."""

    def decorate(command: Command) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(config: str | None, **given: Any) -> None:
            from s2r_ray.config import load_config

            settings = load_config(config, overrides({name: given.pop(name) for name in names}))
            command(settings, **given)

        # The class is not imported where a command is defined: its module takes longer than --help may.
        _, *own = inspect.signature(command, eval_str=True, locals={"Config": object}).parameters.values()
        kinds = {"config": _ConfigFile} | {name: SETTINGS[name].annotation(name) for name in names}
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in kinds.items()
        ]
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in (*shared, *own)}
        with_options.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]  # typer reads it
        return with_options

    return decorate


def overrides(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as configuration keys; what is None was not given and is left out.

    Raises:
        UsageError: --weight is not NAME=VALUE, or --preset or --label stand without --pool.
    """
    values = {name: SETTINGS[name].read(value) for name, value in given.items() if value is not None}
    of_pools = {name: key for name, key in (("preset", "preset"), ("label", "labels")) if name in values}
    if "pool" in values:
        pool = {key: values.pop(name) for name, key in of_pools.items()}
        values["pool"] = [{"uri": uri, **pool} for uri in values["pool"]]
    elif of_pools:
        name, of_pool = next(iter(of_pools.items()))
        raise UsageError(f"--{name} goes with --pool; for pools of the configuration file set `{of_pool}` there")
    keys: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = SETTINGS[name].key.split(".")
        place = functools.reduce(lambda below, section: below.setdefault(section, {}), sections, keys)
        place[key] = value
    return keys


def print_json(content: Mapping[str, Any]) -> None:
    """A result for machines: one object on standard output."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
