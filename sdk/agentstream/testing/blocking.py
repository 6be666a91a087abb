"""The sandbox for tests without an event loop."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self, cast

from agentstream.sync import Agent
from agentstream.sync.agent import SyncAgent
from agentstream.sync.loop import LoopThread
from agentstream.sync.mirror import SyncFace, mirrors, shares
from agentstream.testing.faults import Faults
from agentstream.testing.sandbox import KillableAgent, Sandbox
from agentstream.testing.server import Server


class KillableSyncAgent(SyncAgent):
    """An agent that can end as by SIGKILL; see `SyncSandbox.kill`."""

    def crash(self) -> None:
        """Ends the agent without another command to the server, and its thread."""
        self._loop.complete(cast("KillableAgent", self._original).crash)
        self._loop.end()


class SyncSandbox(SyncFace[Sandbox], of=Sandbox):
    """As `Sandbox`, for tests of programs that use `agentstream.sync`, as a context manager.

    Args:
        binary: path of the server's program, if not the embedded Valkey of `agentstream[testing]`.

    Attributes:
        faults: the network between the agents and the server.
        server: the server process.
    """

    faults: Faults
    server: Server

    def __init__(self, *, binary: str | Path | None = None) -> None:
        super().__init__(Sandbox(binary=binary), LoopThread("agentstream sandbox", "sandbox"))
        self._agents = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._loop.start()
        try:
            self._loop.run(self._original.__aenter__)
        except BaseException:
            self._loop.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self._loop.end)
            closing.callback(self._loop.complete, self._original.__aexit__, None, None, None)
            # agents hand back their messages when they close
            self.heal()
            self._agents.close()

    @mirrors(Sandbox.declare_stream)
    def declare_stream(self) -> None: ...

    @mirrors(Sandbox.declare_group)
    def declare_group(self) -> None: ...

    def agent(self, name: str, *, pod: str | None = None, through: Faults | None = None) -> Agent:
        """As `Sandbox.agent`: an agent of `agentstream.sync` that is entered, and ends with the sandbox."""
        settings = self._original.settings(name, pod=pod, through=through)
        return self._agents.enter_context(KillableSyncAgent(KillableAgent.connect(settings)))

    @shares(Sandbox.more_faults)
    def more_faults(self) -> None: ...

    @shares(Sandbox.heal)
    def heal(self) -> None: ...

    @shares(Sandbox.environ)
    def environ(self) -> None: ...

    @shares(Sandbox.process)
    def process(self) -> None: ...

    def kill(self, agent: Agent) -> None:
        """As `Sandbox.kill`; handlers go on, since no thread can be ended, and iterations end.

        Raises:
            TypeError: the agent was not made by `agent`.
        """
        if not isinstance(agent, KillableSyncAgent):
            raise TypeError(f"{agent.name} cannot be killed: make the agent with SyncSandbox.agent")
        agent.crash()

    @mirrors(Sandbox.settled)
    def settled(self) -> None: ...

    @mirrors(Sandbox.messages)
    def messages(self) -> None: ...

    @mirrors(Sandbox.dead_letters)
    def dead_letters(self) -> None: ...
