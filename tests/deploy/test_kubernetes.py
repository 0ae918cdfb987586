"""deploy/kuberay: valid under the published schemas, and saying the same as the package, the image and each other."""

from __future__ import annotations

import copy
import inspect
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from s2r_ray import cli
from s2r_ray.config import load_config
from tests.deploy.files import DEPLOY, IMAGE_HOME, ROOT, containers, document, documents, image, ray_version

SCHEMAS = json.loads((Path(__file__).parent / "kubernetes_schemas.json").read_text())
MANIFESTS = (
    "kuberay/rayjob.yaml",
    "kuberay/raycronjob.yaml",
    "kuberay/cronjob.yaml",
    "kuberay/service-account.yaml",
    "monitoring/pod-monitor.yaml",
    "monitoring/alerts.yaml",
)
RAYJOB = document("kuberay/rayjob.yaml")
CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
GROUPS = {"head": CLUSTER["headGroupSpec"]} | {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
CRONJOB = {found["kind"]: found for found in documents("kuberay/cronjob.yaml")}
NIGHTLY_POD = CRONJOB["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
# By who they are. The first container of each is Ray's, or the submitter, or the script.
PODS = {name: group["template"]["spec"] for name, group in GROUPS.items()} | {
    "submitter": RAYJOB["spec"]["submitterPodTemplate"]["spec"],
    "nightly": NIGHTLY_POD,
}


def faults(manifest: dict[str, Any]) -> list[str]:
    """What a Kubernetes object has wrong under its schema: path and message."""
    kind = SCHEMAS["kinds"][f"{manifest['apiVersion']}/{manifest['kind']}"]
    found = jsonschema.Draft202012Validator({**kind, "$defs": SCHEMAS["$defs"]}).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("file", MANIFESTS)
def test_objects_are_valid_under_the_published_schemas(file: str) -> None:
    """Would catch a misspelt field (which an API server drops without a word) and a number where text is expected."""
    for manifest in documents(file):
        assert faults(manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("spec", "ttlSecondAfterFinished"), 1, "ttlSecondAfterFinished"),
        (("spec", "backoffLimit"), "2", "'2' is not of type 'integer'"),
        (("spec", "submissionMode"), 3, "3 is not of type 'string'"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokn", "'tokn' is not one of"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "0 is not of type 'string'"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "metadata", "lables"), {}, "lables"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "maxReplica"), 1, "maxReplica"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "nam"), "x", "nam"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "tolerations", 0, "kye"), "x", "kye"),
        (("metadata", "lables"), {}, "lables"),
    ],
)
def test_the_schemas_find_planted_mistakes(path: tuple[Any, ...], value: Any, said: str) -> None:
    """Would catch schemas that let everything pass, so that the test above could not fail."""
    broken = copy.deepcopy(RAYJOB)
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert any(said in fault for fault in faults(broken)), faults(broken)


def test_the_schemas_find_what_is_missing() -> None:
    """Would catch a lost `required` in the stored schemas."""
    broken = copy.deepcopy(RAYJOB)
    del broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]
    assert any("'groupName' is a required property" in fault for fault in faults(broken))


def test_every_file_of_deploy_is_looked_at() -> None:
    """Would catch a new file that no test reads."""
    tested = {
        *MANIFESTS,
        *("kustomization.yaml", "monitoring/kustomization.yaml", "monitoring/dashboard.json", "kuberay/nightly.py"),
        *("config.yaml", "ray/cluster.yaml", "Dockerfile", "Dockerfile.dockerignore", "README.md"),
    }
    there = {str(file.relative_to(DEPLOY)) for file in DEPLOY.rglob("*") if file.is_file()}
    assert {name for name in there if "__pycache__" not in name} == tested


# --- what KubeRay 1.7.0 refuses beyond its schema (ray-operator/controllers/ray/utils/validation.go) ------------------


