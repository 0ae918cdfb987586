"""What a run asks of a cluster, checked before any work: room for its workers, nodes that see its files and models."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from s2r_ray.cluster import Cluster
from s2r_ray.errors import S2RError, UsageError
from s2r_ray.models import ModelRef, check_readable
from s2r_ray.placement import Demand, check_demand, inventory, may_grow
from s2r_ray.signals.base import Resources, Signal
from s2r_ray.storage import Place

if TYPE_CHECKING:
    from s2r_ray.config import WorkersSection


def check_cluster(
    cluster: Cluster,
    workers: WorkersSection,
    out: Place | None,
    pools: Sequence[Place],
    tokenizer: ModelRef | None,
    signals: Sequence[Signal],
) -> list[str]:
    """Hold what a run needs against the cluster; connected to Ray. On a Ray of our own no node has to be asked.

    Args:
        out: where an object is put that every node must see, and taken away again; None: nothing is.
        pools: their roots.
        tokenizer: that tasks which read need; None: they need none.

    Returns:
        What nodes will have to be waited for, a sentence each.

    Raises:
        UsageError: says what was asked, what there is and how to go on.
    """
    nodes, ask = cluster.nodes, not cluster.ours
    with _sign(out) if ask and out else contextlib.nullcontext() as sign:
        task = {"CPU": max(1, workers.cpus_per_index_task), **workers.index_resources}
        look = partial(_look, sign, pools, tokenizer, None)
        demand = Demand("a task that reads", task, 1, look)
        waits = [check_demand(demand, nodes, autoscaling=workers.autoscaling, ask=ask)]
        for signal in signals:
            resources = signal.resources(cluster.total("GPU"))
            least = cpus_at_once(workers, resources)
            if least > cluster.total("CPU") and not may_grow(nodes, workers.autoscaling):
                raise UsageError(
                    f"{resources.workers[0]} {signal.name} workers and a task that reads for them need {least:g} CPUs "
                    f"at once; there is: {inventory(nodes)}. Lower workers.judges_min or cpus_per_judge, or add nodes"
                )
            look = partial(_look, sign, (), None, signal)
            demand = Demand(f"a {signal.name} worker", resources.needs(), resources.workers[0], look)
            waits.append(check_demand(demand, nodes, autoscaling=workers.autoscaling, ask=ask))
    return [wait for wait in waits if wait]


def cpus_at_once(workers: WorkersSection, resources: Resources) -> float:
    """What a signal's workers need at the least, with one task that reads for them."""
    return resources.workers[0] * resources.cpus + max(1, workers.cpus_per_index_task)


@contextlib.contextmanager
def _sign(out: Place) -> Iterator[Place]:
    """An object in the output place that every node must be able to see."""
    sign = out.child(f".sign-{uuid.uuid4().hex}")
    sign.write_bytes(b"s2r")
    try:
        yield sign
    finally:
        sign.delete()


def _look(sign: Place | None, pools: Sequence[Place], tokenizer: ModelRef | None, signal: Signal | None) -> str:
    """What is wrong on this node, or "". Runs in a task."""
    try:
        for place in (sign, *pools) if sign else pools:
            place.check_reachable()
            if not place.exists():
                where = "the output place" if place is sign else f"the pool {place}"
                return f"{where} is not there; give an s3:// address, or a folder that all nodes share"
        if tokenizer is not None:
            check_readable(tokenizer)
        if signal is not None and hasattr(signal, "check_node"):
            signal.check_node()
    except S2RError as error:
        return str(error)
    return ""
