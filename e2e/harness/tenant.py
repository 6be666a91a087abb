"""A tenant who may declare streams and groups in his own namespace, and uses that to harm others."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.images import COUNTING
from harness.kubectl import Kubectl, Manifest
from harness.manifests import a_group, a_stream, a_template
from harness.shell import CommandFailed

OURS = {"apiGroups": ["agentstream.dev"], "resources": ["*"], "verbs": ["*"]}
"""Everything with streams and groups."""

DEPLOYMENTS = {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": ["*"]}


def as_somebody(admin: Kubectl, directory: Path, name: str, *rules: Manifest) -> Kubectl:
    """kubectl for somebody who may do what rules say in this namespace, and nothing else.

    Args:
        admin: kubectl for the namespace.
        directory: for the kubeconfig.
        name: of the ServiceAccount that is made.
        rules: as of a Role.
    """
    admin.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name},
            "rules": [*rules],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": admin.namespace}],
        },
    )
    token = admin("create", "token", name).strip()
    shown = json.loads(admin("config", "view", "--raw", "--minify", "--output", "json"))
    shown["users"] = [{"name": name, "user": {"token": token}}]
    shown["contexts"][0]["context"]["user"] = name
    # in a file: a token among the arguments could be read by others
    kubeconfig = directory / name
    kubeconfig.touch(0o600)
    kubeconfig.write_text(json.dumps(shown))
    return replace(admin, kubeconfig=kubeconfig)


def nested(depth: int) -> str:
    """JSON of so many objects in each other."""
    return '{"a":' * depth + "1" + "}" * depth


def with_junk(manifest: Manifest, junk: str) -> str:
    """A manifest as JSON, with other JSON as an unknown field of its pods."""
    return json.dumps(manifest).replace('"@junk@"', junk)


@dataclass
class Tenant:
    """What he does, and how often; `attack` goes on until a time.

    Attributes:
        kubectl: as he has it: with rights to streams, groups and Deployments of his namespace.
        intern: the same for somebody who has none to Deployments.
        victim: a namespace that is not his.
        said: of each attack, how often it was carried out, and how often refused.
    """

    kubectl: Kubectl
    intern: Kubectl
    victim: str
    said: Counter[str] = field(default_factory=Counter)

    def attack(self, until: float) -> None:
        """Carries out one attack after the other until a time of `time.monotonic`."""
        for attack in itertools.cycle((self.deep, self.large, self.names, self.pods, self.storm)):
            if time.monotonic() > until:
                return
            attack()

    def deep(self) -> None:
        """Objects that nest deeper than a parser may go."""
        template = a_template("true", image=COUNTING)
        template["spec"]["junk"] = "@junk@"
        for depth in (70, 900, 3_000):
            group = with_junk(a_group(f"deep-{depth}", "tasks", template=template, replicas=0), nested(depth))
            self._create("deep", group)
            contracts = [{"type": "event", "schema": "@junk@"}]
            self._create("deep", with_junk(a_stream(f"deep-{depth}", contracts=contracts), nested(depth)))

    def large(self) -> None:
        """Objects of a megabyte, most of it empty."""
        template = a_template("true", image=COUNTING)
        template["spec"]["junk"] = "@junk@"
        junk = "[" + ",".join(["{}"] * 330_000) + "]"
        for number in range(3):
            self._create("large", with_junk(a_group(f"large-{number}", "tasks", template=template), junk))

    def names(self) -> None:
        """Names that are another's, or reserved."""
        others, own = f"{{{self.victim}.numbers}}", f"{{{self.kubectl.namespace}.tasks}}"
        keys = (
            others,
            f"{others}:once",
            f"{own}:once",
            f"{own}:sent",
            f"{own}:retry:mallory",
            f"{own}:reply",
        )
        odd = ("*", "agentstream:agentstream:x:routes", "{", "{}", "x" * 500, "a\nb", "\x00", "{a}{b}", "é")
        for number, key in enumerate((*keys, *odd)):
            self._create("names", json.dumps(a_stream(f"names-{number}", key=key)))
        for number, group in enumerate(("worker", "mallory", "*", "a:b", "a b", "x" * 300, "-", "é")):
            self._create("names", json.dumps(a_group(f"names-{number}", "tasks", group=group)))
        self._create("names", json.dumps(a_stream("producers", producers=["sender", "worker", *"abcdefgh"])))

    def pods(self) -> None:
        """Pods that the intern may not make."""
        privileged: list[dict[str, Any]] = [
            {"hostPID": True, "hostNetwork": True},
            {"serviceAccountName": "default", "automountServiceAccountToken": True},
            {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
            {"nodeName": "no-such-node"},
            {"containers": []},
            {
                "containers": [
                    {"name": "x" * 63, "image": "no.such/image:1", "resources": {"limits": {"cpu": "x"}}}
                ]
            },
        ]
        for number, more in enumerate(privileged):
            template = a_template("sleep", "1", image=COUNTING)
            template["spec"] |= more
            group = a_group(f"pods-{number}", "tasks", agent="mallory", template=template, replicas=1)
            self._create("pods", json.dumps(group), self.intern)
        target = a_group("takes-over", "tasks", deploymentRef={"name": "load"}, replicas=0)
        self._create("pods", json.dumps(target), self.intern)

    def storm(self) -> None:
        """Many objects, made and deleted at once."""
        numbers = range(15)
        many = [
            *(a_stream(f"storm-{n}") for n in numbers),
            *(a_group(f"storm-{n}", f"storm-{n}") for n in numbers),
        ]
        self._create("storm", json.dumps({"apiVersion": "v1", "kind": "List", "items": many}))
        names = [f"{kind}/storm-{n}" for n in numbers for kind in ("agentstream", "consumergroup")]
        self._try("storm", lambda: self.kubectl("delete", *names, "--wait=false", "--ignore-not-found"))
        junk = random.Random(len(self.said)).choice((1, 300, 3_000))
        change = {"metadata": {"annotations": {"agentstream.dev/junk": "x" * junk}}}
        self._try("storm", lambda: self.kubectl.patch("agentstream/tasks", change))

    def _create(self, what: str, manifest: str, kubectl: Kubectl | None = None) -> None:
        def create() -> str:
            return (kubectl or self.kubectl)("create", "--validate=false", "--filename", "-", stdin=manifest)

        self._try(what, create)

    def _try(self, what: str, attempt: Callable[[], str]) -> None:
        self.said[what] += 1
        try:
            attempt()
        except CommandFailed:
            self.said[f"{what}: refused"] += 1
