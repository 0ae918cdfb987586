"""The dashboard and the alert rules: every metric they ask for exists, and the questions are PromQL."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from s2r_ray.config import load_config
from s2r_ray.metrics import GAUGES, METRICS
from tests.deploy.files import DEPLOY, document, documents
from tests.deploy.test_kubernetes import CLUSTER

DASHBOARD = json.loads((DEPLOY / "monitoring/dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
RULES = [rule for group in document("monitoring/alerts.yaml")["spec"]["groups"] for rule in group["rules"]]
# Ray's own, seen on the metrics port of Ray 2.60.0, and one of kube-state-metrics.
OTHERS = {
    "ray_node_cgroup_mem_total",
    "ray_node_cgroup_mem_used",
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
}
KUBERNETES = {"kube_cronjob_created", "kube_cronjob_status_last_successful_time"}


def exported() -> set[str]:
    """The names of ours as Ray exports them."""
    return {f"ray_{name}" if name in GAUGES else f"ray_{name}_total" for name in METRICS}


def parsed(expression: str) -> Any:
    """A Grafana expression as PromQL: its variables stand for a length of time or a text."""
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """(metric, label) of all that is asked for; the label is empty for the metric alone."""
    text = parsed(expression).prettify()
    for name, labels in re.findall(r"\b((?:ray|kube)_\w+)(?:\{([^}]*)\})?", text):
        yield name, ""
        for label in re.findall(r"(\w+)\s*[=!]~?", labels):
            yield name, label


EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_promql_about_metrics_that_exist(expression: str) -> None:
    """Would catch a renamed metric (an empty panel, an alert that never fires) and a bracket too few."""
    names = {name for name, _ in selectors(expression)} - {"ray_io_cluster"}
    assert names
    assert names <= exported() | OTHERS | KUBERNETES


def test_the_check_of_expressions_can_fail() -> None:
    """Would catch a parser that takes anything."""
    with pytest.raises(ValueError, match=r"(?i)parenthes"):
        parsed("sum(rate(ray_s2r_prompts_total[5m])")
    assert dict(selectors('sum(ray_s2r_prompt_total{signal="x"})')).keys() == {"ray_s2r_prompt_total"}


def test_every_metric_of_ours_is_shown() -> None:
    """Would catch a new metric that nobody sees."""
    shown = {name for panel in PANELS for target in panel["targets"] for name, _ in selectors(target["expr"])}
    assert exported() | OTHERS == shown


def test_rays_own_names_are_in_this_version_of_ray() -> None:
    """Would catch names that went with a Ray upgrade."""
    import ray

    root = Path(ray.__file__).parent
    text = "".join((root / name).read_text() for name in ("dashboard/modules/reporter/reporter_agent.py",))
    for name in OTHERS:
        assert re.search(rf"\b{re.escape(name.removeprefix('ray_'))}\b", text), name


def test_panels_are_complete_and_apart() -> None:
    """Would catch a panel nobody can read, and two that lie over each other or share an id."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert re.fullmatch(r"[A-Z].{20,}\.", panel["description"]), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = [one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at] for at, size in ("xw", "yh")]
        assert any(apart), (one, other)


def test_variables_are_defined() -> None:
    """Would catch a panel that asks for a variable which the dashboard does not have."""
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    used = {name for name in re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)) if name != "__all"}
    assert used == known
    query = next(variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "cluster")["query"]
    assert re.findall(r"ray_s2r\w+", query["query"])[0] in exported()


def test_alerts_say_what_and_come_after_what_heals_itself() -> None:
    """Would catch an alert for a judge that hangs and is about to be replaced without anybody's help."""
    rules = {rule["alert"]: rule for rule in RULES}
    assert len(rules) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "$value" in rule["annotations"]["summary"]
    (limit,) = re.findall(r"> (\d+) and ", rules["S2RNoProgress"]["expr"])
    assert int(limit) > load_config(str(DEPLOY / "config.yaml"), {}).workers.hang_seconds
    job = next(found for found in documents("kuberay/cronjob.yaml") if found["kind"] == "CronJob")
    assert f'cronjob="{job["metadata"]["name"]}"' in rules["S2RNightMissed"]["expr"]
    assert "kube_cronjob_created" in rules["S2RNightMissed"]["expr"], "nothing is told before the first success"


def test_the_scrape_finds_all_ray_pods() -> None:
    """Would catch a label or port name that differs between the pods and the monitor: nothing would be scraped."""
    spec = document("monitoring/pod-monitor.yaml")["spec"]
    wanted = spec["selector"]["matchLabels"]
    (endpoint,) = spec["podMetricsEndpoints"]
    groups = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
    for group in groups:
        labels = {**group["template"]["metadata"]["labels"], "ray.io/is-ray-node": "yes"}  # KubeRay adds this one
        assert wanted.items() <= labels.items()
        ports = {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports[endpoint["port"]] == 8080  # Ray's, unless metrics-export-port says otherwise
        assert "metrics-export-port" not in group["rayStartParams"]
