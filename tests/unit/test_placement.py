"""Tests of s2r_ray.placement."""

from __future__ import annotations

import math
import time
from functools import partial

import pytest

from s2r_ray.errors import UsageError
from s2r_ray.placement import Demand, Node, check_demand, nodes_of_cluster

SMALL = Node("10.0.0.1", {"CPU": 4, "memory": 1e9, "node:10.0.0.1": 1}, "a")
GPUS = Node("10.0.0.2", {"CPU": 16, "GPU": 4, "accelerator_type:L4": 1, "node:10.0.0.2": 1}, "b")


def well() -> str:
    return ""


def demand(needs: dict[str, float], least: int = 1) -> Demand:
    return Demand("a judge", needs, least, well)


@pytest.mark.parametrize(
    ("node", "needs", "room"),
    [
        (SMALL, {"CPU": 1}, 4),
        (SMALL, {"CPU": 1.5}, 2),
        (SMALL, {"GPU": 1}, 0),
        (GPUS, {"CPU": 1, "GPU": 1}, 4),
        (GPUS, {"CPU": 6, "GPU": 1}, 2),
        (GPUS, {"CPU": 1, "GPU": 0.5}, 8),
        (GPUS, {"CPU": 0.2, "GPU": 0.2}, 20),
        (SMALL, {"CPU": 0.1}, 40),
        (SMALL, {"CPU": 0.3}, 13),
        (GPUS, {"GPU": 1, "accelerator_type:L4": 0.001}, 4),
        (GPUS, {"GPU": 1, "accelerator_type:H100": 0.001}, 0),
        (Node("group", {"CPU": 8, "GPU": 1}, count=5), {"GPU": 1}, 5),
        (Node("group", {"CPU": 8, "GPU": 1}, count=math.inf), {"GPU": 1}, math.inf),
        (Node("group", {"CPU": 8}, count=math.inf), {"GPU": 1}, 0),
    ],
)
def test_room(node: Node, needs: dict[str, float], room: float) -> None:
    """Catches: needs held against totals of the cluster, where no single node has them together."""
    assert node.room(needs) == room


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (demand({"CPU": 1, "GPU": 8}), ["no node", "8 GPU", "with 16 CPU, 4 GPU, L4"]),
        (demand({"CPU": 1, "GPU": 1}, 5), ["room for 4, but 5 are asked for"]),
        (demand({"CPU": 1, "tpu": 1}), ["1 tpu", "there is: 1 node with 4 CPU; 1 node with "]),
        (demand({"GPU": 1, "accelerator_type:H100": 0.001}), ["takes 1 GPU, H100"]),
    ],
)
def test_what_does_not_fit(asked: Demand, said: list[str]) -> None:
    """Catches: a refusal that does not say what was asked and what there is, and one where an autoscaler would help."""
    with pytest.raises(UsageError) as error:
        check_demand(asked, [SMALL, GPUS], autoscaling=False, ask=False)
    for part in said:
        assert part in str(error.value)
    waits = check_demand(asked, [SMALL, GPUS], autoscaling=True, ask=False)
    assert "no node yet for " in waits
    assert "There is: 1 node with 4 CPU" in waits


def test_nothing_to_wait_for() -> None:
    """Catches: a person who is told of nodes to come where all are there."""
    assert not check_demand(demand({"GPU": 1}, 4), [SMALL, GPUS], autoscaling=True, ask=False)


def test_judging_on_cpus_is_offered() -> None:
    """Catches: the one way out of a cluster without GPUs left unsaid."""
    with pytest.raises(UsageError, match=r"2 nodes with 4 CPU.*gpus_per_judge: 0"):
        check_demand(demand({"CPU": 1, "GPU": 1}), [SMALL, SMALL], autoscaling=False, ask=False)


def test_nodes_that_may_come_count() -> None:
    """Catches: a cluster that scales from zero refused because its GPU nodes are not there yet."""
    group = Node("gpus", {"CPU": 8, "GPU": 1}, count=2)
    waits = check_demand(demand({"CPU": 1, "GPU": 1}, 2), [SMALL, group], autoscaling=False, ask=True)
    assert waits == (
        "no node yet for 2 x a judge, which takes 1 CPU, 1 GPU; taken to come from an autoscaler. There is: 1 node "
        "with 4 CPU"
    )
    for autoscaling in (False, True):  # the kinds that may come are known, so it makes no difference
        with pytest.raises(UsageError, match=r"2 nodes with .* that may come"):
            check_demand(demand({"CPU": 1, "GPU": 1}, 3), [SMALL, group], autoscaling=autoscaling, ask=True)


def says(words: str) -> str:
    return words


def never() -> str:
    time.sleep(3600)
    return ""


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_nodes_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a check that runs on the driver alone, whose words are lost, or that waits for a node for ever."""
    nodes = nodes_of_cluster()
    assert [node.count for node in nodes] == [1]
    assert nodes[0].room({"CPU": 1}) == 4

    def ask(check: partial[str]) -> None:
        check_demand(Demand("a judge", {"CPU": 1}, 1, check), nodes, autoscaling=False, ask=True)

    ask(partial(says, ""))
    with pytest.raises(UsageError, match=rf"of 1 node .*cannot run it: 1 node \({nodes[0].name}\): no model here"):
        ask(partial(says, "no model here"))
    monkeypatch.setattr("s2r_ray.placement._ASK_SECONDS", 1)
    ask(partial(never))
