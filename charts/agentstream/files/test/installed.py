"""Checks an installation from inside the cluster: the operator is ready, the API server serves the CRDs."""

import json
import os
import pathlib
import ssl
import urllib.error
import urllib.request

ACCOUNT = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
WANTED = {
    "agentstreams",
    "agentstreams/status",
    "consumergroups",
    "consumergroups/scale",
    "consumergroups/status",
    "streamreplays",
    "streamreplays/status",
}


def operator_is_ready(address: str) -> None:
    """Fails with the probe's text if the operator is not ready."""
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=10) as reply:
            print(f"{address}: ready: {reply.read().decode().strip()}")
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{address}: not ready: {error.read().decode().strip()}") from error
    except OSError as error:
        raise SystemExit(f"{address}: no answer: {error}") from error


def resources_are_served() -> None:
    """Fails if the API server lacks a resource; any account may list what it serves."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    request = urllib.request.Request(
        f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/agentstream.dev/v1alpha1",
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
    )
    authority = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=10, context=authority) as reply:
            served = {resource["name"] for resource in json.load(reply)["resources"]}
    except OSError as error:
        raise SystemExit(f"agentstream.dev/v1alpha1 is not served: {error}") from error
    if missing := WANTED - served:
        raise SystemExit(f"agentstream.dev/v1alpha1 lacks {', '.join(sorted(missing))}")
    print(f"agentstream.dev/v1alpha1: {', '.join(sorted(served))}")


operator_is_ready(os.environ["OPERATOR"])
resources_are_served()
