"""A load of numbered messages, and what became of each: lost, or handled once, or more often."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from harness.images import COUNTING
from harness.kind import Cluster
from harness.kubectl import Kubectl
from harness.ledger import Counts, Ledger, Note, a_ledger, count
from harness.manifests import a_group, a_stream, a_template
from harness.waiting import until

RATE = 30.0
WORKERS = 4


@dataclass
class Load:
    """A sender, workers, and the ledger in which both note what they do.

    The sender and the ledger are one pod on the control plane, where no test destroys anything. The workers
    are a ConsumerGroup's, spread over the other nodes.

    Attributes:
        cluster: where.
        namespace: the namespace that has it all.
    """

    cluster: Cluster
    namespace: str
    _ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.cluster)

    @property
    def ledger(self) -> Ledger:
        """Where sender and workers note what they do; others in the namespace may, too."""
        return self._ledger

    @property
    def notes(self) -> list[Note]:
        """What the ledger says, as far as it was read."""
        return self._ledger.notes

    @property
    def kubectl(self) -> Kubectl:
        """kubectl for its namespace."""
        return self.cluster.kubectl.within(self.namespace)

    def start(self) -> None:
        """Makes everything, and returns when messages flow and every worker has had one."""
        self.kubectl.apply(
            a_stream("numbers", producers=["sender"]),
            a_group("worker", "numbers", startFrom="Beginning", replicas=WORKERS, template=_worker()),
            *a_ledger(
                *("python", "load.py"),
                env=[{"name": "AGENTSTREAM_BINDING", "value": "/binding"}],
                volumeMounts=[{"name": "binding", "mountPath": "/binding", "readOnly": True}],
                # which the operator makes
                volumes=[{"name": "binding", "secret": {"secretName": "agentstream-sender"}}],
            ),
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
        return self._ledger.read(rate=rate)

    def now(self) -> float:
        """The time on the ledger's clock."""
        return self._ledger.read()

    def read(self) -> list[Note]:
        """All notes.

        Raises:
            AssertionError: the ledger was started anew, and has forgotten.
        """
        self._ledger.read()
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
        until(lambda: self.now() and not self._ledger.busy, despite_errors=True)
        with suppress(TimeoutError):
            until(lambda: self.now() and not self.counts().lost, timeout, despite_errors=True)

    def counts(self, since: float = 0.0) -> Counts:
        """What became of the numbers that were accepted after `since`."""
        accepted = {
            note.number: note.at for note in self.notes if note.what == "accepted" and note.at >= since
        }
        refused = sum(note.what == "refused" and note.at >= since for note in self.notes)
        return count(accepted, self.notes, refused)

    def close(self) -> None:
        """Ends the sender and the ledger, whose port the next load needs."""
        self._ledger.remove(self.kubectl)


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
