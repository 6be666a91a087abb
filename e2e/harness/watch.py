"""What changes of objects, and when: with the time at which the API server says so."""

from __future__ import annotations

import itertools
import threading
import time
from typing import NamedTuple, Self

from harness.kubectl import Kubectl


class Change(NamedTuple):
    """A Deployment after a change: when that was, and how many pods are wanted and ready."""

    at: float
    wanted: int
    ready: int


class Watch:
    """A watch of the Deployments of a namespace, as a context manager.

    Args:
        kubectl: kubectl for the namespace.
    """

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._changes: dict[str, list[Change]] = {}

    def of(self, deployment: str, since: float = 0.0) -> list[Change]:
        """The changes of a Deployment at a time, in seconds since 1970, and later."""
        return [change for change in self._changes.get(deployment, ()) if change.at >= since]

    def __enter__(self) -> Self:
        fields = r'jsonpath={.metadata.name} 0{.spec.replicas} 0{.status.readyReplicas}{"\n"}'
        self._process = self._kubectl.start("get", "deployments", "--watch", "--output", fields)
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._reading.join()

    def _read(self) -> None:
        with self._process:
            for line in self._process.stdout or ():
                name, wanted, ready = line.split()
                self._changes.setdefault(name, []).append(Change(time.time(), int(wanted), int(ready)))


def reversals(changes: list[Change]) -> int:
    """How often the number of pods that are wanted began to fall after it rose, or to rise after it fell."""
    wanted = [change.wanted for change in changes]
    steps = [later > earlier for earlier, later in itertools.pairwise(wanted) if later != earlier]
    return sum(step != before for before, step in itertools.pairwise(steps))
