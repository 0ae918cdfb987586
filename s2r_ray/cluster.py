"""Ray: find a cluster or start a local one, and stream small work items through its tasks and actors."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa

from s2r_ray.errors import S2RError, TooManyErrors, UsageError, WorkersLostError
from s2r_ray.placement import Node, nodes_of_cluster
from s2r_ray.quiet import captured
from s2r_ray.signals.base import Resources
from s2r_ray.tables import DamagedError

_T = TypeVar("_T")
_R = TypeVar("_R")
_LOCAL_OBJECT_STORE_BYTES = 1 << 30
_MOST_BLOCKS = 4096
_MOST_TASKS = 4096
_TASK_RETRIES = 3
_CONNECT_SECONDS = 5
_MESSAGE_CHARACTERS = 600
_NO_TOKEN = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's token (or RAY_AUTH_TOKEN to the "
    "token itself)"
)
_DIED = " Worker exit type: "  # where Ray goes on about a process that ended, at length, with guesses of its own
_WHY_DIED = " It crashed, was killed (out of memory?), or hung for longer than workers.hang_seconds"
_RAISED = re.compile(r"^([\w.]+(?:Error|Exception|Interrupt)): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Cluster:
    """What Ray has: its nodes and those that may come. `ours`: it was started for this run, on this machine."""

    nodes: tuple[Node, ...]
    ours: bool

    def total(self, resource: str) -> float:
        """Of a resource by Ray's name, over all nodes, those that may come among them."""
        return sum(node.count * node.resources[resource] for node in self.nodes if node.resources.get(resource))


