"""The name by which this program was called."""

from __future__ import annotations

import sys
from pathlib import Path

PLUGIN = "kubectl-agentstream"


def program() -> str:
    """Returns what to type to call it again: `agentstream`, or `kubectl agentstream` for the plugin."""
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    return "kubectl agentstream" if name == PLUGIN else "agentstream"
