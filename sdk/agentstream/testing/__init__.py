"""A real server for tests of agents, and faults on demand; see docs/testing.md.

    async with Sandbox() as sandbox:
        await sandbox.declare_stream("tasks", producers=["planner"])
        await sandbox.declare_group("tasks", agent="coder")
        planner, coder = sandbox.agent("planner"), sandbox.agent("coder")

A name is loaded when it is first used: pytest imports this package in every project that has the SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentstream.testing.blocking import SyncSandbox
    from agentstream.testing.faults import Fault, Faults, block_loop
    from agentstream.testing.process import AgentProcess
    from agentstream.testing.sandbox import Sandbox
    from agentstream.testing.server import SandboxError, Server
    from agentstream.testing.topology import DeadLetter

__all__ = [
    "AgentProcess",
    "DeadLetter",
    "Fault",
    "Faults",
    "Sandbox",
    "SandboxError",
    "Server",
    "SyncSandbox",
    "block_loop",
]

_HOMES = {
    "AgentProcess": "process",
    "DeadLetter": "topology",
    "Sandbox": "sandbox",
    "SyncSandbox": "blocking",
    **dict.fromkeys(("Fault", "Faults", "block_loop"), "faults"),
    **dict.fromkeys(("SandboxError", "Server"), "server"),
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
