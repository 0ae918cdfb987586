"""Ray: find a cluster or start a local one, and stream small work items through Ray Data."""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from s2r_ray.errors import S2RError, TooManyErrors, UsageError, WorkersLostError
from s2r_ray.quiet import captured
from s2r_ray.signals.base import Resources
from s2r_ray.tables import DamagedError

_LOCAL_OBJECT_STORE_BYTES = 1 << 30
_MOST_BLOCKS = 4096
_CONNECT_SECONDS = 5
_MESSAGE_CHARACTERS = 600
_RAISED = re.compile(r"^([\w.]+(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Cluster:
    """What Ray has: totals over all nodes."""

    cpus: float
    gpus: float


@contextmanager
def connected(address: str | None, *, logs: bool = False) -> Iterator[Cluster]:
    """Be connected to Ray inside the block: to `address`, to RAY_ADDRESS, or to a local Ray of our own.

    A connection that is there already is used and left open. Otherwise, unless `logs` are asked for, what Ray and the
    engines print goes to a file, which an error names.

    Raises:
        UsageError: the address does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    if logs or ray.is_initialized():
        with _connection(address, logs=logs) as cluster:
            yield cluster
        return
    path = None
    try:
        with captured() as path, _connection(address, logs=False) as cluster:
            yield cluster
    except (TooManyErrors, DamagedError):
        if path is not None:
            path.unlink(missing_ok=True)  # nothing in it about these
        raise
    except UsageError:
        raise
    except S2RError as error:
        raise S2RError(f"{str(error).rstrip('.')}. Logs of Ray and the engine: {path}") from error


@contextmanager
def _connection(address: str | None, *, logs: bool) -> Iterator[Cluster]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(address, logs)
    _quiet_ray_data()
    try:
        total = ray.cluster_resources()
        yield Cluster(float(total.get("CPU", 0)), float(total.get("GPU", 0)))
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str | None, logs: bool) -> None:
    import ray

    where = address or os.environ.get("RAY_ADDRESS")
    if where:
        _check_answers(where)
    common: dict[str, Any] = {"logging_level": logging.INFO if logs else logging.ERROR, "log_to_driver": logs}
    try:
        if where:
            ray.init(address=where, **common)
            return
        # One worker more than a single-core machine has: reading and judging must be able to run at once.
        ray.init(
            address="local",  # not one that somebody else has started on this machine
            num_cpus=max(2, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            **common,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UsageError(f"cannot reach Ray at {where or 'this machine'}: {str(error).splitlines()[0]}") from error


def _check_answers(address: str) -> None:
    """Ray itself tries an address that nobody answers for many minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto" and the like: Ray finds out at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({error}); start one, or unset RAY_ADDRESS and workers.address "
            "to use this machine"
        ) from error


def _quiet_ray_data() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would log is raised as well


def stream_tasks(
    items: Sequence[dict[str, Any]], task: Callable[[dict[str, Any]], dict[str, Any]], cpus: float
) -> Iterator[dict[str, Any]]:
    """Run a stateless function over items on the cluster; results come as they are ready, in any order."""
    dataset = _dataset(items).map(task, num_cpus=cpus)
    yield from _rows(dataset)


def stream_actors(
    items: Sequence[dict[str, Any]],
    load: Callable[[dict[str, Any]], pa.Table],
    worker: type,
    worker_arguments: tuple[Any, ...],
    resources: Resources,
) -> Iterator[dict[str, Any]]:
    """Load each item to a table in a CPU task and hand it to a pool of stateful workers.

    Every table is one block and one call of a worker, which returns a table of results. The pool grows and shrinks
    between `resources.workers` and is gone when the last result has come. Memory is bounded by blocks in flight.
    """
    from ray.data import ActorPoolStrategy

    least, most = resources.workers
    dataset = _dataset(items).map_batches(_Load(load), batch_size=1, batch_format="numpy", num_cpus=1)
    with warnings.catch_warnings():
        # Ray says that remote arguments without a name of their own are deprecated; these two have none yet.
        warnings.filterwarnings("ignore", message=r"`ray_remote_args` is deprecated")
        dataset = dataset.map_batches(
            worker,
            fn_constructor_args=worker_arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=least, max_size=most),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus or None,
            max_restarts=resources.restarts,
            max_task_retries=-1 if resources.restarts else 0,
        )
    yield from _rows(dataset)


class _Load:
    """Adapts a function of one item to Ray Data's batches of one row."""

    def __init__(self, load: Callable[[dict[str, Any]], pa.Table]) -> None:
        self._load = load

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        return self._load({name: values[0] for name, values in batch.items()})


def _dataset(items: Sequence[dict[str, Any]]) -> Any:
    import ray.data

    return ray.data.from_items(list(items), override_num_blocks=min(len(items), _MOST_BLOCKS))


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    import ray

    try:
        yield from dataset.iter_rows()
    except (ray.exceptions.RayError, RuntimeError) as error:
        name, message = _raised(error)
        lost = name in ("", f"{WorkersLostError.__module__}.{WorkersLostError.__name__}")
        raise (WorkersLostError if lost else S2RError)(f"a worker failed: {message}") from error


def is_replacement() -> bool:
    """Whether this process is an actor that Ray started in place of one that died."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _raised(error: BaseException) -> tuple[str, str]:
    """(type, message) of what was raised in the worker; type "" if it was nothing but Ray's own complaint.

    Ray hands it on as the text of a traceback inside exceptions of its own.
    """
    text = ""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text += f"\n{cause}"
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    raised = [match for match in _RAISED.findall(text) if not match[0].startswith("ray.")]
    if not raised:
        return "", (text.strip().splitlines() or [type(error).__name__])[-1][:_MESSAGE_CHARACTERS]
    name, message = raised[-1]
    ours = name.startswith("s2r_ray.")
    return name, (message if ours else f"{name}: {message}")[:_MESSAGE_CHARACTERS]
