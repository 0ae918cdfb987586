"""Judge workers come and go as asked, and are gone before anything is ranked."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2r_ray import pipeline
from s2r_ray.cluster import stream_tasks
from s2r_ray.config import load_config
from s2r_ray.errors import S2RError, WorkersLostError
from s2r_ray.progress import Progress
from s2r_ray.signals.base import Resources, Scores, Subject
from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.fakes import HashJudge

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

LEAST, MOST = 1, 3


@dataclass(frozen=True)
class Many(HashJudge):
    """Takes its time, and leaves its process id when it first works."""

    folder: str = ""

    def resources(self, gpus_in_cluster: float) -> Resources:
        """See `Signal`."""
        del gpus_in_cluster
        return Resources(workers=(LEAST, MOST), cpus=0.5, batch=4)

    def score(self, batch: Sequence[Subject]) -> Scores:
        """See `Signal`."""
        Path(self.folder, str(os.getpid())).touch()
        time.sleep(0.3)
        return super().score(batch)


def test_workers_come_and_go(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a pool of workers that stays at its least, and GPUs that are held while the driver ranks."""
    write_pool(Place.of(tmp_path / "pool"), 120, 3, 60)
    pids = tmp_path / "pids"
    pids.mkdir()
    seen = {}

    def watched(*arguments: Any) -> Any:
        import ray

        seen["judges"] = len(list(pids.iterdir()))
        limit = time.monotonic() + 2  # the cluster hears of it after a moment
        while (free := ray.available_resources()["CPU"]) < 4 and time.monotonic() < limit:
            time.sleep(0.05)
        seen["free"] = free
        return rank(*arguments)

    rank = pipeline.rank
    monkeypatch.setattr(pipeline, "rank", watched)
    config = load_config(None, {
        "pools": [{"uri": str(tmp_path / "pool")}], "out": str(tmp_path / "out"), "tokenizer": str(tokenizer_dir),
        "guards": {"cutoff_tokens": 0},
    })  # fmt: skip
    pipeline.run(config, Progress(quiet=True), [Many(folder=str(pids))])
    assert LEAST < seen["judges"] <= MOST
    assert seen["free"] == 4, "resources that nobody gave back"


def nap(item: dict[str, Any]) -> dict[str, Any]:
    """When it began and ended."""
    del item
    began = time.time()
    time.sleep(0.3)
    return {"began": began, "ended": time.time()}


def test_no_more_tasks_at_once_than_asked() -> None:
    """Catches: a bound that is not kept. Seen without one: an autoscaler whose CPU nodes are full starts GPU
    nodes for the tasks that wait, although these cannot run there."""
    for most, seen in ((None, range(2, 5)), (1, range(1, 2))):
        done = list(stream_tasks([{"item": number} for number in range(12)], nap, 1, {}, most))
        at_once = max(sum(other["began"] <= one["began"] < other["ended"] for other in done) for one in done)
        assert len(done) == 12
        assert at_once in seen


def dies(item: str) -> str:
    """`always` takes its process with it, `once` the first time alone."""
    mark = Path(item)
    if mark.name == "always" or (mark.name == "once" and not mark.exists()):
        mark.touch()
        os._exit(1)
    return mark.name


def test_a_task_whose_process_dies_is_tried_again_and_not_for_ever(tmp_path: Path) -> None:
    """Catches: a file lost with the process that read it, and one that no process survives tried without end."""
    items = [str(tmp_path / name) for name in ("once", "never")]
    assert sorted(stream_tasks(items, dies, 1, {})) == ["never", "once"]
    with pytest.raises(WorkersLostError, match="a worker failed at ALWAYS: "):
        list(stream_tasks([str(tmp_path / "always")], dies, 1, {}, named=lambda item: Path(item).name.upper()))


def marks(folder: Path, item: int) -> int:
    """Leaves a file, a while after it began; the first item is at fault."""
    if item == 0:
        raise ValueError("no such number")
    time.sleep(0.5)
    (folder / str(item)).touch()
    return item


def test_tasks_end_with_the_one_that_fails(tmp_path: Path) -> None:
    """Catches: an error that hides what was raised, and tasks that go on after nobody waits for them."""
    with pytest.raises(S2RError, match="a worker failed at 0: ValueError: no such number"):
        list(stream_tasks(range(200), partial(marks, tmp_path), 1, {}))
    time.sleep(2)
    left = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == left < 100
