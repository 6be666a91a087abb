"""kubectl, as a user types it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.machine import Machine
from harness.shell import CommandFailed

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster and namespace.

    Attributes:
        machine: what has the program.
        kubeconfig: where the cluster is.
        namespace: the namespace that is meant where none is said.
    """

    machine: Machine
    kubeconfig: Path
    namespace: str = "default"

    def __call__(self, *arguments: str, stdin: str = "", timeout: float = 60) -> str:
        """Runs kubectl. Returns what it prints.

        Raises:
            CommandFailed: it failed.
        """
        command = ("kubectl", "--namespace", self.namespace, *arguments)
        return self.machine.run(*command, kubeconfig=self.kubeconfig, stdin=stdin, timeout=timeout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a kubectl that goes on until it is ended; what it prints can be read."""
        command = ("kubectl", "--namespace", self.namespace, *arguments)
        return self.machine.start(*command, kubeconfig=self.kubeconfig)

    def within(self, namespace: str) -> Kubectl:
        """The same for another namespace."""
        return replace(self, namespace=namespace)

    def apply(self, *manifests: Manifest) -> str:
        """Applies manifests."""
        return self("apply", "--filename", "-", stdin=yaml.safe_dump_all(manifests))

    def patch(self, what: str, change: Manifest, *arguments: str) -> str:
        """Merges a change into an object, such as `consumergroup/coder`."""
        return self("patch", what, "--type", "merge", "--patch", json.dumps(change), *arguments)

    def get(self, *what: str) -> Any:
        """An object as the API server has it.

        Raises:
            CommandFailed: it does not exist.
        """
        return json.loads(self("get", *what, "--output", "json"))

    def find(self, *what: str) -> Any:
        """An object as the API server has it; None if there is none."""
        answer = self("get", *what, "--output", "json", "--ignore-not-found")
        return json.loads(answer) if answer.strip() else None

    def items(self, *what: str) -> list[Any]:
        """Objects of a kind, such as `pods -l app=x`."""
        found: list[Any] = self.get(*what)["items"]
        return found

    def pods(self, group: str) -> list[str]:
        """Names of the pods of a ConsumerGroup that are not being deleted."""
        found = self.items("pods", "--selector", f"agentstream.dev/group={group}")
        return sorted(p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"])

    def wait(self, *what: str, condition: str, timeout: float = 60) -> None:
        """Waits until a condition holds, as `kubectl wait --for`.

        Raises:
            CommandFailed: it does not in time.
        """
        self("wait", *what, f"--for={condition}", f"--timeout={timeout:g}s", timeout=timeout + 10)

    def ready(self, *what: str, timeout: float = 60) -> None:
        """Waits until resources of ours are in effect."""
        self.wait(*what, condition="condition=Ready", timeout=timeout)

    def refuses(self, *manifests: Manifest) -> str:
        """What kubectl says to manifests that the API server does not take.

        Raises:
            AssertionError: it takes them.
        """
        return _refusal(lambda: self.apply(*manifests))

    def refuses_patch(self, what: str, change: Manifest) -> str:
        """What kubectl says to a change that the API server does not take.

        Raises:
            AssertionError: it takes it.
        """
        return _refusal(lambda: self.patch(what, change))

    def events(self, reason: str, about: str = "") -> list[str]:
        """The messages of events with a reason, about any object or the one of this name."""
        fields = f"reason={reason}" + (f",involvedObject.name={about}" if about else "")
        return [event["message"] for event in self.items("events", "--field-selector", fields)]


def condition(resource: Manifest, name: str) -> Manifest:
    """A condition of a resource; empty if it has none of that type."""
    found = (resource.get("status") or {}).get("conditions") or []
    return next((c for c in found if c["type"] == name), {})


def in_effect(resource: Manifest) -> bool:
    """Whether the newest generation of a resource is Ready."""
    ready = condition(resource, "Ready")
    return (
        ready.get("status") == "True"
        and ready.get("observedGeneration") == resource["metadata"]["generation"]
    )


def _refusal(attempt: Callable[[], str]) -> str:
    try:
        attempt()
    except CommandFailed as error:
        return error.output
    raise AssertionError("it was taken")
