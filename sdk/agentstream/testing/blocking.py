"""The sandbox for tests without an event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from agentstream.protocol.envelope import Message
from agentstream.sync import Agent
from agentstream.sync.loop import LoopThread
from agentstream.testing.faults import Faults
from agentstream.testing.process import AgentProcess
from agentstream.testing.sandbox import Sandbox
from agentstream.testing.server import Server
from agentstream.testing.topology import DeadLetter


class SyncSandbox:
    """As `Sandbox`, for tests of what uses `agentstream.sync`, as a context manager.

    Args:
        binary: a server's program, if not the embedded Valkey of `agentstream[testing]`.
    """

    def __init__(self, *, binary: str | Path | None = None) -> None:
        self._sandbox = Sandbox(binary=binary)
        self._loop = LoopThread("agentstream sandbox", "sandbox")
        self._agents = contextlib.ExitStack()

    @property
    def faults(self) -> Faults:
        """What is between the agents and the server."""
        return self._sandbox.faults

    @property
    def server(self) -> Server:
        """The server process."""
        return self._sandbox.server

    def __enter__(self) -> Self:
        """The sandbox, with a server that runs.

        Raises:
            SandboxError: there is no server for this platform, or it does not start.
        """
        self._loop.start()
        try:
            self._loop.run(self._sandbox.__aenter__)
        except BaseException:
            self._loop.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends all faults, closes the agents, and ends the processes and the server."""
        try:
            # agents hand back what they hold
            self._sandbox._heal()  # noqa: SLF001 - two faces of one thing
            self._agents.close()
        finally:
            try:
                self._loop.complete(self._sandbox.__aexit__, None, None, None)
            finally:
                self._loop.end()

    def declare_stream(
        self,
        name: str,
        *,
        producers: Iterable[str] = (),
        broadcast: bool = False,
        signed: Literal["Warn", "Require"] | None = None,
        contracts: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """As `Sandbox.declare_stream`.

        Raises:
            ValueError, SettingsError: as there.
        """
        self._loop.run(
            self._sandbox.declare_stream,
            name,
            producers=producers,
            broadcast=broadcast,
            signed=signed,
            contracts=contracts,
        )

    def declare_group(
        self,
        stream: str,
        *,
        agent: str,
        group: str | None = None,
        lease: float = 10.0,
        deadline: float | None = None,
        max_deliveries: int = 5,
        backoff: float = 0.01,
        backoff_factor: float = 2.0,
        backoff_max: float = 1.0,
        deliver_all: bool = False,
        dead_letters: bool = True,
        start: str = "0",
    ) -> None:
        """As `Sandbox.declare_group`.

        Raises:
            LookupError: the stream is not declared.
        """
        self._loop.run(
            self._sandbox.declare_group,
            stream,
            agent=agent,
            group=group,
            lease=lease,
            deadline=deadline,
            max_deliveries=max_deliveries,
            backoff=backoff,
            backoff_factor=backoff_factor,
            backoff_max=backoff_max,
            deliver_all=deliver_all,
            dead_letters=dead_letters,
            start=start,
        )

    def agent(self, name: str, *, pod: str | None = None, through: Faults | None = None) -> Agent:
        """As `Sandbox.agent`, an agent of `agentstream.sync`: it is entered, and ends with the sandbox."""
        return self._agents.enter_context(
            Agent.connect(self._sandbox.settings(name, pod=pod, through=through))
        )

    def more_faults(self) -> Faults:
        """As `Sandbox.more_faults`."""
        return self._sandbox.more_faults()

    def environ(self, agent: str, *, pod: str | None = None, through: Faults | None = None) -> dict[str, str]:
        """As `Sandbox.environ`."""
        return self._sandbox.environ(agent, pod=pod, through=through)

    def process(
        self,
        program: str | Path,
        *arguments: str,
        agent: str,
        pod: str | None = None,
        through: Faults | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> AgentProcess:
        """As `Sandbox.process`. What of it is to be awaited needs no loop of its own: use `asyncio.run`."""
        return self._sandbox.process(
            program, *arguments, agent=agent, pod=pod, through=through, environ=environ
        )

    def kill(self, agent: Agent) -> None:
        """As `Sandbox.kill`, but handlers go on, for no thread can be ended; iterations end."""
        agent._crash()  # noqa: SLF001 - nobody but a test is to do this

    def settled(self, stream: str, *, group: str | None = None, timeout: float = 10.0) -> None:
        """As `Sandbox.settled`.

        Raises:
            TimeoutError, LookupError: as there.
        """
        self._loop.run(self._sandbox.settled, stream, group=group, timeout=timeout)

    def messages(self, stream: str, *, at_least: int = 0, timeout: float = 10.0) -> list[Message]:
        """As `Sandbox.messages`.

        Raises:
            TimeoutError, LookupError: as there.
        """
        return self._loop.run(self._sandbox.messages, stream, at_least=at_least, timeout=timeout)

    def dead_letters(self, stream: str, *, group: str) -> list[DeadLetter]:
        """As `Sandbox.dead_letters`.

        Raises:
            LookupError: the stream is not declared.
        """
        return self._loop.run(self._sandbox.dead_letters, stream, group=group)
