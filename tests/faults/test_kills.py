"""Whatever is killed, whenever: the next start ends with the same manifests, and little is judged twice.

`KILLS=500` (`make chaos`) kills so many times; the ordinary suite half a dozen. `SEED` gives other moments.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from s2r_ray.storage import Place
from tests.command import results
from tests.faults.conftest import BATCH, WORKERS, Cluster, Job, job, judged_rows, published, score_parts

pytestmark = [pytest.mark.ray, pytest.mark.faults]

KILLS = int(os.environ.get("KILLS", "6"))
SEED = int(os.environ.get("SEED", "0"))
KILLS_PER_RUN = 4
KINDS = ("driver", "judge", "node")
INDEXED_BEFORE = 0.6
"""Share of the runs that begin with judging, where most time is spent; the others begin with nothing."""


class Chaos:
    """Kills something of a run that is under way; True if there was something to kill."""

    def __init__(self, running: Job, cluster: Cluster, chance: random.Random) -> None:
        self.job = running
        self.cluster = cluster
        self.chance = chance

    def driver(self) -> bool:
        """The process that holds the run together; it is started again at once."""
        alive = self.job.is_running()
        if alive:
            self.job.kill()
            self.job.start()
        return alive

    def judge(self) -> bool:
        """One judge worker."""
        workers = self.job.judges()
        if workers:
            self.chance.choice(workers).kill()
        return bool(workers)

    def node(self) -> bool:
        """A whole node, and another one comes."""
        self.cluster.kill_node()
        self.cluster.add_node()
        return True


@pytest.mark.timeout(1200)  # each kill costs a start, which takes a minute on a busy machine
def test_killed_at_random(
    tmp_path: Path, pool: Path, tokenizer_dir: Path, cluster: Cluster, undisturbed: tuple[Place, int]
) -> None:
    """Catches: a run that cannot go on after its driver, a judge or a node was killed, at any stage, that ends with
    other manifests, that loses a question, or that judges again more than was in flight."""
    chance = random.Random(SEED)
    quiet, questions = undisturbed
    expected = results(published(quiet)[1])
    kinds: list[str] = []
    kills: Counter[str] = Counter()
    while kills.total() < KILLS:
        folder = tmp_path / str(kills.total())
        running = job(folder, pool, tokenizer_dir, cluster)
        out = Place.of(folder / "out")
        if chance.random() < INDEXED_BEFORE:
            shutil.copytree(Path(quiet.uri) / "index", folder / "out" / "index")
        running.start()
        chaos = Chaos(running, cluster, chance)
        told: list[str] = []
        while running.is_running() and len(told) < KILLS_PER_RUN and kills.total() < KILLS:
            # Half of the moments by the clock, from start-up on; half by how much is scored, to hit the judging.
            if chance.random() < 0.5:
                running.wait_seconds(chance.uniform(0, 8))
            else:
                running.wait_for_scores(out, len(score_parts(out)) + chance.randrange(1, 8))
            kinds = kinds or chance.sample(KINDS, len(KINDS))
            kind = kinds.pop()
            before = len(score_parts(out))
            if running.is_running() and getattr(chaos, kind)():
                told.append(f"{kind} after {before} parts")
                kills[kind] += 1
        code = running.wait()
        if code:  # workers were lost more often than a run puts up with: start it once more
            assert code == 1, running.log()
            assert "error: a worker failed" in running.log(), running.log()
            running.start()
            assert running.wait() == 0, running.log()
        record, run = published(out)
        story = f"seed {SEED}: {', '.join(told)}\n{running.log()}"
        assert results(run) == expected, story
        keys = judged_rows(out)
        assert len(set(keys)) == questions, story
        assert len(keys) - questions <= WORKERS * BATCH * len(told), story
        assert record["counts"]["indexed"] == record["counts"]["ranked"] + record["counts"]["excluded"]
        sys.stdout.write(f"{len(told)} kills, {len(keys) - questions} of {questions} judged twice; {story}\n")
        shutil.rmtree(folder)
    sys.stdout.write(f"survived {kills.total()} kills: {dict(kills)}\n")
