"""Whether a cluster can do what is asked of it: said before any work, not by waiting for a node that never comes.

A worker runs on one node, so its needs are held against each node that is there and, where Ray knows them, each kind of
node that an autoscaler may add. Nodes that are there are also asked whether they can read the models and the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s2r_ray.errors import UsageError

_ASK_SECONDS = 60
_ACCELERATOR = "accelerator_type:"
_NOT_SHOWN = ("node:", "memory", "object_store_memory", _ACCELERATOR)


@dataclass(frozen=True)
class Node:
    """A node that lives, or a kind of node that an autoscaler may add (`identity` is None).

    `resources` are those of one such node by Ray's names; `count` says how many there can be.
    """

    name: str
    resources: Mapping[str, float]
    identity: str | None = None
    count: float = 1

    def room(self, needs: Mapping[str, float]) -> float:
        """How many workers with these needs it, or all of its kind, can take when idle."""
        # Ray counts in ten-thousandths; of binary fractions five times 0.2 would be more than 1.
        one = min(
            (math.floor(self.resources.get(name, 0) / amount + 1e-6) for name, amount in needs.items()), default=0
        )
        return self.count * one if one else 0


@dataclass(frozen=True)
class Demand:
    """Workers of one kind: what each takes of its node, and how many there must be at once.

    `what` names one of them, as in "a difficulty worker". `check` runs on every node that has room for one and returns
    what is wrong there, or "" (it travels there: a plain function, or a partial of one).
    """

    what: str
    needs: Mapping[str, float]
    least: int
    check: Callable[[], str]


def nodes_of_cluster() -> tuple[Node, ...]:
    """The nodes that live, then the kinds that an autoscaler may add, as far as Ray tells; connected to Ray."""
    import ray
    from ray._private.state import state  # Ray has no public way to what an autoscaler may add

    nodes = [
        Node(node["NodeManagerAddress"], node["Resources"], node["NodeID"]) for node in ray.nodes() if node["Alive"]
    ]
    config = state.get_cluster_config()
    for group in config.node_group_configs if config else ():
        if group.max_count:
            count = math.inf if group.max_count < 0 else group.max_count
            nodes.append(Node(str(group.name), dict(group.resources), count=count))
    return tuple(nodes)


def check_demand(demand: Demand, nodes: Sequence[Node], *, autoscaling: bool, ask: bool) -> str:
    """Hold a demand against the cluster.

    Args:
        autoscaling: take it that nodes that are missing will come, unless Ray tells which may.
        ask: run the check on the nodes that live; connected to Ray.

    Returns:
        What nodes will have to be waited for, "" if for none.

    Raises:
        UsageError: there is not enough room, or a node with room cannot do the work. Says what was asked, what there is
            and how to go on.
    """
    room = sum(node.room(demand.needs) for node in nodes)
    if room < demand.least and not may_grow(nodes, autoscaling):
        raise UsageError(_too_little(demand, nodes, room))
    asked = [node for node in nodes if node.identity and node.room(demand.needs)]
    faults: dict[str, list[str]] = {}
    for node, said in _ask(asked, demand) if ask else ():
        if said:
            faults.setdefault(said, []).append(node.name)
    if faults:
        told = "; ".join(f"{_count(len(names))} ({', '.join(names[:3])}): {said}" for said, names in faults.items())
        raise UsageError(f"of {_count(len(asked))} with room for {demand.what}, these cannot run it: {told}")
    living = [node for node in nodes if node.identity]
    if sum(node.room(demand.needs) for node in living) < demand.least:
        return (
            f"no node yet for {demand.least} x {_wanted(demand)}; taken to come from an autoscaler. There is: "
            f"{inventory(living)}"
        )
    return ""


def may_grow(nodes: Sequence[Node], autoscaling: bool) -> bool:
    """Whether nodes may come of which nothing is known. Where Ray tells which kinds there are, there are no others."""
    return autoscaling and all(node.identity for node in nodes)


def _wanted(demand: Demand) -> str:
    needs = [f"{amount:g} {name}" for name, amount in demand.needs.items() if not name.startswith(_ACCELERATOR)]
    needs += [name.removeprefix(_ACCELERATOR) for name in demand.needs if name.startswith(_ACCELERATOR)]
    return f"{demand.what}, which takes {', '.join(needs)}"


def _too_little(demand: Demand, nodes: Sequence[Node], room: float) -> str:
    found = f"no node of the cluster has room for {_wanted(demand)}"
    if room:
        found = f"the cluster has room for {room:g}, but {demand.least} are asked for, of {_wanted(demand)}"
    missing = [name for name, amount in demand.needs.items() if not any(node.room({name: amount}) for node in nodes)]
    hint = "To judge on CPUs set workers.gpus_per_judge: 0. " if "GPU" in missing else ""
    return (
        f"{found}; there is: {inventory(nodes)}. {hint}Otherwise ask for less in `workers`, or add nodes; where an "
        "autoscaler adds them, set workers.autoscaling: true"
    )


def inventory(nodes: Sequence[Node]) -> str:
    """`2 nodes with 8 CPU; up to 4 nodes with 16 CPU, 1 GPU, H100`."""
    alike: dict[str, int] = {}
    for node in nodes:
        has = [f"{amount:g} {name}" for name, amount in node.resources.items() if not name.startswith(_NOT_SHOWN)]
        has += [name.removeprefix(_ACCELERATOR) for name in node.resources if name.startswith(_ACCELERATOR)]
        told = f"with {', '.join(sorted(has)) or 'no resources'}"
        if not node.identity:
            told = f"{told} that may come"
        alike[told] = alike.get(told, 0) + (1 if node.identity or math.isinf(node.count) else int(node.count))
    return "; ".join(f"{_count(number)} {told}" for told, number in alike.items())


def _count(nodes: int) -> str:
    return f"{nodes} node" if nodes == 1 else f"{nodes} nodes"


def _ask(nodes: Sequence[Node], demand: Demand) -> list[tuple[Node, str]]:
    """Run the check on each of these nodes at once, beside whatever they do. A node that does not answer in time is
    left to those who work there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(_call)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False)).remote(
            demand.check
        ): node
        for node in nodes
    }
    if not asked:
        return []
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_SECONDS)
    for reference in late:
        ray.cancel(reference, force=True)
    answers = []
    for reference in done:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except ray.exceptions.RayError:  # the node went away meanwhile
            continue
    return answers


def _call(check: Callable[[], str]) -> str:
    return check()