def test_rules_of_the_operator() -> None:
    """Would catch a RayJob that the API server takes and the operator then calls invalid."""
    spec = RAYJOB["spec"]
    assert len(RAYJOB["metadata"]["generateName"]) + 5 <= 47
    assert spec["shutdownAfterJobFinishes"]  # else no ttl
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    assert "deletionStrategy" not in spec
    assert CLUSTER["autoscalerOptions"]["version"] == "v2"
    for name, group in GROUPS.items():
        assert "restartPolicy" not in group["template"]["spec"], f"{name}: the v2 autoscaler replaces pods itself"
        assert not (group.get("resources") and group["rayStartParams"]), f"{name}: resources in two places"
    cron = document("kuberay/raycronjob.yaml")
    assert len(cron["metadata"]["name"]) <= 36
    assert "TZ" not in cron["spec"]["schedule"]


def test_the_two_schedules_run_the_same_job_at_the_same_time() -> None:
    """Would catch a change to rayjob.yaml that raycronjob.yaml, which repeats it, did not get."""
    cron, plain = document("kuberay/raycronjob.yaml")["spec"], CRONJOB["CronJob"]["spec"]
    assert cron["jobTemplate"] == RAYJOB["spec"], (
        "copy the spec of rayjob.yaml below jobTemplate, two spaces further in"
    )
    assert (cron["schedule"], cron["timeZone"]) == (plain["schedule"], plain["timeZone"])


# --- versions, images, paths ------------------------------------------------------------------------------------------


def test_versions_and_images_agree() -> None:
    """Would catch a Ray upgrade that forgot an image tag: a cluster of mixed versions does not start."""
    assert CLUSTER["rayVersion"] == ray_version()
    for name, pod in PODS.items():
        variant = "gpu" if name == "gpu" else "cpu"
        assert [part["image"] for part in containers(pod)] == [image(variant)], name


def test_the_entry_point_is_in_the_image_and_takes_these_options() -> None:
    """Would catch a renamed job or option, or a configuration that is mounted elsewhere."""
    python, script, option, config = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert (python, option) == ("python", "--config")
    assert (ROOT / Path(script).relative_to(IMAGE_HOME)).is_file()
    head = containers(PODS["head"])[0]
    mounts = {mount["name"]: mount["mountPath"] for mount in head["volumeMounts"]}
    assert config == f"{mounts['config']}/config.yaml"
    assert "config" in inspect.signature(cli.run).parameters


def test_jobs_are_the_commands_that_the_runbook_names() -> None:
    """Would catch an entry point that the runbook or a deploy file names and that is not there."""
    text = "\n".join(file.read_text() for file in DEPLOY.rglob("*") if file.suffix in (".yaml", ".md", ".py"))
    named = set(re.findall(r"jobs/(\w+\.py)", text))
    assert named >= {"score_pool.py", "nightly_rescore.py", "select_pool.py"}
    assert named <= {file.name for file in (ROOT / "jobs").glob("*.py")}


# --- safety -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PODS)
def test_pods_are_not_root_and_ask_for_what_they_use(name: str) -> None:
    """Would catch a pod that a restricted namespace refuses, and memory that is promised but not there."""
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for part in containers(pod):
        assert part["securityContext"]["allowPrivilegeEscalation"] is False
        assert part["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert part["resources"]["requests"] == part["resources"]["limits"]
        assert {"cpu", "memory"} <= part["resources"]["limits"].keys()
        mounted = {mount["name"] for mount in part.get("volumeMounts", [])}
        assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}


def test_the_token_of_the_api_server_is_only_where_it_is_needed() -> None:
    """Would catch workers, which run the pool's and the judge's code, that can talk to Kubernetes."""
    for name in ("cpu", "gpu", "submitter"):
        assert PODS[name]["automountServiceAccountToken"] is False, name


