"""A load of numbered messages, and what became of each: lost, or handled once, or more often."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.images import COUNTING
from harness.kind import NODE_PORT, Cluster
from harness.kubectl import Kubectl
from harness.manifests import a_group, a_stream, a_template
from harness.waiting import until

RATE = 30.0
WORKERS = 4
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


@dataclass
class Load:
    """A sender, workers, and the ledger in which both note what they do.

    The sender and the ledger are one pod on the control plane, where no test destroys anything. The workers
    are a ConsumerGroup's, spread over the other nodes.

    Attributes:
        cluster: where.
        namespace: the namespace that has it all.
        notes: what the ledger says, as far as it was read.
    """

    cluster: Cluster
    namespace: str
    notes: list[Note] = field(default_factory=list)
    _run: int | None = None
    _busy: int = 0
    _connection: socket.socket | None = None

    @property
    def kubectl(self) -> Kubectl:
        """kubectl for its namespace."""
        return self.cluster.kubectl.within(self.namespace)

    def start(self) -> None:
        """Makes everything, and returns when messages flow and every worker has had one."""
        self.kubectl.apply(
            a_stream("numbers", producers=["sender"]),
            a_group("worker", "numbers", startFrom="Beginning", replicas=WORKERS, template=_worker()),
            *_sender(),
        )
        self.kubectl.ready("agentstream/numbers", "consumergroup/worker", timeout=90)
        self.kubectl("rollout", "status", "deployment/load", "--timeout=90s", timeout=100)
        until(lambda: self.steer(RATE), despite_errors=True)
        until(lambda: len({note.who for note in self.read() if note.what == "handled"}) >= WORKERS, 90)

    def pods(self) -> list[str]:
        """Names of the workers' pods."""
        return self.kubectl.pods("worker")

    def steer(self, rate: float) -> float:
        """Has so many messages sent a second. Returns the time on the ledger's clock."""
        return self._read(rate=rate)

    def now(self) -> float:
        """The time on the ledger's clock."""
        return self._read()

    def read(self) -> list[Note]:
        """All notes.

        Raises:
            AssertionError: the ledger was started anew, and has forgotten.
        """
        self._read()
        return self.notes

    def processes(self, pods: Iterable[str]) -> frozenset[str]:
        """The consumers that these pods have had so far."""
        among = frozenset(pods)
        return frozenset(note.who for note in self.read() if note.who.partition("/")[0] in among)

    def taken_over(self, consumers: frozenset[str], timeout: float = 120) -> dict[int, float]:
        """Waits until everything that some consumers had begun is handled, by whomever.

        Returns:
            What the consumers did not come to handle, and when another one first began it.
        """

        def all_handled() -> bool:
            begun = {note.number for note in self.read() if note.what == "begun" and note.who in consumers}
            return begun <= {note.number for note in self.notes if note.what == "handled"}

        until(all_handled, timeout, despite_errors=True)
        begun = {note.number for note in self.notes if note.what == "begun" and note.who in consumers}
        first: dict[int, str] = {}
        taken: dict[int, float] = {}
        for note in self.notes:
            if note.what == "handled":
                first.setdefault(note.number, note.who)
            elif note.what == "begun" and note.who not in consumers:
                taken.setdefault(note.number, note.at)
        return {number: taken[number] for number in begun if first[number] not in consumers}

    def resumed(self, since: float, timeout: float = 120) -> float:
        """Waits until a number that was accepted after `since` is handled. Returns when it was."""

        def handled() -> Note | None:
            fresh = {n.number for n in self.read() if n.what == "accepted" and n.at > since}
            return next((n for n in self.notes if n.what == "handled" and n.number in fresh), None)

        found = until(handled, timeout, despite_errors=True)
        assert found is not None
        return found.at

    def finish(self, timeout: float = 120) -> None:
        """Ends the sending, and waits for as long as it may until everything that was accepted is handled."""
        self.steer(0)
        # what is on its way to the server may take as long as `send_message` tries
        until(lambda: self._read() and not self._busy, despite_errors=True)
        with suppress(TimeoutError):
            until(lambda: self._read() and not self.counts().lost, timeout, despite_errors=True)

    def counts(self, since: float = 0.0) -> Counts:
        """What became of the numbers that were accepted after `since`."""
        accepted = {
            note.number: note.at for note in self.notes if note.what == "accepted" and note.at >= since
        }
        handled: dict[int, float] = {}
        for note in self.notes:
            if note.what == "handled":
                handled.setdefault(note.number, note.at)
        times = Counter(note.number for note in self.notes if note.what == "handled")
        return Counts(
            sent=len(accepted),
            lost=frozenset(accepted.keys() - handled.keys()),
            twice=sum(times[number] > 1 for number in accepted),
            refused=sum(note.what == "refused" and note.at >= since for note in self.notes),
            longest=max((handled[n] - at for n, at in accepted.items() if n in handled), default=0.0),
        )

    def close(self) -> None:
        """Ends the sender and the ledger, whose port the next load needs."""
        self._hang_up()
        self.kubectl("delete", "service/load", "deployment/load", "--ignore-not-found")

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self, **more: float) -> float:
        """Reads the newest notes. Returns the time on the ledger's clock."""
        answer = self._ask({"read": len(self.notes), **more})
        assert self._run in {None, answer["run"]}, "the ledger was started anew"
        self._run, self._busy = answer["run"], answer["busy"]
        self.notes += [Note(*note) for note in answer["notes"]]
        now: float = answer["now"]
        return now

    def _ask(self, question: dict[str, Any]) -> Any:
        """Asks the ledger.

        Raises:
            OSError: it cannot be reached.
        """
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


def _worker() -> dict[str, Any]:
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"agentstream.dev/group": "worker"}},
    }
    template = a_template("python", "worker.py", image=COUNTING, topologySpreadConstraints=[spread])
    template["spec"]["containers"][0]["env"] = [{"name": "LEDGER", "value": "load"}]
    return template


def _sender() -> tuple[dict[str, Any], ...]:
    """The sender with the ledger: a Deployment of the test's own, with the Secret that the operator makes."""
    labels = {"app": "load"}
    container = {
        "name": "load",
        "image": COUNTING,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "load.py"],
        "env": [{"name": "AGENTSTREAM_BINDING", "value": "/binding"}],
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        "volumeMounts": [{"name": "binding", "mountPath": "/binding", "readOnly": True}],
    }
    pod = {
        "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "binding", "secret": {"secretName": "agentstream-sender"}}],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "load"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "load"},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": 8000, "nodePort": NODE_PORT}]},
    }
    return deployment, service
