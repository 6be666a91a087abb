"""A group whose consumers follow its backlog, and what becomes of the messages that it is sent."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from harness.images import COUNTING
from harness.kubectl import Kubectl
from harness.ledger import Counts, Ledger, Note, count
from harness.manifests import a_group, a_stream, a_template
from harness.redis import Redis
from harness.waiting import until
from harness.watch import Change, Watch

# They are added in one step: a burst is there at once. The script's clock stands still, so all have one time.
_ADD = """
local first, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local added
for number = first, first + count - 1 do
    local id = string.format('"id":"00000000-0000-4000-8000-%012x",', number)
    added = redis.call('XADD', KEYS[1], '*', 'm', ARGV[3] .. id .. ARGV[4] .. number .. '}}')
end
return added
"""


@dataclass
class Crew:
    """A stream and its group, whose consumers handle `handlers` messages at a time.

    Attributes:
        kubectl: kubectl for its namespace.
        redis: the server.
        ledger: where the consumers note what they do.
        watch: of the namespace's Deployments.
        name: of stream and group.
        accepted: what was sent, and when, in seconds since 1970.
    """

    kubectl: Kubectl
    redis: Redis
    ledger: Ledger
    watch: Watch
    name: str
    accepted: dict[int, float] = field(default_factory=dict, repr=False)
    _next: int = 0
    _notes: defaultdict[str, list[Note]] = field(default_factory=lambda: defaultdict(list), repr=False)
    _read: int = 0

    @property
    def key(self) -> str:
        """The stream's key."""
        return f"{{{self.kubectl.namespace}.{self.name}}}"

    @property
    def deployment(self) -> str:
        """The Deployment with the consumers."""
        return f"{self.name}-consumer"

    def declare(self, *, handlers: int = 1, **spec: Any) -> None:
        """Makes stream and group, and returns when they are in effect.

        Args:
            handlers: how many messages a consumer handles at a time.
            spec: fields of the group.
        """
        template = a_template("python", "steady.py", image=COUNTING)
        variables = {"LEDGER": "load", "STREAM": self.name, "HANDLERS": str(handlers)}
        template["spec"]["containers"][0]["env"] = [{"name": n, "value": v} for n, v in variables.items()]
        self.kubectl.apply(a_stream(self.name), a_group(self.name, self.name, template=template, **spec))
        self.kubectl.ready(f"agentstream/{self.name}", f"consumergroup/{self.name}")

    def patch(self, **spec: Any) -> None:
        """Changes fields of the group."""
        self.kubectl.patch(f"consumergroup/{self.name}", {"spec": spec})

    def send(self, count: int = 1, seconds: float = 0.0, **payload: Any) -> int:
        """Sends numbered messages, all at once.

        Args:
            count: how many.
            seconds: how long each of them is to take.
            payload: more to tell the consumers.

        Returns:
            The last one's number.
        """
        first, self._next = self._next, self._next + count
        head = {"v": 1, "from": "test", "to": self.name, "type": "task_request", "timestamp": 0}
        payload = {"seconds": seconds, **payload, "number": 0}
        opened, rest = json.dumps(head)[:-1] + ", ", json.dumps(payload).removesuffix("0}")
        script = (_ADD, "1", self.key, str(first), str(count), opened, f'"payload":{rest}')
        (last,) = self.redis("EVAL", *script)
        self.accepted |= dict.fromkeys(range(first, self._next), int(last.partition("-")[0]) / 1000)
        return self._next - 1

    def changes(self, since: float = 0.0) -> list[Change]:
        """How many consumers were wanted, and ready, over time."""
        return self.watch.of(self.deployment, since)

    def notes(self, what: str) -> list[Note]:
        """What its consumers noted, of one sort: `started`, `begun` or `handled`."""
        self.ledger.read()
        for note in self.ledger.notes[self._read :]:
            if note.who.startswith(f"{self.deployment}-"):
                self._notes[note.what].append(note)
        self._read = len(self.ledger.notes)
        return self._notes[what]

    def drained(self, timeout: float = 60) -> float:
        """Waits until everything that was sent is handled. Returns when it was, in seconds since 1970."""

        def all_handled() -> bool:
            # counting takes a while
            return len(self.notes("handled")) >= len(self.accepted) and not self.counts().lost

        until(all_handled, timeout, despite_errors=True)
        return max(note.at for note in self.notes("handled"))

    def begun(self, number: int, timeout: float = 60) -> Note:
        """Waits until a consumer begins a message. Returns its note."""

        def found() -> list[Note]:
            return [note for note in self.notes("begun") if note.number == number]

        return until(found, timeout, despite_errors=True)[0]

    def reached(self, wanted: int, since: float = 0.0, timeout: float = 60) -> float:
        """Waits until so many consumers are wanted and ready. Returns when, in seconds since 1970."""

        def there() -> list[Change]:
            return [change for change in self.changes(since) if change.wanted == change.ready == wanted]

        return until(there, timeout)[0].at

    def asleep(self, timeout: float = 60) -> None:
        """Waits until there are no consumers."""

        def none() -> bool:
            changes = self.changes()
            return bool(changes) and changes[-1].wanted == changes[-1].ready == 0

        until(none, timeout)

    def gone(self) -> None:
        """Waits until there is not even a pod that ends."""
        until(lambda: not self.kubectl.items("pods", "--selector", f"agentstream.dev/group={self.name}"))

    def counts(self) -> Counts:
        """What became of what was sent."""
        return count(self.accepted, self.notes("handled"))

    def pending(self) -> dict[str, int]:
        """How many messages each consumer has in hand, as the server has it."""
        summary = self.redis("XPENDING", self.key, self.name)
        return dict(zip(summary[3::2], map(int, summary[4::2]), strict=True)) if summary[0] != "0" else {}

    def checkpoint(self) -> str:
        """The entry after which the group would go on, had it to be made again."""
        return self.redis("HGET", f"{self.key}:meta", f"checkpoint:{self.name}")[0]

    def lag(self) -> str:
        """What the server says of the group's lag; empty if it does not know."""
        lines = self.redis("XINFO", "GROUPS", self.key)
        names, values = lines[::2], lines[1::2]
        return dict(zip(names, values, strict=True))["lag"]
