"""The `s2r` command as its users meet it: a process of its own, its exit code, what it says and what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from s2r_ray.cli import main
from s2r_ray.storage import Place

ROOT = Path(__file__).resolve().parent.parent

_LEFT_BEHIND = (
    r"index/[0-9a-f]{32}/[0-9a-f]{32}\.candidates\.parquet",
    r"index/[0-9a-f]{32}/[0-9a-f]{32}\.questions\.parquet",
    r"index/scored\.json",
    r"index/snapshots/[0-9a-f]{32}\.json",
    r"scores/difficulty/[0-9a-f]{32}/about\.json",
    r"scores/difficulty/[0-9a-f]{32}/noise\.json",
    r"scores/difficulty/[0-9a-f]{32}/part-[0-9a-f]{32}\.parquet",
    r"latest\.json",
)


@dataclass(frozen=True)
class Said:
    """What a command came to: its exit code, standard output and error, and wall seconds."""

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        found: dict[str, Any] = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def s2r(*arguments: str | Path, timeout: float = 120, without: tuple[str, ...] = (), **environment: str) -> Said:
    """Run the real entry point. No AWS variable of the caller reaches it but those given here.

    Args:
        without: modules that must not be imported by the command or anything it starts; trying raises ImportError.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    settings = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1"}
    settings["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    command = [str(Path(sys.executable).parent / "s2r"), *map(str, arguments)]
    if without:
        guard = (
            "import sys; "
            f"sys.modules.update(dict.fromkeys({without!r})); sys.argv[0] = 's2r'; "
            "from s2r_ray.cli import main; main()"
        )
        command = [sys.executable, "-c", guard, *command[1:]]
    started = time.monotonic()
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**kept, **settings, **environment},
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def s2r_interrupted(*arguments: str | Path, at: str, times: int = 1) -> Said:
    """The real entry point, with Ctrl-C (to all of its processes, as a terminal does) once a line of standard error
    begins so; `seconds` are those from then to its end."""
    command = [str(Path(sys.executable).parent / "s2r"), *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stderr
        lines: list[str] = []
        while not (lines and lines[-1].startswith(at)):
            lines.append(process.stderr.readline())
            assert lines[-1], f"{at!r} did not come: {lines}"
        started = time.monotonic()
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        out, err = process.communicate(timeout=60)
        return Said(process.returncode, out, "".join(lines) + err, time.monotonic() - started)


def s2r_inside(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> Said:
    """The same entry point in this process, to work on the tests' own Ray. The environment is afterwards as before."""
    capfd.readouterr()
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.setattr(sys, "argv", ["s2r", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    said = capfd.readouterr()
    return Said(int(ended.value.code or 0), said.out, said.err, time.monotonic() - started)


def commands() -> dict[tuple[str, ...], Any]:
    """Every command by its words, as typer builds it."""
    import typer.main

    from s2r_ray.cli import app

    def below(words: tuple[str, ...], command: Any) -> dict[tuple[str, ...], Any]:
        found = {words: command}
        for name, child in getattr(command, "commands", {}).items():
            found |= below((*words, name), child)
        return found

    return below((), typer.main.get_command(app))


def documented() -> dict[str, set[str]]:
    """The keys of each command's JSON as the reference has them."""
    reference = (ROOT / "s2r_ray" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `s2r ([a-z ]+)` \| [^|]* \| (.*) \|$", reference, re.MULTILINE)
    keys = {command: set(re.findall(r"`(\w+)`", cell)) for command, cell in rows}
    return {command: found or keys["run"] - {"diff"} for command, found in keys.items()}


def assert_told(said: Said, code: int, *parts: str) -> None:
    """The command failed as it should: this exit code, nothing on standard output, no traceback, and a last line
    that begins with `error:` and has all of these in it."""
    assert said.code == code, said
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = said.err.splitlines()
    assert [line.startswith("error: ") for line in lines].count(True) == 1, said.err
    assert lines[-1].startswith("error: "), said.err
    assert len(lines[-1]) < 700, "too long to read"
    for part in parts:
        assert part in lines[-1], f"{part!r} is not in: {lines[-1]}"


def assert_left_behind(out: Place, runs: dict[str, list[str]]) -> None:
    """OUT holds what DESIGN.md says and nothing else; `runs`: run id -> budgets."""
    expected = set()
    for run_id, budgets in runs.items():
        files = ["ranking/part-00000.parquet", "excluded.parquet", "report.html", "run.json"]
        files += [f"manifests/top-{budget}pct.parquet" for budget in budgets]
        expected |= {f"runs/{run_id}/{name}" for name in files}
    found = {file.path for file in out.files()}
    assert {path for path in found if path.startswith("runs/")} == expected
    for path in found - expected:
        assert any(re.fullmatch(pattern, path) for pattern in _LEFT_BEHIND), path
    for pattern in _LEFT_BEHIND:
        assert any(re.fullmatch(pattern, path) for path in found), f"nothing like {pattern}"


def results(run: Place) -> dict[str, str]:
    """Path -> digest of everything in a run that must not depend on how it came about."""
    names = [file.path for file in run.files() if file.path.endswith(".parquet")]
    return {name: hashlib.sha256(run.child(name).read_bytes()).hexdigest() for name in names}


def listing(folder: Path) -> list[tuple[str, int, int]]:
    """Every path below a folder with its size and time of change, sorted."""
    found = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(str(path.relative_to(folder)), status.st_size, status.st_mtime_ns) for path, status in found]
