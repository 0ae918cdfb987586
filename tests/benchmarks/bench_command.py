"""The judge as its users meet it: the `s2r` command, against a process that loads the bare engine and generates.

Start-up: from the command to the first scores in the store, over a small pool, which is read first. The other side is
the bare engine from its process's start until it is loaded, no prompt judged.

From command to last score: over a pool that is new, and over one that is in the index already. The other side is a
process that imports vLLM, loads the engine and generates for the same prompts, which it is given as token ids. It is
there twice: with the engine in that process, as the judge's worker has it, and apart, in a process of its own, as vLLM
has it by default.

With `--shape`, start-up alone, of a judge that takes about as long to load as a real one (random_judge.py).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from s2r_ray.judge import EMBEDDED_JUDGE
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.benchmarks.bare import write_prompts
from tests.benchmarks.commands import Measured, measured, s2r, written
from tests.benchmarks.random_judge import SHAPES, settings_for, write_judge
from tests.benchmarks.table import Row, compared, show

SMALL = 100
_FEW = 4
_FILES = 8
_MEAN_APART = 0.01


@dataclass(frozen=True)
class Side:
    """Seconds until the first score, or until the engine is loaded; until the last score; the largest memory."""

    first: float
    last: float
    peak_mib: float


def run(problems: int = 25_200, seed: int = 0, repeats: int = 3, small: int = SMALL, files: int = _FILES) -> list[Row]:
    """Six rows. About four fifths of the problems have a candidate and a question of their own.

    Raises:
        AssertionError: the two sides judged other prompts, or their scores differ.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        few, whole = folder / "few", folder / "whole"
        write_pool(Place.of(few / "pool"), small, seed, small)
        write_pool(Place.of(whole / "pool"), problems, seed, -(-problems // files))
        prompts, out = folder / "prompts.json", whole / "out"
        ours: dict[str, list[Side]] = {"start": [], "new": [], "indexed": []}
        bare: dict[str, list[Side]] = {"ids": [], "ids-apart": []}
        for _ in range(repeats):
            for stale in (few / "out", out):
                shutil.rmtree(stale, ignore_errors=True)
            ours["start"].append(judged(few, few / "out"))
            ours["new"].append(judged(whole, out))
            shutil.rmtree(out / "scores")
            ours["indexed"].append(judged(whole, out))
            if not prompts.exists():
                write_prompts(prompts, EMBEDDED_JUDGE, questions(out))
            for way, sides in bare.items():
                done = measured(sys.executable, "-m", "tests.benchmarks.bare", way, str(EMBEDDED_JUDGE), str(prompts))
                sides.append(bare_side(done))
                count = check_same(done.json(), out)
    first = f"start-up: command to first scores, {small} problems / bare engine load"
    last = "judge, from command to last score, {:,} questions{} / bare load and generate{}"
    return [
        row(first, ours["start"], bare["ids"], 0),
        row(first + ", engine apart", ours["start"], bare["ids-apart"], 0),
        row(last.format(count, "", ""), ours["new"], bare["ids"]),
        row(last.format(count, ", indexed before", ""), ours["indexed"], bare["ids"]),
        row(last.format(count, "", ", engine apart"), ours["new"], bare["ids-apart"]),
        row(last.format(count, ", indexed before", ", engine apart"), ours["indexed"], bare["ids-apart"]),
    ]


def start_up(shape: str, seed: int = 0, repeats: int = 3, problems: int = _FEW) -> list[Row]:
    """Two rows, with a judge of this shape on both sides. On a CPU one of real size takes half a second a question: few
    problems, so that what is measured is the start."""
    ours: list[Side] = []
    bare: dict[str, list[Side]] = {"ids": [], "ids-apart": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_pool(Place.of(folder / "pool"), problems, seed, problems)
        write_judge(folder / "model", shape)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings_for(folder / "model")), encoding="utf-8")
        prompts = folder / "prompts.json"
        write_prompts(prompts, folder / "model", ["What is 1 + 1?"])  # the engine's load alone counts
        for _ in range(repeats):
            shutil.rmtree(folder / "out", ignore_errors=True)
            ours.append(judged(folder, folder / "out", "--config", folder / "config.yaml"))
            for way, sides in bare.items():
                command = [sys.executable, "-m", "tests.benchmarks.bare", way, str(folder / "model"), str(prompts)]
                sides.append(bare_side(measured(*command)))
    first = f"start-up: command to first scores, {problems} problems, {shape} / bare engine load"
    return [row(first, ours, bare["ids"], 0), row(first + ", engine apart", ours, bare["ids-apart"], 0)]


def judged(folder: Path, out: Path, *options: str | Path) -> Side:
    """The command over the pool in a folder."""
    done = s2r("score", "--pool", folder / "pool", "--out", out, *options)
    parts = written(out / "scores")
    sys.stderr.write(
        f"s2r, {folder.name}: {done.seconds:.1f} s, {done.cpu_seconds:.1f} s of CPU, {done.json()['seconds']}\n"
    )
    return Side(parts[0] - done.began, parts[-1] - done.began, done.peak_mib)


def bare_side(done: Measured) -> Side:
    """The other side. The warm-up that it does for other benchmarks is taken off."""
    told = done.json()
    sys.stderr.write(f"bare: {done.seconds:.1f} s, {done.cpu_seconds:.1f} s of CPU, {told}\n")
    return Side(told["ready"] - done.began, told["done"] - told["warm_up"] - done.began, done.peak_mib)


def row(name: str, ours: list[Side], bare: list[Side], last: int = 1) -> Row:
    """Of the seconds until the last score, or else the first."""
    own, other = ([side.last if last else side.first for side in sides] for sides in (ours, bare))
    return compared(name, own, other, max(side.peak_mib for side in ours), max(side.peak_mib for side in bare))


def questions(out: Path) -> list[str]:
    """The texts of the questions that a command has judged."""
    texts: dict[bytes, str] = {}
    for file in sorted((out / "index").rglob("*.questions.parquet")):
        table = pq.read_table(file)
        texts.update(zip(table["question_key"].to_pylist(), table["question"].to_pylist(), strict=True))
    return list(texts.values())


def check_same(told: dict[str, Any], out: Path, traces: int = 1) -> int:
    """The number of questions in the store, if the other side judged each so many times and means are the same."""
    values = pq.read_table([str(part) for part in (out / "scores").rglob("part-*.parquet")], columns=["value"])["value"]
    mean = float(np.nanmean(values.to_numpy()))
    if told["prompts"] != len(values) * traces or not abs(mean - told["mean"]) < _MEAN_APART:
        raise AssertionError(f"{len(values)} questions with mean {mean}, the other side says {told}")
    return len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=25_200)
    parser.add_argument("--small", type=int, default=SMALL)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shape", choices=list(SHAPES))
    given = parser.parse_args()
    if given.shape:
        sys.stdout.write(show(start_up(given.shape, given.seed, given.repeats)))
        return
    sys.stdout.write(show(run(given.problems, given.seed, given.repeats, given.small)))


if __name__ == "__main__":
    main()
