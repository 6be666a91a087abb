"""Names of everything that a stream keeps on the server; see docs/adr/0002-keys.md.

All keys of a stream share its cluster hash tag, so that one function call may touch them together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r"\{[^{}]+\}")


def default_stream_key(namespace: str, name: str) -> str:
    """The key of an AgentStream that names none: `{<namespace>.<name>}`."""
    return f"{{{namespace}.{name}}}"


def routes_key(installation: str, namespace: str) -> str:
    """The hash in which agents of a namespace look up who consumes and produces what."""
    return f"agentstream:{installation}:{namespace}:routes"


def user_name(installation: str, namespace: str, agent: str) -> str:
    """The ACL user of an agent."""
    return f"{installation}.{namespace}.{agent}"


def notify_channel(installation: str, namespace: str, addressee: str) -> str:
    """The channel of notifications to an agent, or to `broadcast`."""
    return f"agentstream:{installation}:{namespace}:notify:{addressee}"


def nudge_channel(installation: str, namespace: str, agent: str) -> str:
    """The channel on which an agent's processes are told that there is something to look at."""
    return f"agentstream:{installation}:{namespace}:nudge:{agent}"


def reply_key(namespace: str, agent: str, token: str) -> str:
    """The short-lived stream with the answers to one process's requests; the token cannot be guessed."""
    return f"{{{namespace}.{agent}}}:reply:{token}"


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The keys derived from one stream key.

    Attributes:
        stream: the key of the main stream.
    """

    stream: str

    @property
    def base(self) -> str:
        """What derived keys start with: the key if it has a hash tag, else the key as the tag."""
        return self.stream if _TAG.search(self.stream) else f"{{{self.stream}}}"

    @property
    def meta(self) -> str:
        """Hash of the operator: who owns the stream, and each group's checkpoint."""
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
    def contracts(self) -> str:
        """Hash: message type and schema version -> the JSON Schema that payloads must fit."""
        return f"{self.base}:contracts"

    def sent(self, token: str) -> str:
        """String with a lifetime: what became of a sender's last batch, should it be repeated."""
        return f"{self.base}:sent:{token}"

    def once(self, key: str) -> str:
        """String with a lifetime: the entry that was added under a key of the sender's own."""
        return f"{self.base}:once:{key}"

    def done(self, group: str, key: str) -> str:
        """String with a lifetime: what became of an effect that the group must not repeat."""
        return f"{self.base}:done:{group}:{key}"

    def retry(self, group: str) -> str:
        """Stream of the messages that are due again for one group only."""
        return f"{self.base}:retry:{group}"

    def delay(self, group: str) -> str:
        """Sorted set of the retries that are not due yet; the score is the due time in ms."""
        return f"{self.base}:delay:{group}"

    def dead_letters(self, group: str) -> str:
        """Stream of the messages that the group gave up."""
        return f"{self.base}:dlq:{group}"

    def stats(self, group: str) -> str:
        """Hash of counters and latency buckets that settling adds to."""
        return f"{self.base}:stats:{group}"

    def parked(self, group: str) -> str:
        """Hash: entry id -> `retrying` or `dead`; of broadcast streams, and of entries with ordering keys."""
        return f"{self.base}:parked:{group}"

    def derived(self, group: str) -> tuple[str, ...]:
        """Every key that belongs to one group besides the main stream."""
        return (
            self.retry(group),
            self.delay(group),
            self.dead_letters(group),
            self.stats(group),
            self.parked(group),
        )
