"""What workers that hold a model take, and what a node must have for one: the same for judges and students."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from s2r_ray.cluster import cluster_address
from s2r_ray.config import JudgeSection, RolloutsSection, StudentSection, WorkersSection
from s2r_ray.engines import EngineSettings
from s2r_ray.errors import S2RError
from s2r_ray.models import ModelRef, check_readable
from s2r_ray.signals.base import Resources

_PARALLEL_SHARED_MEMORY = 1 << 30
"""Bytes: the processes of one model on several GPUs pass data through it, and containers have 64 MiB unless told."""


def model_resources(workers: WorkersSection, gpus_in_cluster: float, batch: int) -> Resources:
    """Where nothing else is asked for, a model takes GPUs if there are any."""
    gpus = workers.gpus_per_judge
    if gpus is None:
        wanted = workers.accelerator_type is not None or workers.tensor_parallel > 1
        gpus = float(workers.tensor_parallel) if gpus_in_cluster or wanted else 0.0
    return Resources(
        workers=(workers.judges_min, workers.judges_max),
        cpus=workers.cpus_per_judge or 1,
        threads=None if gpus else _threads(workers),
        gpus=gpus,
        accelerator_type=workers.accelerator_type,
        custom=workers.judge_resources,
        batch=batch,
        restarts=workers.restarts,
        hang_seconds=workers.hang_seconds,
    )


def engine_settings(
    folder: Path,
    section: JudgeSection | StudentSection | RolloutsSection,
    workers: WorkersSection,
    **more: Any,
) -> EngineSettings:
    """How a section of the configuration has its model run; `more` are the settings that only some have."""
    return EngineSettings(
        model=str(folder),
        tensor_parallel=workers.tensor_parallel,
        gpu_memory_utilization=section.gpu_memory_utilization,
        trust_remote_code=section.trust_remote_code,
        **more,
    )


def check_model_node(model: ModelRef, workers: WorkersSection) -> None:
    """See `Signal.check_node`."""
    check_readable(model)
    if workers.tensor_parallel > 1:
        _check_shared_memory(_PARALLEL_SHARED_MEMORY)


def _threads(workers: WorkersSection) -> int | None:
    """On a Ray of our own little else is asked of the machine while models work: they may have all cores."""
    if workers.cpus_per_judge is not None or cluster_address(workers.address):
        return None
    return max(1, (os.cpu_count() or 1) // workers.judges_max)


def _check_shared_memory(needed: int) -> None:
    """Raise an S2RError where this node has less than so many bytes free."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError as error:
        raise S2RError(f"it has no /dev/shm; mount one of at least {needed >> 20:,} MiB") from error
    free = stat.f_bavail * stat.f_frsize
    if free < needed:
        raise S2RError(
            f"/dev/shm has {free >> 20:,} MiB free, and a model on several GPUs needs {needed >> 20:,}; give the "
            "container more (--shm-size, or an emptyDir with medium: Memory)"
        )
