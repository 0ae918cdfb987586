"""A whole run in a process of its own, for tests that kill things: `python tests/faults/job.py SETTINGS.json`.

The judge is a hash, slowed down; each of its workers leaves its process id in a folder, to be killed by.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s2r_ray import pipeline
from s2r_ray.config import load_config
from s2r_ray.errors import S2RError
from s2r_ray.progress import Progress
from s2r_ray.signals.base import Resources, Scores, Subject
from tests.fakes import HashJudge


@dataclass(frozen=True)
class SlowJudge(HashJudge):
    """A `HashJudge` that takes its time. `freeze` is a file: while it exists, one worker that finds it renames it and
    then never comes back. A question with `poison` in it kills its worker, one with `failing` in it fails."""

    seconds: float = 0.01
    pids: str = ""
    freeze: str = ""
    poison: str = ""
    failing: str = ""
    hang_seconds: float = 60
    restarts: int = 3

    def resources(self, gpus_in_cluster: float) -> Resources:
        """Half a core for a worker."""
        del gpus_in_cluster
        return Resources(
            workers=(self.workers, self.workers),
            cpus=0.5,
            batch=self.batch,
            restarts=self.restarts,
            hang_seconds=self.hang_seconds,
        )

    def open(self) -> None:
        """Say who is here."""
        Path(self.pids, str(os.getpid())).touch()

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        if self.freeze:
            try:
                Path(self.freeze).rename(f"{self.freeze}.found")
            except FileNotFoundError:
                pass
            else:
                time.sleep(3600)
        if self.poison and any(self.poison in subject.question for subject in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.failing and any(self.failing in subject.question for subject in batch):
            raise ValueError("no number comes of this")
        time.sleep(self.seconds * len(batch))
        return super().score(batch)


def main(settings: Path) -> int:
    """Run it; the exit code is that of the command line."""
    content = json.loads(settings.read_text())
    try:
        pipeline.run(load_config(None, content["config"]), Progress(), [SlowJudge(**content["judge"])])
    except S2RError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