@contextmanager
def connected(address: str | None, *, cpus: float = 0, logs: bool = False) -> Iterator[Cluster]:
    """Be connected to Ray inside the block: to `address`, to RAY_ADDRESS, or to a local Ray of our own.

    A connection that is there already is used and left open. Otherwise, unless `logs` are asked for, what Ray and the
    engines print goes to a file, which an error names.

    Args:
        cpus: what the work needs at the least; a Ray of our own claims so many even if the machine has fewer.

    Raises:
        UsageError: the address does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Ray Data would describe each stage to the makers of Ray, from a process of its own.
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
    import ray

    if logs or ray.is_initialized():
        with _connection(address, cpus, logs) as cluster:
            yield cluster
        return
    path = None
    try:
        with captured() as path, _connection(address, cpus, logs=False) as cluster:
            yield cluster
    except (TooManyErrors, DamagedError, UsageError):
        if path is not None:
            path.unlink(missing_ok=True)  # nothing in it about these
        raise
    except S2RError as error:
        raise S2RError(f"{str(error).rstrip('.')}. Logs of Ray and the engine: {path}") from error


class Connection:
    """A connection to Ray for all stages, made when it is first asked for; as `connected`, whose arguments it takes.

    Leaving the block ends it. A Ray of our own can be started ahead of that, beside other work: it takes seconds, in
    which this process does little more than wait.
    """

    def __init__(self, address: str | None, *, cpus: float = 0, logs: bool = False) -> None:
        self._make = partial(connected, address, cpus=cpus, logs=logs)
        self._local = not cluster_address(address)
        self._stack = ExitStack()
        self._thread = ThreadPoolExecutor(1)
        self._ahead: Future[Cluster] | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: Any) -> bool | None:
        if self._ahead is not None:
            self._ahead.exception()  # waits
        try:
            return self._stack.__exit__(*exception)
        finally:
            self._thread.shutdown()

    def start_ahead(self) -> None:
        """Begin to start a Ray of our own; with a cluster, or Ray here already, nothing happens."""
        if not self._local:
            return
        import ray  # not in the thread: the caller goes on to import what may be part of it

        if not ray.is_initialized():
            self._ahead = self._thread.submit(self._stack.enter_context, self._make())

    @property
    def ahead(self) -> bool:
        """Whether a Ray of our own was started ahead; it may not be there yet."""
        return self._ahead is not None

    @cached_property
    def cluster(self) -> Cluster:
        """What Ray has.

        Raises:
            UsageError: the address does not answer.
        """
        return self._ahead.result() if self._ahead is not None else self._stack.enter_context(self._make())


@contextmanager
def _connection(address: str | None, cpus: float, logs: bool) -> Iterator[Cluster]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(address, cpus, logs)
    _quiet_ray_data()
    try:
        yield Cluster(nodes_of_cluster(), ours and not cluster_address(address))
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str | None, cpus: float, logs: bool) -> None:
    import ray

    where = cluster_address(address)
    if where:
        _check_answers(where)
    stop = signal.getsignal(signal.SIGTERM)  # Ray puts a handler of its own there
    common: dict[str, Any] = {"logging_level": logging.INFO if logs else logging.ERROR, "log_to_driver": logs}
    try:
        if where:
            ray.init(address=where, **common)
            return
        ray.init(
            address="local",  # not one that somebody else has started on this machine
            num_cpus=math.ceil(max(cpus, os.cpu_count() or 1)),
            include_dashboard=False,
            object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
            **common,
        )
    except ray.exceptions.AuthenticationError as error:
        raise UsageError(f"cannot reach Ray at {where}, which asks for a token: {_NO_TOKEN}") from error
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        hint = f". If it asks for a token: {_NO_TOKEN}" if where else ""
        raise UsageError(f"cannot reach Ray at {where or 'this machine'}: {told[0]}{hint}") from error
    except Exception as error:
        if type(error) is not Exception:  # Ray's own word for a node that took too long to start
            raise
        told = str(error).strip().splitlines() or ["no reason given"]
        raise S2RError(f"Ray did not start: {told[0]}. On a busy machine, start the same command again") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)


def cluster_address(given: str | None) -> str | None:
    """The cluster to go to; None: start one here."""
    return given or os.environ.get("RAY_ADDRESS") or None


def _check_answers(address: str) -> None:
    """Ray itself tries an address that nobody answers for many minutes."""
    if "@" in address:
        raise UsageError("the address in RAY_ADDRESS must not contain credentials; expected HOST:PORT")
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"{address} is the address of a dashboard, to which `ray job submit` goes; expected HOST:PORT of the head "
            "node (its port is 6379 unless it was started with another)"
        )
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
    items: Sequence[_T],
    task: Callable[[_T], _R],
    cpus: float,
    custom: Mapping[str, float],
    most: int | None = None,
    named: Callable[[_T], str] = str,
) -> Iterator[_R]:
    """Run a stateless function over items on the cluster; results come as they are ready, in any order.

    Plain Ray tasks: what they read and write does not pass through Ray. Those of Ray Data take seconds more to start,
    and go to nodes with GPUs as readily as to others.

    Args:
        cpus, custom: what one call takes; the latter are custom Ray resources.
        most: calls at once.
        named: what an error calls an item.

    Raises:
        WorkersLostError: the process that works on an item died each time.
        S2RError: the function raised something.
    """
    import ray

    call: Any = ray.remote(_call).options(num_cpus=cpus, resources=dict(custom), max_retries=_TASK_RETRIES)
    shared, left = ray.put(task), iter(items)
    running: dict[Any, _T] = {}
    try:
        while True:
            for item in islice(left, (most or _MOST_TASKS) - len(running)):
                running[call.remote(shared, item)] = item
            if not running:
                return
            ray.wait(list(running))
            for reference in ray.wait(list(running), num_returns=len(running), timeout=0)[0]:
                item = running.pop(reference)
                with _worker_errors(f"at {named(item)}"):
                    result: _R = ray.get(reference)
                yield result
    finally:
        for reference in running:
            ray.cancel(reference)


def _call(task: Callable[[_T], _R], item: _T) -> _R:
    return task(item)


def stream_actors(
    items: Sequence[dict[str, Any]],
    load: Callable[[dict[str, Any]], pa.Table],
    worker: type,
    worker_arguments: tuple[Any, ...],
    resources: Resources,
    load_custom: Mapping[str, float],
) -> Iterator[dict[str, Any]]:
    """Load each item to a table in a CPU task and hand it to a pool of stateful workers.

    Every table is one call of a worker, which returns a table of results. The pool grows and shrinks between
    `resources.workers` and is gone when the last result has come. Memory is bounded by blocks in flight.

    Args:
        load_custom: custom Ray resources that one call of `load` takes beside a CPU.
    """
    from ray.data import ActorPoolStrategy

    least, most = resources.workers
    dataset = _dataset(items).map_batches(
        _Load(load), batch_size=1, batch_format="numpy", num_cpus=1, resources=dict(load_custom)
    )
    with warnings.catch_warnings():
        # Ray says that remote arguments without a name of their own are deprecated; these two have none yet.
        warnings.filterwarnings("ignore", message=r"`ray_remote_args` is deprecated")
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(worker, worker_arguments, resources.threads),
            batch_size=1,
            batch_format="pyarrow",
            # One that is slow must not sit on more than the item it works on and the next. Calls come one at a time in
            # any case; "multi-threading" has them in the thread that made the worker: in another, native libraries
            # (OpenMP) would have a second set of threads, more than there are cores.
            compute=ActorPoolStrategy(
                min_size=least, max_size=most, max_tasks_in_flight_per_actor=2, enable_true_multi_threading=True
            ),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus or None,
            accelerator_type=resources.accelerator_type,
            resources=dict(resources.custom),
            max_restarts=resources.restarts,
            max_task_retries=-1 if resources.restarts else 0,
        )
    yield from _rows(dataset)


class _Load:
    """Adapts a function of one item to Ray Data's batches of one row. The table it loads becomes one row again, so that
    Ray Data, which cuts and joins tables as it likes, leaves it whole."""

    def __init__(self, load: Callable[[dict[str, Any]], pa.Table]) -> None:
        self._load = load

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        table = self._load({name: values[0] for name, values in batch.items()})
        rows = table.combine_chunks().to_struct_array().combine_chunks()
        return pa.table({"table": pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)})


class _Worker:
    """Adapts a worker, which takes whole tables."""

    def __init__(self, worker: type, arguments: tuple[Any, ...], threads: int | None) -> None:
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # native libraries read it when they are loaded
        self._worker = worker(*arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        answer: pa.Table = self._worker(pa.Table.from_struct_array(batch["table"].combine_chunks().flatten()))
        return answer


def _dataset(items: Sequence[dict[str, Any]]) -> Any:
    import ray.data

    return ray.data.from_items(list(items), override_num_blocks=min(len(items), _MOST_BLOCKS))


def _rows(dataset: Any) -> Iterator[dict[str, Any]]:
    with _worker_errors():
        yield from dataset.iter_rows()


@contextmanager
def _worker_errors(where: str = "") -> Iterator[None]:
    """Inside the block, what Ray says of a process that failed, or of what was raised there, is an error of ours."""
    import ray

    try:
        yield
    except (ray.exceptions.RayError, RuntimeError) as error:
        name, message = _raised(error)
        lost = name in ("", f"{WorkersLostError.__module__}.{WorkersLostError.__name__}")
        what = f"a worker failed {where}".rstrip()
        raise (WorkersLostError if lost else S2RError)(f"{what}: {message}") from error


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
        said, died, _ = (text.strip().splitlines() or [type(error).__name__])[-1].partition(_DIED)
        return "", f"{said}{_WHY_DIED if died else ''}"[:_MESSAGE_CHARACTERS]
    name, message = raised[-1]
    ours = name.startswith("s2r_ray.")
    return name, (message if ours else f"{name}: {message}")[:_MESSAGE_CHARACTERS]
