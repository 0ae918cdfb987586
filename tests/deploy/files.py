"""What deploy/ holds, parsed once for its tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from s2r_ray import __version__

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGE_HOME = "/opt/s2r"  # where deploy/Dockerfile puts jobs/


class _Strict(yaml.SafeLoader):
    """YAML as an API server reads it: a key that is there twice is an error, not the last one."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value]
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise yaml.constructor.ConstructorError(None, None, f"repeated keys {repeated}", node.start_mark)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def documents(name: str) -> list[dict[str, Any]]:
    """All YAML documents of a file in deploy/."""
    return list(yaml.load_all((DEPLOY / name).read_text(encoding="utf-8"), Loader=_Strict))


def document(name: str) -> dict[str, Any]:
    """The one YAML document of a file in deploy/."""
    (only,) = documents(name)
    return only


def locked(lock: str) -> dict[str, str]:
    """Name -> version of a lock file."""
    lines = (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines)


def ray_version() -> str:
    """The one Ray version of the project."""
    (pin,) = re.findall(r"^ray\[.*\]==(\S+)$", (ROOT / "requirements/base.in").read_text(), re.MULTILINE)
    return str(pin)


def image(variant: str) -> str:
    """The name of the image that every file must use."""
    return f"registry.example.com/s2r-ray:{__version__}-ray{ray_version()}-{variant}"


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]
