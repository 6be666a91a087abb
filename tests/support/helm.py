"""The chart, rendered by the real program helm, in the two major versions that people have."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "agentstream"
RELEASE = "agentstream"
NAMESPACE = "agentstream-system"
EMBEDDED = {"redis": {"embedded": True}}
EXTERNAL = {"redis": {"existingSecret": "my-redis"}}
PROMETHEUS = tuple(
    f"monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")
)
Document = dict[str, Any]


class Refused(Exception):  # noqa: N818 - it is what helm did
    """Helm did not render: its message."""


class Rendered(list[Document]):
    """The objects of a release, hooks included."""

    def of(self, kind: str) -> list[Document]:
        """Those of one kind."""
        return [document for document in self if document["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        """The names of those of one kind."""
        return {document["metadata"]["name"] for document in self.of(kind)}

    def one(self, kind: str, name: str, namespace: str | None = None) -> Document:
        """The object of this kind and name."""
        found = [
            document
            for document in self.of(kind)
            if document["metadata"]["name"] == name
            and namespace in {None, document["metadata"].get("namespace")}
        ]
        assert len(found) == 1, f"{len(found)} of {kind} {name}; there are {sorted(self.names(kind))}"
        return found[0]

    def pods(self) -> Iterator[tuple[str, Document]]:
        """Every pod, or template of one: what it is of, and its specification."""
        for document in self:
            name = f"{document['kind']} {document['metadata']['name']}"
            if document["kind"] == "Pod":
                yield name, document["spec"]
            elif "template" in document.get("spec", {}):
                yield name, document["spec"]["template"]["spec"]

    @property
    def operator(self) -> Document:
        """The specification of the operator's pod."""
        spec: Document = self.one("Deployment", RELEASE)["spec"]["template"]["spec"]
        return spec

    @property
    def password(self) -> str:
        """The password of the embedded server."""
        (secret,) = self.of("Secret")
        return base64.b64decode(secret["data"]["password"]).decode()


@dataclass(frozen=True)
class Helm:
    """One version of the program.

    Attributes:
        major: its number.
    """

    major: int

    @property
    def binary(self) -> Path:
        """Where it is.

        Raises:
            FileNotFoundError: it has not been fetched.
        """
        path = ROOT / ".venv" / "helm" / str(self.major) / "helm"
        if not path.exists():
            raise FileNotFoundError(f"helm {self.major} is not at {path}: run `make helm`")
        return path

    def run(self, *arguments: str, kubeconfig: Path | None = None) -> str:
        """Runs a command, without the settings of the person who runs the tests. Returns what it prints.

        Args:
            arguments: as on a command line.
            kubeconfig: which cluster to use, and as whom; none if absent.

        Raises:
            Refused: it failed.
        """
        nowhere = "/nonexistent"
        done = subprocess.run(
            [str(self.binary), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": nowhere, "KUBECONFIG": str(kubeconfig or nowhere)},
        )
        if done.returncode:
            raise Refused(done.stderr)
        return done.stdout

    def render(
        self, values: Mapping[str, Any] = EMBEDDED, *, release: str = RELEASE, knows: tuple[str, ...] = ()
    ) -> Rendered:
        """The objects of a release with these values; the same call renders once.

        Args:
            values: come in place of the chart's own.
            release: its name.
            knows: kinds that the cluster has besides Kubernetes' own, as `group/version/Kind`.

        Raises:
            Refused: helm did not render.
        """
        return cast("Rendered", pickle.loads(_rendered(self, json.dumps(values), release, knows)))

    @staticmethod
    def parse(text: str) -> Rendered:
        """The objects in what helm printed."""
        return Rendered(document for document in yaml.load_all(text, _Loader) if document)


HELMS = (Helm(4), Helm(3))
# five times faster where it was built with libyaml
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def notes(values: Mapping[str, Any] = EMBEDDED) -> str:
    """What a person reads after installing; helm 4's words, since helm 3 tells them only with a cluster."""
    command = ("install", RELEASE, str(CHART), "-n", NAMESPACE, "--dry-run=client")
    return HELMS[0].run(*command, *_set(json.dumps(values))).partition("\nNOTES:\n")[2]


@cache
def _rendered(helm: Helm, values: str, release: str, knows: tuple[str, ...]) -> bytes:
    """The objects as bytes, of which each caller makes copies of its own."""
    known = [part for kind in knows for part in ("--api-versions", kind)]
    text = helm.run("template", release, str(CHART), "-n", NAMESPACE, *_set(values), *known)
    return pickle.dumps(helm.parse(text))


def settings(values: Mapping[str, Any]) -> list[str]:
    """Arguments that give a release these values."""
    return _set(json.dumps(values))


def _set(values: str) -> list[str]:
    """Arguments that give every top-level value as JSON; without namespaces among them, all are watched."""
    given = json.loads(values)
    if not given.get("watchNamespaces"):
        given = {"allNamespaces": True, **given}
    return [part for name, value in given.items() for part in ("--set-json", f"{name}={json.dumps(value)}")]
