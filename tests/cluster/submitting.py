"""What the API server says of a manifest, without storing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from support.apiserver import ROOT, ApiServer
from unit.resources.manifests import API_VERSION

_INCOMPLETE = "some validation rules were not checked"


def crds() -> dict[str, dict[str, Any]]:
    """The CRDs as they are applied, by kind."""
    manifests = [yaml.safe_load(path.read_text()) for path in sorted(Path(ROOT / "crds").glob("*.yaml"))]
    return {crd["spec"]["names"]["kind"]: crd for crd in manifests}


def schema(kind: str) -> dict[str, Any]:
    """The schema of a kind in its CRD."""
    return crds()[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def collection(kind: str, namespace: str = "default") -> str:
    """Where objects of a kind are on the server."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{kind.lower()}s"


def refusals(server: ApiServer, manifest: dict[str, Any]) -> list[str]:
    """Why it cannot be created, one entry per field and cause; empty if it can."""
    return submitted(server, manifest)[0]


def submitted(server: ApiServer, manifest: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Why it cannot be created, and the server's answer: the object as it would be stored."""
    path = f"{collection(manifest['kind'])}?dryRun=All&fieldValidation=Strict"
    status, answer = server.call("POST", path, manifest)
    return _causes(status, answer), answer


def create(server: ApiServer, manifest: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Stores it."""
    return server.expect("POST", collection(manifest["kind"], namespace), manifest)


def refused_changes(
    server: ApiServer, stored: dict[str, Any], changed: dict[str, Any], subresource: str = ""
) -> list[str]:
    """Why a stored object cannot become like another one; empty if it can."""
    metadata = {**changed["metadata"], "resourceVersion": stored["metadata"]["resourceVersion"]}
    path = f"{collection(stored['kind'], stored['metadata']['namespace'])}/{stored['metadata']['name']}"
    return _causes(
        *server.call(
            "PUT", f"{path}{subresource}?dryRun=All&fieldValidation=Strict", {**changed, "metadata": metadata}
        )
    )


def _causes(status: int, answer: dict[str, Any]) -> list[str]:
    if status < 300:
        return []
    causes = answer.get("details", {}).get("causes", ())
    return [f"{c['field']}: {c['message']}" for c in causes if _INCOMPLETE not in c["message"]] or [
        answer["message"]
    ]