@pytest.mark.parametrize("name", GROUPS)
def test_storage_keys_reach_every_ray_pod_by_reference(name: str) -> None:
    """Would catch keys on the head alone: what is set for the driver does not reach the workers."""
    (part,) = containers(PODS[name])
    assert part["envFrom"] == [{"secretRef": {"name": "s2r-storage", "optional": True}}]
    assert "env" not in part
    account = document("kuberay/service-account.yaml")["metadata"]["name"]
    assert PODS[name]["serviceAccountName"] == account


@pytest.mark.parametrize("name", GROUPS)
def test_the_object_store_has_shared_memory_within_the_limit(name: str) -> None:
    """Would catch Ray falling back to a disk for its object store, or shared memory that gets the pod killed."""
    (part,) = containers(PODS[name])
    (mount,) = [mount for mount in part["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in PODS[name]["volumes"] if volume["name"] == mount["name"]]
    assert volume["emptyDir"]["medium"] == "Memory"
    gib = [
        int(text.removesuffix("Gi"))
        for text in (volume["emptyDir"]["sizeLimit"], part["resources"]["limits"]["memory"])
    ]
    assert gib[0] <= gib[1] * 0.3  # Ray takes at most 30 % of the memory for its object store


def test_nothing_exposes_the_dashboard() -> None:
    """Would catch a load balancer in front of an address that runs any code it is sent."""
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert CLUSTER["headGroupSpec"]["enableIngress"] is False
    kinds = {found["kind"] for file in MANIFESTS for found in documents(file)}
    assert not kinds & {"Ingress", "Service", "HTTPRoute", "Gateway"}


def test_no_secret_is_in_any_file() -> None:
    """Would catch a key that somebody pasted."""
    for file in DEPLOY.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_\w{20}|PRIVATE KEY-", text), file
            assert not re.search(r"^\s*kind:\s*Secret\b", text, re.MULTILINE), file
            assert not re.search(r"(?i)(secret_access_key|auth_token|password)[\"']?\s*[:=]\s*[\"']?[\w/+]{8}", text), (
                file
            )


# --- resources: the configuration against what Ray's autoscaler makes of the file -------------------------------------


@pytest.fixture(scope="module")
def node_types() -> dict[str, Any]:
    """What Ray's own autoscaler reads from the RayCluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "s2r", "namespace": "s2r"}, "spec": copy.deepcopy(CLUSTER)}
    found: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    return found


def fits(demand: dict[str, float], resources: dict[str, float]) -> int:
    """How many workers with this demand a node takes."""
    return int(min(resources.get(name, 0) // amount for name, amount in demand.items() if amount))


def test_the_configuration_runs_on_this_cluster(node_types: dict[str, Any]) -> None:
    """Would catch judges that no node can ever take: the job would wait for ever, and GPU nodes never start."""
    workers = load_config(str(DEPLOY / "config.yaml"), {}).workers
    assert workers.autoscaling, "no GPU node is up when the job starts, and that is no mistake"
    assert workers.gpus_per_judge, "must be said: no GPU node is up when the job starts"
    assert workers.accelerator_type is None, "Ray's autoscaler does not know the type of a GPU node that is not up"
    judge = {"CPU": workers.cpus_per_judge, "GPU": workers.gpus_per_judge, **workers.judge_resources}
    index = {"CPU": workers.cpus_per_index_task, **workers.index_resources}
    gpu, cpu, head = node_types["gpu"], node_types["cpu"], node_types["headgroup"]
    assert gpu["max_workers"] * fits(judge, gpu["resources"]) >= workers.judges_max
    assert fits(judge, cpu["resources"]) == 0
    assert fits(index, cpu["resources"]) == cpu["resources"]["CPU"], "all cores of a CPU node read the pool"
    assert fits(index, gpu["resources"]) == 0, "reading the pool would hold a GPU node"
    assert workers.index_tasks_max == cpu["max_workers"] * fits(index, cpu["resources"]), "more start GPU nodes"
    assert head["resources"]["CPU"] == 0
    assert (cpu["min_workers"], gpu["min_workers"]) == (1, 0)


def test_gpu_pods_go_to_gpu_nodes_only() -> None:
    """Would catch GPU pods that a taint keeps off their nodes, and CPU pods that sit on GPU nodes."""
    for name, pod in PODS.items():
        wants = "nvidia.com/gpu" in containers(pod)[0]["resources"]["limits"]
        assert wants == (name == "gpu")
        assert bool(pod.get("tolerations")) == wants
        assert pod["nodeSelector"]["kubernetes.io/arch"] == "amd64"  # as the lock files


# --- the nightly schedule ---------------------------------------------------------------------------------------------


def test_nights_never_overlap_and_leave_no_trail() -> None:
    """Would catch a schedule that starts a second cluster beside one that still runs."""
    spec = CRONJOB["CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy wants it
    assert "activeDeadlineSeconds" not in spec["jobTemplate"]["spec"], "it would end the waiting, not the RayJob"
    assert RAYJOB["spec"]["activeDeadlineSeconds"] < 24 * 3600
    assert RAYJOB["spec"]["backoffLimit"] > 0


def test_the_schedule_may_do_what_it_does() -> None:
    """Would catch a role bound to nobody, or without a verb that nightly.py needs."""
    (rule,) = CRONJOB["Role"]["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    assert CRONJOB["RoleBinding"]["roleRef"]["name"] == CRONJOB["Role"]["metadata"]["name"]
    accounts = {subject["name"] for subject in CRONJOB["RoleBinding"]["subjects"]}
    assert accounts == {NIGHTLY_POD["serviceAccountName"]} == {CRONJOB["ServiceAccount"]["metadata"]["name"]}


def generated(file: str) -> dict[str, list[str]]:
    """ConfigMap name -> files of a kustomization."""
    return {item["name"]: item["files"] for item in document(file)["configMapGenerator"]}


def test_config_maps_hold_the_files_that_pods_read() -> None:
    """Would catch a file that is renamed in one place: the pod would wait for its volume for ever."""
    maps = generated("kustomization.yaml")
    assert document("kustomization.yaml")["generatorOptions"]["disableNameSuffixHash"] is True
    assert maps["s2r-config"] == ["config.yaml"]
    assert all((DEPLOY / name).is_file() for names in maps.values() for name in names)
    assert all((DEPLOY / name).is_file() for name in document("kustomization.yaml")["resources"])
    for name, pod in PODS.items():
        for volume in pod.get("volumes", []):
            assert volume.get("configMap", {}).get("name", "s2r-config") in maps, name
    (part,) = containers(NIGHTLY_POD)
    (mount,) = part["volumeMounts"]
    files = {f"{mount['mountPath']}/{Path(name).name}" for name in maps["s2r-nightly"]}
    assert set(part["command"][1:]) == files


@pytest.fixture
def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl is not on this machine")
    return found


@pytest.mark.parametrize("folder", [".", "monitoring"])
def test_kustomize_makes_valid_objects(kubectl: str, folder: str) -> None:
    """Would catch a kustomization that kustomize itself refuses, which no schema of ours would notice."""
    made = subprocess.run([kubectl, "kustomize", str(DEPLOY / folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    objects = list(yaml.safe_load_all(made.stdout))
    wanted = [
        found
        for name in document(f"{folder}/kustomization.yaml")["resources"]
        for found in documents(f"{folder}/{name}")
    ]
    assert [found for found in objects if found["kind"] != "ConfigMap"] == sorted(wanted, key=objects.index)
    for found in objects:
        if found["kind"] == "ConfigMap":
            (files,) = [
                names
                for name, names in generated(f"{folder}/kustomization.yaml").items()
                if name == found["metadata"]["name"]
            ]
            assert found["data"] == {Path(name).name: (DEPLOY / folder / name).read_text() for name in files}
