"""The ledger in which sender and workers note what becomes of messages, as a test reads it."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.images import COUNTING
from harness.kind import NODE_PORT, Cluster
from harness.kubectl import Kubectl, Manifest

NAME = "load"
"""Its Service, and the Deployment that it is in."""

_PORT = 8000
_PATIENCE = 10.0


class Note(NamedTuple):
    """What the ledger says: when, what happened, to which number, and by whom."""

    at: float
    what: str
    number: int
    who: str


@dataclass(frozen=True)
class Counts:
    """What became of the numbers sent in a span of time.

    Attributes:
        sent: how many were accepted: `send_message` returned.
        lost: those of them that nobody handled.
        twice: how many were handled more than once.
        refused: how many are on the stream or not, nobody knows: `send_message` raised.
        longest: the longest that one waited from being accepted to being handled, in seconds.
    """

    sent: int
    lost: frozenset[int]
    twice: int
    refused: int
    longest: float


def count(accepted: Mapping[int, float], notes: Sequence[Note], refused: int = 0) -> Counts:
    """What became of numbers that were accepted, each at its time."""
    handled: dict[int, float] = {}
    for note in notes:
        if note.what == "handled":
            handled.setdefault(note.number, note.at)
    times = Counter(note.number for note in notes if note.what == "handled")
    return Counts(
        sent=len(accepted),
        lost=frozenset(accepted.keys() - handled.keys()),
        twice=sum(times[number] > 1 for number in accepted),
        refused=refused,
        longest=max((handled[n] - at for n, at in accepted.items() if n in handled), default=0.0),
    )


@dataclass
class Ledger:
    """A ledger in a pod on the control plane, where no test destroys anything.

    Attributes:
        cluster: where.
        notes: what it says, as far as it was read.
        busy: how many messages of its pod were on their way to the server then.
    """

    cluster: Cluster
    notes: list[Note] = field(default_factory=list, repr=False)
    busy: int = 0
    _run: int | None = None
    _connection: socket.socket | None = None

    def read(self, **more: float) -> float:
        """Reads the newest notes. Returns the time on the ledger's clock.

        Raises:
            OSError: it cannot be reached.
            AssertionError: it was started anew, and has forgotten.
        """
        answer = self._ask({"read": len(self.notes), **more})
        assert self._run in {None, answer["run"]}, "the ledger was started anew"
        self._run, self.busy = answer["run"], answer["busy"]
        self.notes += [Note(*note) for note in answer["notes"]]
        now: float = answer["now"]
        return now

    def remove(self, kubectl: Kubectl) -> None:
        """Ends it, and frees its port for the next one."""
        self._hang_up()
        kubectl("delete", f"service/{NAME}", f"deployment/{NAME}", "--ignore-not-found")

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, question: dict[str, Any]) -> Any:
        if self._connection is None:
            self._connection = socket.create_connection(self.cluster.address(), timeout=_PATIENCE)
        try:
            self._connection.sendall(json.dumps(question).encode() + b"\n")
            with self._connection.makefile("rb") as answers:
                line = answers.readline()
            if not line:
                raise ConnectionResetError("the ledger hung up")
        except OSError:
            self._hang_up()
            raise
        return json.loads(line)


def a_ledger(*command: str, **pod: Any) -> tuple[Manifest, ...]:
    """A Deployment with the ledger, and its Service.

    Args:
        command: what serves it.
        pod: `volumes`, `volumeMounts` and `env` of its pod.
    """
    labels = {"app": NAME}
    container: dict[str, Any] = {
        "name": NAME,
        "image": COUNTING,
        "imagePullPolicy": "IfNotPresent",
        "command": [*command],
        "ports": [{"containerPort": _PORT}],
        "readinessProbe": {"tcpSocket": {"port": _PORT}, "periodSeconds": 1},
        "env": pod.get("env", []),
        "volumeMounts": pod.get("volumeMounts", []),
    }
    spec = {
        "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": pod.get("volumes", []),
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": _PORT, "nodePort": NODE_PORT}]},
    }
    return deployment, service
