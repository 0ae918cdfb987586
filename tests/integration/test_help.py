"""Help and shell completion: complete, at once, and the same in every shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command import commands, s2r

COMMANDS = commands()
HEAVY = ("ray", "vllm", "torch", "transformers", "gigatoken", "s3fs", "fsspec", "pyarrow", "numpy")
OF_TYPER = ("help", "install_completion", "show_completion")


def own_parameters(words: tuple[str, ...]) -> list[Any]:
    return [parameter for parameter in COMMANDS[words].params if parameter.name not in OF_TYPER]


@pytest.mark.parametrize("words", list(COMMANDS), ids=lambda words: " ".join(words) or "s2r")
def test_help(words: tuple[str, ...]) -> None:
    """Would catch help that waits for heavy imports, or that leaves out a command, an option or what it is."""
    said = s2r(*words, "--help", without=HEAVY, COLUMNS="200")
    assert said.code == 0, said.err
    command = COMMANDS[words]
    assert " ".join(command.help.split())[:60] in " ".join(said.out.split())
    for name in getattr(command, "commands", {}):
        assert re.search(rf"\b{name}\b", said.out)
    for parameter in command.params:
        assert all(name in said.out for name in parameter.opts if name.startswith("--")), parameter.name


@pytest.mark.parametrize("words", list(COMMANDS), ids=lambda words: " ".join(words) or "s2r")
def test_every_option_says_what_it_is_and_its_default(words: tuple[str, ...]) -> None:
    """Would catch an option that was added without help, with a default that only the code knows, or whose value has
    no name."""
    command = COMMANDS[words]
    assert command.help
    assert command.help.endswith(".")
    for parameter in own_parameters(words):
        where = f"{' '.join(words)} {parameter.opts[-1]}"
        assert parameter.help, f"{where} has no help"
        assert parameter.help.endswith("."), f"{where}: {parameter.help}"
        switch = getattr(parameter, "is_flag", False)
        has_none = switch or parameter.required or parameter.name in ("config", "pool", "out", "base_model")
        shown = isinstance(parameter.show_default, str) or (parameter.show_default and parameter.default is not None)
        assert has_none or shown, f"{where} does not say its default"
        assert not (switch and parameter.show_default is not True and parameter.default), f"{where} is on by default"


def test_every_command_with_a_result_has_json() -> None:
    """Would catch a command whose result a machine would have to read off a table."""
    ends = [words for words, command in COMMANDS.items() if not hasattr(command, "commands")]
    without = [words for words in ends if "--json" not in {name for p in COMMANDS[words].params for name in p.opts}]
    assert without == []


# --- completion -------------------------------------------------------------------------------------------------------


def offered(line: str, shell: str = "bash", **environment: str) -> list[str]:
    """What the program answers a shell that asks how to go on with this line."""
    words = line.split(" ")
    settings = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    said = s2r(without=HEAVY, _S2R_COMPLETE=f"complete_{shell}", **settings, **environment)
    assert said.err == ""
    if shell == "zsh":
        return re.findall(r'"([^"]*)"(?::|$|\n|\))', said.out)
    return [item.partition("\t")[0] for item in said.out.split("\n") if item]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_answered(shell: str) -> None:
    """Would catch a shell whose question is not understood, and imports that make every press of Tab wait."""
    assert "judge" in offered("s2r ", shell)
    assert offered("s2r run --engine ", shell) == ["vllm", "transformers"]


def test_values_that_are_known_are_offered(tmp_path: Path) -> None:
    """Would catch options whose few possible values must be looked up, and a run that has no manifests offered."""
    from s2r_ray.mapping import presets

    assert offered("s2r run --preset ") == sorted(presets())
    assert offered("s2r run --preset s1k") == ["s1k", "s1k-1.1"]
    assert offered("s2r run --candidates ") == ["first", "longest", "all"]
    assert offered("s2r select --weight l") == ["length="]
    assert offered("s2r select --budget ") == ["2%", "5%", "10%"]
    assert offered("s2r init --preset lim") == ["limo"]

    for run in ("20260101T000000.000Z-aaaaaaaa", "20260102T000000.000Z-bbbbbbbb", "20260103T000000.000Z-unfinish"):
        (tmp_path / "runs" / run / "manifests").mkdir(parents=True)
        (tmp_path / "runs" / run / "manifests" / f"top-{run[7]}.5pct.parquet").touch()
        if not run.endswith("unfinish"):
            (tmp_path / "runs" / run / "run.json").touch()
    newest_first = ["20260102T000000.000Z-bbbbbbbb", "20260101T000000.000Z-aaaaaaaa"]
    assert offered(f"s2r diff --out {tmp_path} ") == newest_first
    assert offered(f"s2r diff --out {tmp_path} --budget ") == ["1.5%", "2.5%", "3.5%"]
    settings = tmp_path / "s2r.yaml"
    settings.write_text(f"out: {tmp_path}\n")
    assert offered(f"s2r diff --config {settings} ") == newest_first


def test_what_cannot_be_known_offers_nothing(tmp_path: Path) -> None:
    """Would catch a press of Tab that ends in a traceback, or that asks an object store."""
    wrong = tmp_path / "wrong.yaml"
    for text in ("- a list\n", "out: [1\n", "out: 3\n", "out: s3://bucket/x\n"):
        wrong.write_text(text)
        assert offered(f"s2r diff --config {wrong} ") == []
    assert offered(f"s2r diff --config {tmp_path}/none.yaml ") == []
    assert offered("s2r diff --out s3://bucket/selection ") == []
    assert offered(f"s2r diff --out {tmp_path}/none ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_works_in_the_shell_itself(shell: str, tmp_path: Path) -> None:
    """Would catch a script that the shell cannot read, or that calls the program by a name it does not have."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not on this machine")
    script = s2r(_S2R_COMPLETE=f"source_{shell}")
    assert script.code == 0
    file = tmp_path / "completion"
    file.write_text(script.out)
    ask = {
        "bash": 'source "$1"; COMP_WORDS=(s2r run --engine v); COMP_CWORD=3; _s2r_completion s2r; '
        'echo "${COMPREPLY[@]}"',
        "zsh": "autoload -Uz compinit; compinit -u -d $1.dump; source $1; _arguments() { print -r -- $@ }; "
        "words=(s2r run --engine v); CURRENT=4; _s2r_completion",
        "fish": 'source $argv[1]; complete -C "s2r run --engine v"',
    }[shell]
    command = [
        program,
        *(["-f"] if shell == "zsh" else []),
        "-c",
        ask,
        *([] if shell == "fish" else [shell]),
        str(file),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": path, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        check=False,
    )
    assert "vllm" in done.stdout, done
    assert "transformers" not in done.stdout
