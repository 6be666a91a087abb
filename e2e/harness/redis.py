"""The embedded server, asked as its operator from within its pod."""

from __future__ import annotations

from dataclasses import dataclass

from harness.kubectl import Kubectl

_ASK = 'REDISCLI_AUTH=$(cat /etc/agentstream/credentials/password) exec redis-cli --user operator "$@"'


@dataclass(frozen=True)
class Redis:
    """A server in a pod.

    Attributes:
        kubectl: kubectl for its namespace.
        pod: the pod's name.
    """

    kubectl: Kubectl
    pod: str

    def __call__(self, *command: str) -> list[str]:
        """Sends a command. Returns the lines of the reply.

        Raises:
            CommandFailed: the server cannot be asked.
        """
        answer = self.kubectl(
            "exec", self.pod, "--container", "redis", "--", "sh", "-c", _ASK, "redis-cli", *command
        )
        return answer.splitlines()

    def exists(self, key: str) -> bool:
        """Whether there is something under a key."""
        return self("EXISTS", key) == ["1"]

    def run(self) -> str:
        """What names the server's process: the one that takes its place has another name."""
        return next(line for line in self("INFO", "server") if line.startswith("run_id:")).strip()

    def users(self) -> list[str]:
        """Names of the agents' users."""
        return [name for name in self("ACL", "USERS") if name not in {"default", "operator"}]
