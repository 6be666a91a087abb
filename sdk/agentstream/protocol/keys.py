"""Names that agents, operator and server share: keys, channels, users, consumers; see docs/adr/0002-keys.md.

All keys of a stream share its cluster hash tag, so that one function call may touch them together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

DNS_LABEL: Final = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
"""Names of agents, namespaces and installations, as a regular expression."""

DERIVED: Final = (
    *("meta", "gate", "order", "receipts", "contracts", "sent", "once", "done"),
    *("retry", "delay", "dlq", "stats", "parked", "seen", "earlier", "reply", "replay"),
)
"""The words that come after the key of a stream, or of an agent, in every key derived from it."""

_REPLAY = re.compile(rf"({DNS_LABEL})\.[a-z0-9]{{1,8}}")
_TAG = re.compile(r"\{[^{}]+\}")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Nudge(StrEnum):
    """Words that are published on an agent's nudge channel.

    Attributes:
        SWEEP: entries became claimable for any consumer.
        ROUTES: the agent's route has changed.
    """

    SWEEP = "sweep"
    ROUTES = "routes"


def default_stream_key(namespace: str, name: str) -> str:
    """The key of an AgentStream that names none: `{<namespace>.<name>}`."""
    return f"{{{namespace}.{name}}}"


def routes_key(installation: str, namespace: str) -> str:
    """The hash with the routes of a namespace's agents."""
    return f"agentstream:{installation}:{namespace}:routes"


def user_name(installation: str, namespace: str, agent: str) -> str:
    """The ACL user of an agent."""
    return f"{installation}.{namespace}.{agent}"


def notify_channel(installation: str, namespace: str, addressee: str) -> str:
    """The channel of notifications to an agent, or to `broadcast`."""
    return f"agentstream:{installation}:{namespace}:notify:{addressee}"


def nudge_channel(installation: str, namespace: str, agent: str) -> str:
    """The channel on which a `Nudge` reaches all processes of an agent."""
    return f"agentstream:{installation}:{namespace}:nudge:{agent}"


def cancel_channel(installation: str, namespace: str, addressee: str) -> str:
    """The channel on which requesters tell an agent that they wait no longer."""
    return f"agentstream:{installation}:{namespace}:cancel:{addressee}"


def reply_key(namespace: str, agent: str, token: str) -> str:
    """The short-lived stream with the answers to one process's requests; its token cannot be guessed."""
    return f"{{{namespace}.{agent}}}:reply:{token}"


def replay_id(name: str, uid: str) -> str:
    """The id of a replay on the server: `<name of the StreamReplay>.<first 8 characters of its uid>`."""
    return f"{name}.{uid[:8]}"


def parse_replay(text: object) -> str | None:
    """The name of the StreamReplay in the id of a replay; None if somebody made it up that has none."""
    found = _REPLAY.fullmatch(text) if isinstance(text, str) else None
    return found[1] if found else None


class ConsumerProcess(NamedTuple):
    """The process behind a consumer, which no other consumer ever has.

    Attributes:
        started: when it started to consume, in ms since 1970.
        id: its process id.
        place: where that id and the process can be looked up; or a random word.
    """

    started: int
    id: int
    place: str

    def __str__(self) -> str:
        """The part of the consumer's name after the pod: `<start in base 36>-<process id>-<place>`."""
        started, digits = self.started, ""
        while started or not digits:
            started, digit = divmod(started, len(_DIGITS))
            digits = _DIGITS[digit] + digits
        return f"{digits}-{self.id}-{self.place}"


def consumer_name(pod: str, process: ConsumerProcess) -> str:
    """The name of a consumer: `<pod>.<start>-<process id>-<place>`; the pod may have dots of its own."""
    return f"{pod_prefix(pod)}{process}"


def pod_prefix(pod: str) -> str:
    """The part that the names of all consumers of a pod start with."""
    return f"{pod}."


def parse_consumer(name: str) -> tuple[str, int | None]:
    """Pod and start in ms since 1970 in the name of a consumer; no start where the name ends otherwise."""
    pod, _, process = name.rpartition(".")
    try:
        return pod, int(process.partition("-")[0], len(_DIGITS))
    except ValueError:
        return pod, None


def parse_process(name: str) -> ConsumerProcess | None:
    """The process in the name of a consumer; None where the name ends otherwise."""
    _, started = parse_consumer(name)
    _, number, place = (*name.rpartition(".")[2].split("-", 2), "", "")[:3]
    return None if started is None or not number.isdecimal() else ConsumerProcess(started, int(number), place)


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The keys derived from one stream key.

    Attributes:
        stream: the key of the main stream.
    """

    stream: str

    @property
    def base(self) -> str:
        """The prefix of derived keys: the key if it has a hash tag, else the key as the tag."""
        return self.stream if _TAG.search(self.stream) else f"{{{self.stream}}}"

    @property
    def meta(self) -> str:
        """Hash of the operator: the owner of the stream, and each group's checkpoint."""
        return f"{self.base}:meta"

    @property
    def gate(self) -> str:
        """String: the length from which on the add function refuses."""
        return f"{self.base}:gate"

    @property
    def order(self) -> str:
        """Hash: ordering key -> the last entry that was added with it."""
        return f"{self.base}:order"

    @property
    def receipts(self) -> str:
        """Sorted set: the broadcasts that not all groups have finished, by the time of their addition."""
        return f"{self.base}:receipts"

    @property
    def contracts(self) -> str:
        """Hash: message type and schema version -> the JSON Schema that payloads must fit."""
        return f"{self.base}:contracts"

    def sent(self, token: str) -> str:
        """String with a lifetime: the results of a sender's last batch, in case it is sent again."""
        return f"{self.base}:sent:{token}"

    def once(self, sender: str, to: str, key: str) -> str:
        """String with a lifetime: the entry that a sender added under an idempotency key for an addressee."""
        return f"{self.base}:once:{sender}:{to}:{key}"

    def done(self, group: str, key: str) -> str:
        """String with a lifetime: the state of an effect that the group must not repeat."""
        return f"{self.base}:done:{group}:{key}"

    def retry(self, group: str) -> str:
        """Stream of the messages that are due again for the group."""
        return f"{self.base}:retry:{group}"

    def seen(self, group: str) -> str:
        """Hash: digest of a signed message -> the entry in which the group first met it."""
        return f"{self.base}:seen:{group}"

    def earlier(self, group: str) -> str:
        """The same, of messages that were met earlier."""
        return f"{self.base}:earlier:{group}"

    def replay(self, replay: str) -> str:
        """Hash of the operator: how far a replay is, by the id of the replay."""
        return f"{self.base}:replay:{replay}"

    def delay(self, group: str) -> str:
        """Sorted set of the retries that are not due yet; the score is the due time in ms."""
        return f"{self.base}:delay:{group}"

    def dead_letters(self, group: str) -> str:
        """Stream of the group's dead letters."""
        return f"{self.base}:dlq:{group}"

    def stats(self, group: str) -> str:
        """Hash of counters and latency buckets that settling adds to."""
        return f"{self.base}:stats:{group}"

    def parked(self, group: str) -> str:
        """Hash: entry id -> `retrying` or `dead`; of broadcast streams, and of entries with ordering keys."""
        return f"{self.base}:parked:{group}"
