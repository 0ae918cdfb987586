"""The engine's own process dies under a worker that lives."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from s2r_ray.storage import Place
from s2r_ray.synth import write_pool
from tests.faults.conftest import judged_rows, published, score_parts

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.faults]

BATCH = 16


def engines(parent: psutil.Process) -> list[psutil.Process]:
    """vLLM's engine processes below this one."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in parent.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "EngineCore" in f"{process.name()} {' '.join(process.cmdline())}":
                    found.append(process)
    return found


def test_the_engine_process_is_killed(tmp_path: Path) -> None:
    """Catches: a dead engine whose every question counts as failed, that ends the run, or that is not mentioned."""
    write_pool(Place.of(tmp_path / "pool"), 1200, 7, 300)
    out = Place.of(tmp_path / "out")
    config = {
        "pools": [{"uri": str(tmp_path / "pool")}],
        "out": out.uri,
        "workers": {"judge_batch": BATCH, "hang_seconds": 60},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(
            [Path(sys.executable).parent / "s2r", "run", "--config", tmp_path / "config.yaml"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**kept, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        )
    killed = 0
    while running.poll() is None and not killed:
        if score_parts(out):
            for engine in engines(psutil.Process(running.pid)):
                killed += 1
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.kill()
        time.sleep(0.02)
    assert running.wait(300) == 0, (tmp_path / "log").read_text()
    said = (tmp_path / "log").read_text()
    assert killed, said
    # vLLM either notices, or waits for ever for the answer of a process that is gone.
    noticed = "warning: a worker failed: EngineError: the judge failed: EngineDeadError" in said
    assert noticed or "warning: a difficulty worker died, or hung for more than 60 s, and was replaced" in said, said
    record, _ = published(out)
    # Twice where the machine is so busy that loading again takes longer than a worker may hang.
    assert 1 <= record["counts"]["restarts"] + record["counts"]["workers_replaced"] <= 2
    assert not [reason for reason in record["excluded"] if reason.startswith("difficulty_failed")]
    rows = judged_rows(out)
    assert record["counts"]["questions"] == len(set(rows))
    assert len(rows) - len(set(rows)) <= BATCH
