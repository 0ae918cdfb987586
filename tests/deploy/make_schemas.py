"""Make `kubernetes_schemas.json`: the shape of the Kubernetes kinds that deploy/ uses, so that tests need no network.

    python tests/deploy/make_schemas.py SWAGGER CRD… > tests/deploy/kubernetes_schemas.json

with these files (the versions are in `SOURCES`; move them there first):

- SWAGGER: `kubernetes/swagger.json.unprocessed` of github.com/kubernetes-client/python
- CRDs: `ray-operator/config/crd/bases/ray.io_{rayjobs,raycronjobs}.yaml` of github.com/ray-project/kuberay, and
  `example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml` of
  github.com/prometheus-operator/prometheus-operator

Only structure is taken: names, types, limits, enumerations. An API server drops fields that it does not know without a
word; here they are errors, so that a typo is one. Rules in CEL (`x-kubernetes-validations`) are not taken.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path
from typing import Any

import yaml

SOURCES = {
    "kubernetes": "kubernetes-client/python v36.0.3 (Kubernetes 1.36)",
    "ray.io": "ray-project/kuberay v1.7.0",
    "monitoring.coreos.com": "prometheus-operator/prometheus-operator v0.93.0",
}
BUILT_IN = {
    "batch/v1/CronJob": "io.k8s.api.batch.v1.CronJob",
    "v1/ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "rbac.authorization.k8s.io/v1/Role": "io.k8s.api.rbac.v1.Role",
    "rbac.authorization.k8s.io/v1/RoleBinding": "io.k8s.api.rbac.v1.RoleBinding",
}
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_INT_OR_STRING = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
_QUANTITY = {"anyOf": [{"type": "number"}, {"type": "string"}]}
_KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_INT32 = 2**31
_SHARED_CHARACTERS = 150  # a part that occurs twice and is longer than this is stored once


def strict(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A Kubernetes schema as a JSON schema in which every field must be known."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name.endswith(".Quantity"):
            return _QUANTITY
        return strict(definitions[name], definitions)
    if node.get("x-kubernetes-int-or-string") or node.get("format") == "int-or-string":
        return {**_INT_OR_STRING, **({"pattern": node["pattern"]} if "pattern" in node else {})}
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return {"type": "object"}
    made = {key: node[key] for key in _KEPT if key in node}
    if node.get("format") == "int32":
        made = {"minimum": -_INT32, "maximum": _INT32 - 1} | made
    if "properties" in node:
        made["properties"] = {
            name: strict(_meta(name, part, definitions), definitions) for name, part in node["properties"].items()
        }
        made["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(node["additionalProperties"], definitions)
    if "items" in node:
        made["items"] = strict(node["items"], definitions)
    return made


def kind(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The same for a whole object, without its `status`, which is not for users to write."""
    return strict({**node, "properties": {k: v for k, v in node["properties"].items() if k != "status"}}, definitions)


def _meta(name: str, part: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """CRDs leave `metadata` open, as the API server knows its shape."""
    return definitions[_OBJECT_META] if name == "metadata" and set(part) <= {"type", "description"} else part


def shared(kinds: dict[str, Any]) -> dict[str, Any]:
    """The same schemas with every part that occurs more than once moved to `$defs`."""
    counts: collections.Counter[str] = collections.Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict):
            text = json.dumps(node, sort_keys=True)
            counts[text] += 1
            if counts[text] == 1:  # what is inside a repeated part is counted once
                for part in node.values():
                    count(part)

    names: dict[str, str] = {}
    parts: dict[str, Any] = {}

    def replaced(node: Any, *, inside: bool = False) -> Any:
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        if not inside and ("type" in node or "anyOf" in node) and counts[text] > 1 and len(text) > _SHARED_CHARACTERS:
            if text not in names:
                names[text] = f"p{len(names)}"
                parts[names[text]] = replaced(node, inside=True)
            return {"$ref": f"#/$defs/{names[text]}"}
        return {key: replaced(part) for key, part in node.items()}

    count(kinds)
    return {"kinds": {name: replaced(schema, inside=True) for name, schema in kinds.items()}, "$defs": parts}


def main(swagger: Path, crds: list[Path]) -> None:
    definitions = json.loads(swagger.read_text(encoding="utf-8"))["definitions"]
    kinds = {name: kind(definitions[full], definitions) for name, full in BUILT_IN.items()}
    for file in crds:
        crd = yaml.safe_load(file.read_text(encoding="utf-8"))["spec"]
        version = next(version for version in crd["versions"] if version["storage"])
        name = f"{crd['group']}/{version['name']}/{crd['names']['kind']}"
        kinds[name] = kind(version["schema"]["openAPIV3Schema"], definitions)
    found = {"sources": SOURCES, **shared(kinds)}
    sys.stdout.write(json.dumps(found, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
