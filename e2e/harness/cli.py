"""The command `agentstream`, as a user types it: with a kubeconfig, and nothing else."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.kubectl import Kubectl

_PROGRAM = str(Path(sys.executable).with_name("agentstream"))


@dataclass(frozen=True)
class Cli:
    """`agentstream` for one cluster and namespace.

    Attributes:
        kubectl: kubectl for them.
    """

    kubectl: Kubectl

    def __call__(self, command: str, *arguments: str, timeout: float = 120) -> str:
        """Runs a command of it. Returns what it prints.

        Raises:
            CommandFailed: its exit code is not 0.
        """
        words = (_PROGRAM, command, "--namespace", self.kubectl.namespace, *arguments)
        return self.kubectl.machine.run(*words, kubeconfig=self.kubectl.kubeconfig, timeout=timeout)

    def read(self, command: str, *arguments: str) -> Any:
        """Runs a command of it. Returns the document that it prints."""
        return json.loads(self(command, *arguments, "--output", "json"))
