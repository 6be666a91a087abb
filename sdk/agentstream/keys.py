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

    def once(self, message_id: str) -> str:
        """String with a lifetime: the entry that a message became, for sends that are repeated."""
        return f"{self.base}:once:{message_id}"

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
        """Hash on broadcast streams: entry id -> `retrying` or `dead`."""
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
