"""deploy/ray/cluster.yaml: what Ray's own autoscaler says to it, and that it fits the image and the configuration."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from s2r_ray.config import load_config
from tests.deploy.files import DEPLOY, document, image
from tests.deploy.test_kubernetes import fits

CLUSTER = document("ray/cluster.yaml")
TYPES = CLUSTER["available_node_types"]


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """The file with Ray's defaults, as `ray up` uses it up to the point where it talks to AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found: dict[str, Any] = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(found)
    return found


def test_the_file_is_valid_under_rays_schema_and_a_typo_is_not() -> None:
    """Would catch a misspelt key, which Ray refuses only when the cluster is started."""
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)
    for path in ((), ("docker",), ("available_node_types", "gpu")):
        broken = copy.deepcopy(CLUSTER)
        place = broken
        for step in path:
            place = place[step]
        place["max_worker"] = 1
        with pytest.raises(jsonschema.ValidationError, match="max_worker"):
            jsonschema.validate(broken, schema)


def test_ray_takes_it_and_adds_no_commands(prepared: dict[str, Any]) -> None:
    """Would catch Ray's default commands, which install a nightly build of Ray over the one in the image."""
    commands = [command for key, found in prepared.items() if key.endswith("commands") for command in found]
    assert commands
    assert not [command for command in commands if "pip" in command or "wheel" in command]
    assert prepared["head_node_type"] == "head"


def test_images_are_those_of_this_version() -> None:
    """Would catch an image of another Ray version on some of the nodes."""
    assert CLUSTER["docker"]["head_image"] == CLUSTER["docker"]["worker_image"] == image("cpu")
    assert "docker" not in TYPES["cpu"]
    assert TYPES["gpu"]["docker"]["worker_image"] == image("gpu")


def test_the_configuration_runs_on_this_cluster() -> None:
    """Would catch judges that no node type can take, or reading the pool on GPU nodes."""
    workers = load_config(str(DEPLOY / "config.yaml"), {}).workers
    assert workers.autoscaling
    judge = {"CPU": workers.cpus_per_judge, "GPU": workers.gpus_per_judge or 0, **workers.judge_resources}
    index = {"CPU": workers.cpus_per_index_task, **workers.index_resources}
    gpu, cpu = TYPES["gpu"], TYPES["cpu"]
    assert gpu["max_workers"] * fits(judge, gpu["resources"]) >= workers.judges_max
    assert fits(index, cpu["resources"]) == cpu["resources"]["CPU"]
    assert workers.index_tasks_max == cpu["max_workers"] * fits(index, cpu["resources"])
    assert fits(index, gpu["resources"]) == 0
    assert fits(judge, cpu["resources"]) == 0
    assert CLUSTER["max_workers"] >= cpu["max_workers"] + gpu["max_workers"]
    assert (cpu["min_workers"], gpu["min_workers"]) == (1, 0)
    assert TYPES["head"]["resources"] == {"CPU": 0}


def test_nodes_have_roles_and_nothing_is_open() -> None:
    """Would catch keys where roles belong, and a dashboard that answers beyond the head."""
    for name, node in TYPES.items():
        assert node["node_config"]["IamInstanceProfile"]["Name"], name
        assert "KeyName" not in node["node_config"]
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--num-cpus=0" in start
    assert CLUSTER["provider"]["cache_stopped_nodes"] is False


def test_mounted_files_are_there() -> None:
    """Would catch a configuration that moved; Ray would mount nothing and the job would say that it is missing."""
    config, token = CLUSTER["file_mounts"].items()
    assert (DEPLOY / "ray" / config[1]).resolve() == DEPLOY / "config.yaml"
    assert token == ("/home/ray/.ray/auth_token", "~/.ray/auth_token")
    assert config[0] in (DEPLOY / "README.md").read_text()
