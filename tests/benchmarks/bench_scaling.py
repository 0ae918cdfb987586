"""Judging with 1 and with 16 actors over real Ray, with a judge that only waits, so that two cores can host them.

A question waits in proportion to its length, and lengths are skewed (lognormal). Efficiency is work done per second,
over what so many actors could do at most: `work / clock / speed`, where speed is 1 per actor and 0.1 for one that is
ten times slower. The clock runs from the first batch to the end of the stage; starting Python processes, of which two
cores can start few at a time, is no part of it. Work per actor is the same on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from s2r_ray.cluster import connected
from s2r_ray.index import QUESTIONS_SCHEMA, Snapshot, questions_place
from s2r_ray.pending import find_questions
from s2r_ray.progress import Progress
from s2r_ray.ranking import Better
from s2r_ray.readers import Unit
from s2r_ray.score import score_missing
from s2r_ray.signals.base import Resources, Scores, Subject, SubjectKind
from s2r_ray.storage import Place
from s2r_ray.store import ScoreStore
from s2r_ray.tables import write_table
from tests.benchmarks.table import Row, compared

_BATCH_SECONDS = 1.0
_SLOWNESS = 10
_UNIT_QUESTIONS = 4096


@dataclass
class WaitingJudge:
    """A signal that waits. Each worker notes when it worked in `folder`; where `one_slow`, the first is slow."""

    folder: str
    actors: int
    batch: int
    seconds_per_character: float
    one_slow: bool
    factor: float = 1

    name: ClassVar[str] = "difficulty"
    subject: ClassVar[SubjectKind] = "question"
    ranked: ClassVar[Mapping[str, Better]] = {"difficulty": "high"}
    extras: ClassVar[tuple[str, ...]] = ()
    fatal: ClassVar[tuple[type[BaseException], ...]] = ()

    def fingerprint(self) -> dict[str, Any]:
        """See `Signal`."""
        return {"signal": self.name, "fake": "waits"}

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`."""
        del gpus_in_cluster
        return Resources((self.actors, self.actors), cpus=1, batch=self.batch)

    def open(self) -> None:
        """See `Signal`. All workers wait here for each other, so that they start at once."""
        folder = Path(self.folder)
        (folder / f"{os.getpid()}.ready").touch()
        while len(ready := sorted(folder.glob("*.ready"))) < self.actors:
            time.sleep(0.05)
        slow = self.one_slow and ready[0].stem == str(os.getpid())
        self.factor = _SLOWNESS if slow else 1

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        began = time.time()
        work = sum(len(subject.question) for subject in batch) * self.seconds_per_character
        time.sleep(work * self.factor)
        with (Path(self.folder) / f"{os.getpid()}.log").open("a") as log:
            log.write(json.dumps([began, time.time()]) + "\n")
        return Scores(np.zeros(len(batch)))


def run(seconds: float = 100, seed: int = 0, repeats: int = 1, actors: int = 16) -> list[Row]:
    """Three rows: one actor, many, many of which one is ten times slower; each works for some `seconds`.

    The ratio is the efficiency: 1 is as much work per second as so many actors can do.
    """
    rows = []
    for name, count, slow in (("1 actor", 1, False), (f"{actors} actors", actors, False),
                              (f"{actors} actors, one {_SLOWNESS} times slower", actors, True)):  # fmt: skip
        speed = count - (1 - 1 / _SLOWNESS if slow else 0)
        work = seconds * speed
        clocks = []
        for _ in range(repeats if count > 1 else 1):
            clock, others = measure(count, slow, work, seed)
            clocks.append(clock)
            sys.stderr.write(
                f"{name}: {clock:.1f} s for {work:.0f} s of work, all but one actor done at {others:.1f} s\n"
            )
        what = f"judging, {name}, skewed lengths, {work:,.0f} s of work / as fast as they can"
        rows.append(compared(what, clocks, [work / speed] * len(clocks)))
    return rows


def measure(actors: int, one_slow: bool, work: float, seed: int, batch: int = 64) -> tuple[float, float]:
    """(seconds from the first batch to the end of the stage, seconds until all workers but the last had ended)."""
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "workers", Place.of(Path(place) / "out")
        folder.mkdir()
        count = int(work / _BATCH_SECONDS * batch)
        snapshot, characters = _questions(out, count, seed)
        judge = WaitingJudge(str(folder), actors, batch, work / characters, one_slow)
        store = ScoreStore.of(out, judge)
        with connected(None, cpus=actors + 2):
            questions = find_questions(out, snapshot)
            pending = questions.pending(store.settled(questions.keys).mask)
            score_missing(
                out, snapshot, judge, store, questions, pending, (), judge.resources(0), {}, Progress(quiet=True)
            )
            ended = time.time()
        logs = [[json.loads(line) for line in log.read_text().splitlines()] for log in folder.glob("*.log")]
        began = min(entry[0] for log in logs for entry in log)
        ends = sorted(log[-1][1] for log in logs)
        return ended - began, ends[max(0, len(ends) - 2)] - began


def _questions(out: Place, count: int, seed: int) -> tuple[Snapshot, int]:
    """An index with so many questions, and their characters: lognormal, a mean of some 160."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(4.8, 0.8, count), 10, 5000).astype(int)
    units = []
    for number, start in enumerate(range(0, count, _UNIT_QUESTIONS)):
        some = lengths[start : start + _UNIT_QUESTIONS]
        table = {"question_key": [random.bytes(16) for _ in some], "question": ["x" * length for length in some]}
        key = f"bench/{number:032x}"
        write_table(questions_place(out, key), pa.table(table, QUESTIONS_SCHEMA))
        units.append((Unit(0, f"{number}.parquet", 1, "1"), key))
    return Snapshot(("pool",), tuple(units)), int(lengths.sum())


def main() -> None:
    from tests.benchmarks.table import show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.stdout.write(show(run(given.seconds, given.seed, actors=given.actors)))


if __name__ == "__main__":
    main()
